# SPDX-License-Identifier: Apache-2.0
"""A VM of arm64 as a plain program makes it: registers by their numbers, and guests of a few instructions."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator

from tests.kernels.plain.kvm import CALLS, call

__all__ = ["CODE", "FEATURES", "IO", "Guest", "Vcpu", "Vm", "attribute", "core", "mrs", "msr", "size_of", "sysreg"]

CALLS |= {
    "VCPU_INIT": (1, 0xAE, 32),
    "PREFERRED_TARGET": (2, 0xAF, 32),
    "FINALIZE": (1, 0xC2, 4),
    "SET_COUNTER_OFFSET": (1, 0xB5, 16),
    "REG_WRITABLE_MASKS": (2, 0xB6, 64),
    "CREATE_DEVICE": (3, 0xE0, 12),
    "GET_DIRTY_LOG": (1, 0x42, 16),
    "IRQ_LINE": (1, 0x61, 8),
    "DEBUG": (1, 0x9B, 520),
}
FEATURES = {"power-off": 1, "aarch32": 2, "psci": 4, "pmu": 8, "sve": 16, "pauth": 0x60, "el2": 128, "e2h0": 256}
_ARM64 = 0x6000000000000000
CODE, VECTORS, DATA, IO = 0x8000, 0x1000, 0x10000, 0x10000000
_STORE = 0xF90003C0  # str x0, [x30]
_PSTATE = 0x3C5


def core(offset: int, size: int = 3) -> int:
    """Return the number of a core register."""
    return _ARM64 | size << 52 | 0x10 << 16 | offset


def sysreg(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Return the number of a system register."""
    return _ARM64 | 3 << 52 | 0x13 << 16 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def size_of(register: int) -> int:
    """Return the bytes of a register, from its number."""
    return 1 << (register >> 52 & 15)


def mrs(register: int, rt: int = 0) -> int:
    """Return the instruction that reads a system register."""
    return 0xD5200000 | (register & 0xFFFF) << 5 | rt


def msr(register: int, rt: int = 0) -> int:
    """Return the instruction that writes a system register."""
    return 0xD5000000 | (register & 0xFFFF) << 5 | rt


X = [core(2 * number) for number in range(31)]
SP, PC, PSTATE, SP_EL1, ELR, SPSR = (core(offset) for offset in (62, 64, 66, 68, 70, 72))
FPSR, FPCR = core(212, 2), core(213, 2)
ESR, FAR, VBAR, CPACR = (sysreg(3, 0, *rest) for rest in ((5, 2, 0), (6, 0, 0), (12, 0, 0), (1, 0, 2)))


def attribute(fd: int, name: str, group: int, number: int, value: int = 0, size: int = 8) -> tuple[int | str, str]:
    """Make a call about an attribute of a device; return what it returns, and the value then."""
    data = bytearray(struct.pack("<Q", value & (1 << 64) - 1)[:size])
    address = ctypes.addressof(ctypes.c_char.from_buffer(data))
    done = call(fd, f"{name}_DEVICE_ATTR", bytearray(struct.pack("<IIQQ", 0, group, number, address)))
    return done, data.hex()


class Vm:
    """A VM with two MiB of memory at 0."""

    MEMORY = 2 << 20

    def __init__(self, kind: int = 0, flags: int = 0) -> None:
        self.kvm = os.open("/dev/kvm", os.O_RDWR)
        made = call(self.kvm, "CREATE_VM", kind)
        if isinstance(made, str):
            raise OSError(made)
        self.fd = made
        self.memory = mmap.mmap(-1, self.MEMORY)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        call(self.fd, "SET_USER_MEMORY_REGION", bytearray(struct.pack("<IIQQQ", 0, flags, 0, self.MEMORY, address)))

    def enable(self, capability: int, *arguments: int) -> int | str:
        """Enable a capability."""
        words = [*arguments, 0, 0, 0, 0][:4]
        return call(self.fd, "ENABLE_CAP", bytearray(struct.pack("<II4Q64x", capability, 0, *words)))

    def gic(self) -> int:
        """Create a GICv3 with its frames in their places; return its descriptor."""
        made = bytearray(struct.pack("<III", 7, 0, 0))
        call(self.fd, "CREATE_DEVICE", made)
        fd = int(struct.unpack_from("<I", made, 4)[0])
        attribute(fd, "SET", 0, 2, 0x8000000)
        attribute(fd, "SET", 0, 3, 0x80A0000)
        return fd


class Vcpu:
    """A vCPU with features."""

    def __init__(self, vm: Vm, number: int = 0, features: int = 4, *, init: bool = True) -> None:
        made = call(vm.fd, "CREATE_VCPU", number)
        if isinstance(made, str):
            raise OSError(made)
        self.vm, self.fd, self.features = vm, made, features
        size = call(vm.kvm, "GET_VCPU_MMAP_SIZE")
        self.run_area = mmap.mmap(self.fd, size if isinstance(size, int) else 4096)
        if init:
            self.init(features)
            if features & FEATURES["sve"]:
                self.call("FINALIZE", bytearray(struct.pack("<I", 4)))
            if features & FEATURES["pmu"]:
                attribute(self.fd, "SET", 0, 1)

    def call(self, name: str, argument: int | bytearray = 0) -> int | str:
        """Make a call."""
        return call(self.fd, name, argument)

    def init(self, *features: int, target: int = 5) -> int | str:
        """Call VCPU_INIT with words of features."""
        return self.call("VCPU_INIT", bytearray(struct.pack("<8I", target, *[*features, *[0] * 7][:7])))

    def get(self, register: int) -> tuple[int | str, str]:
        """Read a register; bytes that the kernel does not write show as they were."""
        data = bytearray(b"\xa5" * size_of(register))
        return self._one("GET_ONE_REG", register, data), bytes(reversed(data)).hex()

    def value(self, register: int) -> int:
        """Return the value of a register."""
        return int(self.get(register)[1], 16)

    def set(self, register: int, value: int) -> int | str:
        """Write a register."""
        size = size_of(register)
        return self._one("SET_ONE_REG", register, bytearray((value & (1 << 8 * size) - 1).to_bytes(size, "little")))

    def _one(self, name: str, register: int, data: bytearray) -> int | str:
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        return self.call(name, bytearray(struct.pack("<QQ", register, address)))

    def list(self, room: int = 2048) -> tuple[int | str, list[int]]:
        """Return the numbers that KVM_GET_REG_LIST names."""
        data = bytearray(8 + 8 * room)
        struct.pack_into("<Q", data, 0, room)
        done = self.call("GET_REG_LIST", data)
        (count,) = struct.unpack_from("<Q", data)
        return done, list(struct.unpack_from(f"<{min(count, room)}Q", data, 8))

    def exit(self) -> int:
        """Return the reason that the last run ended with."""
        return int(struct.unpack_from("<I", self.run_area, 8)[0])


class Guest:
    """A vCPU whose memory has handlers for exceptions; it begins at EL1 with its MMU off."""

    def __init__(self, features: int = 4, *, gic: bool = False, vcpus: int = 1, vm: Vm | None = None) -> None:
        self.vm = vm or Vm()
        self.gic = self.vm.gic() if gic else -1
        self.vcpus = [Vcpu(self.vm, number, features) for number in range(vcpus)]
        if gic:
            attribute(self.gic, "SET", 4, 0)
        self.vcpu = self.vcpus[0]
        for vector in range(16):
            struct.pack_into("<2I", self.vm.memory, VECTORS + 0x80 * vector, _STORE, 0x14000000)
        for one in self.vcpus:
            one.set(VBAR, VECTORS)

    def start(self, *code: int, **registers: int) -> None:
        """Put instructions and registers where a run begins with them."""
        words = [*code, _STORE, 0x14000000]
        struct.pack_into(f"<{len(words)}I", self.vm.memory, CODE, *words)
        self.enter(self.vcpu, **registers)

    def enter(self, vcpu: Vcpu, **registers: int) -> None:
        """Have a vCPU at the beginning of the code."""
        vcpu.set(PSTATE, registers.get("pstate", _PSTATE))
        vcpu.set(PC, CODE)
        vcpu.set(X[30], IO)
        for name, value in registers.items():
            if name[1:].isdigit():
                vcpu.set(X[int(name[1:])], value)

    def resume(self, vcpu: Vcpu | None = None) -> tuple[object, ...]:
        """Run a vCPU until it leaves; return all that a run shows of itself."""
        vcpu = vcpu or self.vcpu
        done = vcpu.call("RUN")
        where = vcpu.value(PC)
        x0 = vcpu.value(X[0])
        more = bytes(vcpu.run_area[32:64]).hex().rstrip("0") if done == 0 else ""
        trap: tuple[str, ...] = ()
        if VECTORS <= where < VECTORS + 0x800:
            trap = tuple(f"{vcpu.value(register):x}" for register in (ESR, FAR, ELR, SPSR))
        return done, vcpu.exit() if done == 0 else "", f"{where:x}", f"{x0:x}", more, *trap

    def run(self, *code: int, **registers: int) -> tuple[object, ...]:
        """Run instructions until the vCPU leaves."""
        self.start(*code, **registers)
        return self.resume()


def all_sysregs() -> Iterator[int]:
    """Yield the numbers of system registers where any may be."""
    for op0, op1s, crns in ((2, (0, 3), range(16)), (3, (0, 1, 2, 3, 4), range(16))):
        for op1 in op1s:
            for crn in crns:
                for crm in range(16):
                    for op2 in range(8):
                        yield sysreg(op0, op1, crn, crm, op2)
