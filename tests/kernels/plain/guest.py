# SPDX-License-Identifier: Apache-2.0
"""Guests of one or a few instructions, in real and in 64-bit mode, and all that can be seen of what they did."""

from __future__ import annotations

import struct
import zlib

from tests.kernels.plain.kvm import Vcpu, Vm

__all__ = ["CODE", "DATA", "Guest"]

CODE, DATA = 0x7000, 0x9000
_REAL_HANDLERS, _REAL_STACK = 0x8000, 0x6000
_PML4, _PDPT, _PD, _PD3, _GDT, _IDT, _HANDLERS, _STACK = (
    *(0x10000, 0x11000, 0x12000, 0x13000, 0x14000, 0x15000),
    *(0x18000, 0x1F0000),
)
_MADE = 0x19000
_DONE = b"\xe6\x80\xf4\x90"  # out %al, $0x80; hlt
_EXITS = 8
_IO, _MMIO, _RDMSR, _WRMSR = 2, 6, 29, 30
_CR4 = 0x20 | 0x600


def _segment(base: int, limit: int, selector: int, kind: int, **bits: int) -> bytes:
    flags = [bits.get(name, 0) for name in ("present", "dpl", "db", "s", "l", "g", "avl", "unusable")]
    return struct.pack("<QIH10B", base, limit, selector, kind, *flags, 0)


class Guest:
    """A vCPU with a guest's memory made ready for both modes."""

    def __init__(self, *, irqchip: bool = False, cpuid: bytes | None = None, vcpus: int = 1) -> None:
        self.vm = Vm(irqchip=irqchip)
        self.vcpu = Vcpu(self.vm, cpuid=cpuid is None)
        if cpuid is not None:
            self.vcpu.call("SET_CPUID2", bytearray(cpuid))
        self._memory()
        self._fresh = bytes(self.vm.memory[:_MADE])
        self._sregs = self.vcpu.get("SREGS")[1]
        self.sregs_apic_base = struct.unpack_from("<Q", self._sregs, 272)[0]

    def _memory(self) -> None:
        memory = self.vm.memory
        for vector in range(256):
            struct.pack_into("<HH", memory, 4 * vector, _REAL_HANDLERS + 4 * vector, 0)
            memory[_REAL_HANDLERS + 4 * vector : _REAL_HANDLERS + 4 * vector + 4] = _DONE
            handler = _HANDLERS + 4 * vector
            memory[handler : handler + 4] = _DONE
            struct.pack_into(
                "<HHBBHII", memory, _IDT + 16 * vector, handler & 0xFFFF, 8, 0, 0x8E, handler >> 16, 0, 0
            )
        struct.pack_into("<Q", memory, _PML4, _PDPT | 7)
        struct.pack_into("<Q", memory, _PDPT, _PD | 7)
        struct.pack_into("<Q", memory, _PDPT + 24, _PD3 | 7)
        struct.pack_into("<Q", memory, _PD, 0x87)
        struct.pack_into("<Q", memory, _PD + 8, 0x200087)  # no memory is there: MMIO
        struct.pack_into("<Q", memory, _PD3 + 8 * 0x1F7, 0xFEE00087)
        struct.pack_into("<5Q", memory, _GDT, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0170000067, 0)

    def enter(self, mode: str, *, cr4: int = _CR4, efer: int = 0x500) -> None:
        """Have the vCPU in a mode, with everything else that its special registers have as at its reset."""
        sregs = bytearray(self._sregs)
        if mode == "real":
            sregs[0:24] = _segment(0, 0xFFFF, 0, 0xB, present=1, s=1)
            for number in range(1, 6):
                sregs[24 * number : 24 * number + 24] = _segment(0, 0xFFFF, 0, 3, present=1, s=1)
        else:
            sregs[0:24] = _segment(0, 0xFFFFFFFF, 8, 0xB, present=1, s=1, l=1, g=1)
            for number in range(1, 6):
                sregs[24 * number : 24 * number + 24] = _segment(0, 0xFFFFFFFF, 16, 3, present=1, s=1, db=1, g=1)
            sregs[144:168] = _segment(0x17000, 0x67, 24, 0xB, present=1)
            sregs[168:192] = _segment(0, 0, 0, 2, unusable=1)
            struct.pack_into("<QH", sregs, 192, _GDT, 39)
            struct.pack_into("<QH", sregs, 208, _IDT, 4095)
            struct.pack_into("<QQQQQQ", sregs, 224, 0x80050033, 0, _PML4, cr4, 0, efer)
        struct.pack_into("<Q", sregs, 272, self.sregs_apic_base)
        self.vcpu.set("SREGS", sregs)
        self.vcpu.set("VCPU_EVENTS", bytes(64))
        self.mode = mode

    def start(self, code: bytes, *, flags: int = 2, **registers: int) -> None:
        """Put code and registers where a run begins with them."""
        # An instruction that has stored something somewhere has done so to its own memory alone.
        self.vm.memory[:_MADE] = self._fresh
        self.vm.memory[CODE : CODE + len(code) + 4] = code + _DONE
        names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)))
        values = {"rsp": _REAL_STACK if self.mode == "real" else _STACK, "rbx": DATA, **registers}
        words = [values.get(name, 0) for name in names]
        self.vcpu.set("REGS", struct.pack("<18Q", *words, CODE, flags))

    def go(self) -> str:
        """Run until the code or a handler is through; return what was seen on the way and at the end."""
        seen = []
        area = self.vcpu.run_area
        for _ in range(_EXITS):
            done = self.vcpu.call("RUN")
            reason = self.vcpu.exit()
            if isinstance(done, str):
                seen.append(done)
                break
            if reason == _IO:
                direction, size, port, count, offset = struct.unpack_from("<BBHIQ", area, 32)
                seen.append(f"io {direction} {size} {port:#x} {count} {area[offset : offset + size * count].hex()}")
                if port == 0x80:
                    break
                area[offset : offset + size] = b"\x5a" * size
            elif reason == _MMIO:
                address, data, length, write = struct.unpack_from("<Q8sIB", area, 32)
                seen.append(f"mmio {address:#x} {length} {write} {data[:length].hex() if write else ''}")
                area[40:48] = bytes(range(0x11, 0x19))
            elif reason in (_RDMSR, _WRMSR):
                error, why, index, data = struct.unpack_from("<B7xIIQ", area, 32)
                seen.append(f"msr {reason} {error} {why} {index:#x} {data if reason == _WRMSR else 0:#x}")
                struct.pack_into("<Q", area, 48, 0x1234567800ABCDEF)
            else:
                seen.append(f"exit {reason} {area[32:56].hex() if reason in (4, 9, 17) else ''}")
                break
        return f"{'; '.join(seen)} | {self.state()}"

    def state(self) -> str:
        """Return a line about the registers of a vCPU."""
        words = struct.unpack("<18Q", self.vcpu.get("REGS")[1])
        sregs, events = self.vcpu.get("SREGS")[1], self.vcpu.get("VCPU_EVENTS")[1]
        control = struct.unpack_from("<7Q", sregs, 224)
        parts = [" ".join(f"{word:x}" for word in words), " ".join(f"{word:x}" for word in control)]
        area = self.vcpu.run_area
        parts += [f"{zlib.crc32(sregs):08x}", events.hex().rstrip("0"), area[12:32].hex()]
        return " / ".join(parts)

    def run(self, mode: str, code: bytes, *, flags: int = 2, cr4: int = _CR4, **registers: int) -> str:
        self.enter(mode, cr4=cr4)
        self.start(code, flags=flags, **registers)
        return self.go()
