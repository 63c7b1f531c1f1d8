# SPDX-License-Identifier: Apache-2.0
"""What guests show: instructions that read and write state, events on their way in, CPUID's part in all of it."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

from tests.kernels.plain.guest import DATA, Guest
from tests.kernels.plain.kvm import Vcpu, Vm, call, supported_cpuid
from tests.kernels.plain.state import dump, msrs

__all__ = ["SECTIONS"]

See = Callable[[str, object], None]
_MODES = ("real", "long")
_USER_SPACE_MSR, _EXCEPTION_PAYLOAD, _TRIPLE_FAULT = 188, 164, 218
#: Where KVM_GET_SREGS has a control register.
_CONTROL = {0: 224, 2: 232, 3: 240, 4: 248, 8: 256}
_RDMSR, _WRMSR, _CPUID = b"\x0f\x32", b"\x0f\x30", b"\x0f\xa2"
#: Instructions without operands that matter, by name.
_PLAIN = {
    "nop": b"\x90",
    "hlt": b"\xf4",
    "ud2": b"\x0f\x0b",
    "int3": b"\xcc",
    "int1": b"\xf1",
    "int20": b"\xcd\x20",
    "pushf": b"\x9c\x5a",
    "cli": b"\xfa",
    "sti": b"\xfb\xf4",
    "clts": b"\x0f\x06",
    "wbinvd": b"\x0f\x09",
    "invd": b"\x0f\x08",
    "rdpmc": b"\x0f\x33",
    "rdtscp": b"\x0f\x01\xf9\x31\xc0\x31\xd2",
    "monitor": b"\x0f\x01\xc8",
    "mwait": b"\x0f\x01\xc9",
    "swapgs": b"\x0f\x01\xf8",
    "rsm": b"\x0f\xaa",
    "in": b"\xe4\x60",
    "out": b"\xe6\x61",
    "fninit": b"\xdb\xe3\xdd\x33",
    "emms": b"\x0f\x77",
    "movaps": b"\x0f\x28\xc1",
    "xgetbv0": b"\x31\xc9\x0f\x01\xd0",
    "xgetbv1": b"\xb1\x01\x0f\x01\xd0",
    "clac": b"\x0f\x01\xca",
    "rdpid": b"\xf3\x0f\xc7\xf8",
    "rdrand": b"\x0f\xc7\xf0\x31\xc0",
    "div0": b"\x31\xc9\xf7\xf1",
    "sgdt": b"\x0f\x01\x03",
    "sidt": b"\x0f\x01\x0b",
    "smsw": b"\x0f\x01\xe0",
    "str": b"\x0f\x00\xc8",
    "sldt": b"\x0f\x00\xc0",
    "clgi": b"\x0f\x01\xdd",
    "stgi": b"\x0f\x01\xdc",
    "vmrun": b"\x0f\x01\xd8",
    "vmload": b"\x0f\x01\xda",
    "vmsave": b"\x0f\x01\xdb",
    "skinit": b"\x0f\x01\xde",
    "invlpga": b"\x0f\x01\xdf",
    "vmxon": b"\xf3\x0f\xc7\x33",
}


def instructions(see: See) -> None:
    for irqchip in (False, True):
        guest = Guest(irqchip=irqchip)
        for mode in _MODES:
            for name, code in _PLAIN.items():
                if irqchip and "\xf4" in code.decode("latin-1"):
                    continue  # would wait for an interrupt
                see(f"run.{irqchip}.{mode}.{name}", guest.run(mode, code, rax=0x77, rcx=0, rdx=0))
                see(f"run.{irqchip}.{mode}.{name}.data", bytes(guest.vm.memory[DATA : DATA + 112]).hex())
        dump(see, f"run.{irqchip}.end", guest.vcpu)


def control_registers(see: See) -> None:
    guest = Guest()
    for mode in _MODES:
        for register in _CONTROL:
            code = bytes((0x0F, 0x22, 0xC0 | (register & 7) << 3))
            back = bytes((0x0F, 0x20, 0xC2 | (register & 7) << 3))
            prefix = b"\xf0" if register == 8 and mode == "real" else b"\x44" if register == 8 else b""
            guest.enter(mode)
            sregs = guest.vcpu.get("SREGS")[1]
            (value,) = struct.unpack_from("<Q", sregs, _CONTROL[register])
            for bit in range(64 if mode == "long" else 32):
                if register == 3 and 21 <= bit < 39:
                    continue  # its tables would be where no memory is
                see(
                    f"cr.{mode}.{register}.{bit}",
                    guest.run(mode, prefix + code + prefix + back, rax=value ^ 1 << bit),
                )
        for register in range(8):
            for value in (0, 0x400 if register in (5, 7) else 0xFFFF0FF0, 0x401, 1 << 32):
                code = bytes((0x0F, 0x23, 0xC0 | register << 3, 0x0F, 0x21, 0xC2 | register << 3))
                see(f"dr.{mode}.{register}.{value:x}", guest.run(mode, code, rax=value))
                see(f"dr.{mode}.{register}.{value:x}.regs", guest.vcpu.get("DEBUGREGS"))
                guest.vcpu.set("DEBUGREGS", struct.pack("<6Q", 0, 0, 0, 0, 0xFFFF0FF0, 0x400) + bytes(80))
        for low in (0, 1, 2, 3, 5, 7, 9, 0x18, 0xE7, 0x207, 0x20007, 0x60007, 0x602E7):
            for index in (0, 1):
                code = b"\x0f\x01\xd1\x31\xc9\x0f\x01\xd0"
                see(f"xcr.{mode}.{index}.{low:x}", guest.run(mode, code, cr4=0x40620, rax=low, rcx=index))
                see(f"xcr.{mode}.{index}.{low:x}.xcrs", guest.vcpu.get("XCRS"))
                xcrs = struct.pack("<IIIIQ", 1, 0, index, 0, low) + bytes(368)
                see(f"xcr.{mode}.{index}.{low:x}.set", (guest.vcpu.set("XCRS", xcrs), guest.vcpu.get("XCRS")))


def guest_msrs(see: See) -> None:
    """Each MSR, read and written by a guest, with its own value and with others."""
    for exits in (False, True):
        guest = Guest(irqchip=not exits)
        if exits:
            see("guest.exits", guest.vm.enable(_USER_SPACE_MSR, 7))
            _filter(see, guest.vm)
        for index in msrs(guest.vm.kvm)[:: 3 if exits else 1]:
            base = guest.vcpu.get_msr(index)[1] if guest.vcpu.get_msr(index)[0] == 1 else 0
            see(f"guest.{exits}.{index:#x}.read", guest.run("long", _RDMSR, rcx=index))
            values = (base ^ 1, (1 << 64) - 1, 0xFFFF880000001000)
            for value in values[: 1 if exits else None]:
                code = _WRMSR + _RDMSR
                done = guest.run("long", code, rcx=index, rax=value & 0xFFFFFFFF, rdx=value >> 32)
                see(f"guest.{exits}.{index:#x}.{value:x}", done)
                see(f"guest.{exits}.{index:#x}.{value:x}.host", guest.vcpu.get_msr(index))
                guest.vcpu.set_msr(index, base)
        dump(see, f"guest.{exits}.end", guest.vcpu)


def _filter(see: See, vm: Vm) -> None:
    bitmap = bytearray(b"\x55" * 0x600)
    address = ctypes.addressof(ctypes.c_char.from_buffer(bitmap))
    for flags in (0, 1, 2):
        for count in (0, 8, 0x100, 0x3000, 0x3001):
            for kind in (0, 1, 2, 3, 4):
                ranges = struct.pack("<IIIxxxxQ", kind, count, 0x170, address)
                data = bytearray(struct.pack("<Ixxxx", flags) + ranges + bytes(15 * 24))
                see(f"filter.{flags}.{count}.{kind}", call(vm.fd, "X86_SET_MSR_FILTER", data))
    ranges = struct.pack("<IIIxxxxQ", 3, 0x100, 0x170, address) + struct.pack("<IIIxxxxQ", 2, 8, 0xC0000080, address)
    see("filter", call(vm.fd, "X86_SET_MSR_FILTER", bytearray(bytes(8) + ranges + bytes(14 * 24))))
    see("filter.kept", bitmap[:8].hex())


def cpuid_leaves(see: See) -> None:
    """What a guest's CPUID says, leaf by leaf, and what each of its features decides."""
    guest = Guest()
    full = supported_cpuid(guest.vm.kvm)
    entries = [struct.unpack_from("<10I", full, offset) for offset in range(8, len(full), 40)]
    for leaf, sub in [
        *((entry[0], entry[1]) for entry in entries),
        (0x20, 0),
        (0x40000100, 0),
        (0x8FFFFFFF, 0),
        (7, 9),
    ]:
        see(f"cpuid.{leaf:x}.{sub:x}", guest.run("long", _CPUID, rax=leaf, rcx=sub))
    guest.enter("long", cr4=0x40620)
    guest.start(_CPUID, rax=0xD)
    see("cpuid.d.osxsave", guest.go())
    for position, entry in enumerate(entries):
        leaf = entry[0]
        for register in range(3, 7):
            single = leaf in (1, 7, 0xD, 0x80000001, 0x80000007, 0x80000008, 0x80000021, 0x40000001, 0x14, 0xA)
            masks = [1 << bit for bit in range(32) if entry[register] >> bit & 1] if single else [entry[register]]
            for mask in filter(None, masks):
                changed = bytearray(full)
                struct.pack_into("<I", changed, 8 + 40 * position + 4 * register, entry[register] & ~mask)
                _rules(see, f"without.{leaf:x}.{entry[1]:x}.{register}.{mask:x}", changed)
        shorter = bytearray(full[: 8 + 40 * position] + full[48 + 40 * position :])
        struct.pack_into("<I", shorter, 0, len(entries) - 1)
        _rules(see, f"without.{leaf:x}.{entry[1]:x}", shorter)
    for width in (0, 20, 32, 36, 52, 53, 64):
        changed = bytearray(full)
        for position, entry in enumerate(entries):
            if entry[0] == 0x80000008:
                struct.pack_into("<I", changed, 20 + 40 * position, entry[3] & ~0xFF | width)
        _rules(see, f"width.{width}", changed)
    old = b"".join(struct.pack("<6I", entry[0], *entry[3:7], 0) for entry in entries[:8])
    vcpu = Vcpu(guest.vm, 1, cpuid=False)
    for count in (0, 8, 257):
        see(f"old.{count}", vcpu.call("SET_CPUID", bytearray(struct.pack("<II", count, 0) + old + bytes(6000))))
    dump(see, "old", vcpu)
    see("late", guest.vcpu.call("SET_CPUID2", bytearray(full)))
    see("late.other", guest.vcpu.call("SET_CPUID2", shorter))
    see("late.too-many", guest.vcpu.call("SET_CPUID2", bytearray(struct.pack("<II", 257, 0) + bytes(257 * 40))))


_RULED = (0x34, 0x3A, 0x48, 0x49, 0xDA0, 0x1D9, 0x277, 0xC0000080, 0xC0000081, 0xC0000103, 0x1A0, 0x6A2, 0x6E0, 0x1C4)


def _rules(see: See, where: str, cpuid: bytearray) -> None:
    vcpu = _vcpu_for_rules()
    see(f"{where}.set", vcpu.call("SET_CPUID2", bytearray(cpuid)))
    base = vcpu.get("SREGS")[1]
    cr4 = []
    for bit in range(32):
        sregs = bytearray(base)
        struct.pack_into("<Q", sregs, 248, 1 << bit)
        cr4.append(vcpu.set("SREGS", sregs))
    vcpu.set("SREGS", base)
    see(f"{where}.cr4", " ".join(map(str, cr4)))
    line = []
    for index in _RULED:
        old = vcpu.get_msr(index)
        values = [1, 0x400, 0x800, 0x5000, 0x20000, 0x06, 0x3F]
        line.append(f"{old}{[vcpu.set_msr(index, value) for value in values]}{vcpu.get_msr(index)}")
        vcpu.set_msr(index, old[1])
    see(f"{where}.msrs", line)
    xcrs = []
    for value in (3, 7, 0x1F, 0xE7, 0x207, 0x60007):
        xcrs.append(vcpu.set("XCRS", struct.pack("<IIIIQ", 1, 0, 0, 0, value) + bytes(368)))
        vcpu.set("XCRS", struct.pack("<IIIIQ", 1, 0, 0, 0, 1) + bytes(368))
    see(f"{where}.xcrs", xcrs)
    see(f"{where}.xsave", vcpu.get("XSAVE")[1][512:576].hex())
    data = bytearray(8 + 40 * 256)
    struct.pack_into("<I", data, 0, 256)
    see(f"{where}.get", (vcpu.call("GET_CPUID2", data), bytes(data).hex()))


_kept: list[Vcpu] = []


def _vcpu_for_rules() -> Vcpu:
    if not _kept:
        _kept.append(Vcpu(Vm()))
    return _kept[0]


def events(see: See) -> None:
    """Exceptions, interrupts and NMIs that user space puts in, and where a guest is then."""
    for payload in (False, True):
        guest = Guest()
        if payload:
            see("event.caps", (guest.vm.enable(_EXCEPTION_PAYLOAD, 1), guest.vm.enable(_TRIPLE_FAULT, 1)))
        for vector in range(34):
            for code in (False, True):
                for pending in (False, True):
                    event = bytearray(64)
                    event[0:4] = bytes((not pending, vector, code, pending))
                    struct.pack_into("<I", event, 4, 0x18)
                    struct.pack_into("<I", event, 20, 0x10 if payload else 0)
                    event[55] = payload and pending
                    struct.pack_into("<Q", event, 56, 0x4001)
                    _event(see, f"event.{payload}.{vector}.{code}.{pending}", guest, event)
        for offset, value, flags in [
            *((8, 1, 0), (10, 1, 0), (11, 1, 8), (11, 2, 8), (11, 3, 8), (12, 1, 1), (13, 1, 1), (14, 1, 1)),
            *((24, 1, 4), (25, 1, 4), (26, 1, 4), (27, 1, 4), (28, 1, 0x20), (16, 0x12, 2), (24, 3, 4)),
        ]:
            event = bytearray(64)
            event[offset], event[9] = value, 0x30
            struct.pack_into("<I", event, 20, flags)
            _event(see, f"event.{payload}.byte.{offset}.{value}", guest, event)
    guest = Guest()
    for mode in _MODES:
        for flags in (2, 0x202):
            for kind, argument in (
                ("INTERRUPT", 0x30),
                ("INTERRUPT", 256),
                ("NMI", None),
                ("SMI", None),
                ("window", 1),
            ):
                guest.enter(mode)
                guest.start(b"\x90\xb0\x55", flags=flags)
                done: int | str = 0
                if argument is None:
                    done = guest.vcpu.call(kind)
                elif kind == "window":
                    guest.vcpu.run_area[0] = 1
                else:
                    done = guest.vcpu.call(kind, bytearray(struct.pack("<I", argument)))
                before = guest.vcpu.get("VCPU_EVENTS")[1].hex()
                see(f"event.{mode}.{flags}.{kind}.{argument}", (done, before, guest.go()))
                guest.vcpu.run_area[0] = 0
        for control in (0, 1, 3, 0x10001, 0x20001, 0x20002):
            guest.enter(mode)
            guest.start(b"\x90\xb0\x55", flags=2)
            data = struct.pack("<II8Q", control, 0, 0x7000, 0, 0, 0, 0, 0, 0, 0x401)
            see(f"event.{mode}.debug.{control}", (guest.vcpu.set("GUEST_DEBUG", data), guest.go()))
            guest.vcpu.set("GUEST_DEBUG", bytes(72))
        guest.vcpu.set("VCPU_EVENTS", bytes(64))


def _event(see: See, where: str, guest: Guest, event: bytearray) -> None:
    guest.enter("long")
    guest.start(b"\x90\xb0\x55")
    see(f"{where}.set", (guest.vcpu.set("VCPU_EVENTS", event), guest.vcpu.get("VCPU_EVENTS")[1].hex()))
    if event[28] or event[24] or event[25] or event[16]:
        return
    see(f"{where}.run", guest.go())
    see(f"{where}.debug", guest.vcpu.get("DEBUGREGS"))
    guest.vcpu.set("DEBUGREGS", struct.pack("<6Q", 0, 0, 0, 0, 0xFFFF0FF0, 0x400) + bytes(80))


_LAPIC = 0xFEE00000


def lapic(see: See) -> None:
    """A guest at its interrupt controller, in memory and by MSRs, and what starts another vCPU."""
    for x2apic in (False, True):
        guest = Guest(irqchip=True)
        guest.enter("long")
        other = Vcpu(guest.vm, 1)
        other.set("MP_STATE", struct.pack("<I", 1))
        if x2apic:
            guest.sregs_apic_base = 0xFEE00D00
        for register in range(0, 0x400, 0x10):
            for value in (None, 0, 0xFFFFFFFF, 0x000C4500, 0x000C4609):
                if register == 0x380 and value:
                    continue  # the timer's time is never the same
                where = f"lapic.{x2apic}.{register:x}.{value}"
                if x2apic:
                    index = 0x800 + register // 16
                    code = _RDMSR if value is None else _WRMSR
                    high = 1 if register == 0x300 else 0
                    see(where, guest.run("long", code, rcx=index, rax=value or 0, rdx=high))
                    see(f"{where}.host", guest.vcpu.get_msr(index))
                else:
                    code = b"\x8b\x03" if value is None else b"\x89\x03"
                    if register == 0x300:
                        guest.run("long", b"\x89\x03", rbx=_LAPIC + 0x310, rax=1 << 24)
                    see(where, guest.run("long", code, rbx=_LAPIC + register, rax=value or 0))
                see(f"{where}.state", guest.vcpu.get("LAPIC")[1].hex())
                see(f"{where}.other", (other.get("MP_STATE")[1].hex(), other.get("VCPU_EVENTS")[1].hex()))
                if register == 0xF0:
                    guest.run("long", _WRMSR if x2apic else b"\x89\x03", rbx=_LAPIC + 0xF0, rcx=0x80F, rax=0x1FF)
        for size, code in (("b", b"\x8a\x03"), ("w", b"\x66\x8b\x03"), ("q", b"\x48\x8b\x03")):
            for offset in (0x20, 0x22, 0x24, 0x3FE):
                see(f"lapic.{x2apic}.{size}.{offset:x}", guest.run("long", code, rbx=_LAPIC + offset))
        dump(see, f"lapic.{x2apic}.end", guest.vcpu)
        dump(see, f"lapic.{x2apic}.other", other)


def vectors(see: See) -> None:
    """What is in the extended state between a guest and user space."""
    guest = Guest()
    data = bytearray(guest.vcpu.get("XSAVE")[1])
    for number in range(160, 416):
        data[number] = number % 251
    struct.pack_into("<Q", data, 512, 3)
    see("vector.set", guest.vcpu.set("XSAVE", data))
    code = b"\x0f\x29\x03\x0f\x29\x7b\x70\x0f\x57\xd2\x0f\x28\xd9"
    see("vector.run", guest.run("long", code))
    see("vector.memory", bytes(guest.vm.memory[DATA : DATA + 128]).hex())
    see("vector.xsave", guest.vcpu.get("XSAVE")[1].hex())
    see("vector.fpu", guest.vcpu.get("FPU")[1].hex())
    fpu = bytearray(guest.vcpu.get("FPU")[1])
    fpu[160:176] = b"0123456789abcdef"
    see("vector.fpu.set", (guest.vcpu.set("FPU", fpu), guest.run("long", code)))
    see("vector.fpu.memory", bytes(guest.vm.memory[DATA : DATA + 128]).hex())
    for area in (b"\x0f\xae\x23", b"\x0f\xc7\x23", b"\x0f\xae\x2b"):  # XSAVE, XSAVEC, XRSTOR
        guest.vcpu.set("XCRS", struct.pack("<IIIIQ", 1, 0, 0, 0, 7) + bytes(368))
        see(f"vector.{area.hex()}", guest.run("long", area, cr4=0x40620, rax=7))
        see(f"vector.{area.hex()}.memory", bytes(guest.vm.memory[DATA : DATA + 1024]).hex())
        see(f"vector.{area.hex()}.xsave", guest.vcpu.get("XSAVE")[1].hex())


def synced(see: See) -> None:
    """Registers in the page that a vCPU shares with user space."""
    guest = Guest()
    for valid in (0, 1, 2, 4, 7, 8):
        for dirty in (0, 1, 2, 4, 7, 8):
            guest.enter("long")
            guest.start(b"\x90")
            area = guest.vcpu.run_area
            struct.pack_into("<QQ", area, 288, 0, dirty)
            area[304:448] = struct.pack("<18Q", *range(100, 116), 0x7000, 2)
            area[448:760] = guest.vcpu.get("SREGS")[1]
            area[760:824] = guest.vcpu.get("VCPU_EVENTS")[1]
            struct.pack_into("<QQ", area, 288, valid, dirty)
            see(f"synced.{valid}.{dirty}", guest.go())
            see(f"synced.{valid}.{dirty}.area", area[288:824].hex())
            struct.pack_into("<QQ", area, 288, 0, 0)


SECTIONS = (instructions, control_registers, guest_msrs, cpuid_leaves, events, lapic, vectors, synced)
