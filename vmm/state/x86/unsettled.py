# SPDX-License-Identifier: Apache-2.0
"""Values other than a fresh vCPU's for as much of an x86 vCPU's state as KVM lets be changed.

What a restore leaves out shows only where the value is not that of a fresh vCPU anyway.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

from vmm._kvm import ffi, lib
from vmm.guest.base import BaseGuest
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.state.meant import Meant, registers
from vmm.state.value import Part
from vmm.state.x86.msrs import saved_msrs
from vmm.x86 import boot, msr, permission, xfeature
from vmm.x86.cpuid import get_cpuid
from vmm.x86.msr_names import Msr
from vmm.x86.msr_values import KEPT, UNUSED
from vmm.x86.registers import (
    get_debugregs,
    get_regs,
    get_sregs,
    set_debugregs,
    set_regs,
    set_sregs,
    set_xcr0,
)
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea, get_xsave, set_xsave

__all__ = ["ARGUMENTS", "before", "mark", "unsettle"]

# For Guest: without OSXSAVE a guest cannot have XCR0.
ARGUMENTS: Mapping[str, Any] = {"cr4": boot.CR4_OSXSAVE}

_ADDRESS = 0x7654_3210_8000
# Legal for most: an address, a page's address, few low bits, memory types of IA32_PAT, a fixed MTRR's.
_CANDIDATES = (_ADDRESS, 0x12345000, 0x1, 0x2, 0x4, 0x10, 0x0006_0406_0007_0406, 0x0606_0606_0606_0606)
_PALETTE_1 = bytes([1, 0]) + bytes(14) + (64).to_bytes(2, "little") * 8 + bytes(16) + bytes([16]) * 8 + bytes(8)
_PKRU_LOCAL = 0x5555_5550
_CR2 = 0x7654_3210_0000
_FOP, _FDP_END = 6, 24  # in the area
_TSC = 1 << 44
_STI = 1  # KVM_X86_SHADOW_INT_STI


def before(kvm: Kvm) -> None:
    """Request the guest permission for all dynamic components that KVM offers and the process may still get."""
    try:
        offered = permission.guest_supported(kvm) & xfeature.DYNAMIC & ~permission.guest_permitted()
        for feature in bits(offered):
            permission.request_guest(feature)
    except KvmError as error:
        # EBUSY: a vCPU was made before; ENXIO, EINVAL: a kernel without them. Then the guest goes without.
        if error.errno_name not in ("EBUSY", "ENXIO", "EINVAL", "EOPNOTSUPP"):
            raise


def unsettle(guest: BaseGuest, seed: int) -> Meant:
    """Change every register that can be changed; the vCPU must not run afterwards. Returns what was meant."""
    vcpu = guest.vcpu
    source = random.Random(seed)
    meant: dict[str, Callable[[Part], Part]] = {}
    meant |= _general(vcpu, source)
    meant |= _vectors(vcpu, source)
    meant["MSRS"] = _msrs(vcpu, saved_msrs(vcpu))
    # Far from that of a VM which has just begun: before Linux 6.7 a write that is close to it sets nothing.
    msr.set_msr(vcpu, Msr.TSC, _TSC)
    debug = get_debugregs(vcpu)
    for number in range(4):
        debug.db[number] = source.randrange(1, 1 << 40) << 3
    debug.dr7 = 0x400 | 0x55
    meant["DEBUGREGS"] = _just(debug)
    set_debugregs(vcpu, debug)
    return {**meant, **_events(guest)}


def mark(vcpu: Vcpu) -> Meant:
    """Give values to what no guest of the chain payload uses: they have to be there whenever its state is read."""
    values = {int(index): value for index, value in UNUSED.items()}
    debug, sregs = get_debugregs(vcpu), get_sregs(vcpu)
    for number in range(4):
        debug.db[number] = 0x1111_0000 * (number + 1)
    wanted = _just(debug)
    set_debugregs(vcpu, debug)
    sregs.cr2 = _CR2
    set_sregs(vcpu, sregs)
    msr.set_msrs(vcpu, values)
    return {
        "DEBUGREGS": wanted,
        "SREGS": _control(cr2=_CR2),
        "MSRS": registers({index: value.to_bytes(8, "little") for index, value in values.items()}),
    }


def _just(structure: Any) -> Callable[[Part], Part]:
    """A structure as it is now, which is before it is written: what is meant is not what becomes of it."""
    data = bytes(ffi.buffer(structure))
    return lambda part: data


def _control(**values: int) -> Callable[[Part], Part]:
    """Fields of SREGS; two underscores lead into a segment. The rest is what it is."""

    def meant(part: Part) -> Part:
        sregs = ffi.new("struct kvm_sregs2 *")
        ffi.memmove(sregs, part, len(part))
        for path, value in values.items():
            *outer, last = path.split("__")
            setattr(reduce(getattr, outer, sregs), last, value)
        return bytes(ffi.buffer(sregs))

    return meant


def _events(guest: BaseGuest) -> Meant:
    events = guest.vcpu.get_events()
    events.nmi.masked = events.nmi.pending = 1
    events.interrupt.shadow = _STI
    if guest.vm.check_extension(lib.KVM_CAP_EXCEPTION_PAYLOAD):
        # A page fault that is not delivered yet, with its address: what KVM_SET_REGS would discard.
        guest.vm.enable_cap(lib.KVM_CAP_EXCEPTION_PAYLOAD, 1)
        events.flags |= lib.KVM_VCPUEVENT_VALID_PAYLOAD
        events.exception.pending, events.exception.nr, events.exception.has_error_code = 1, 14, 1
        events.exception_has_payload, events.exception_payload = 1, 0x7777_2000
    given = bytes(ffi.buffer(events))
    guest.vcpu.set_events(events)

    def meant(part: Part) -> Part:
        wanted, found = ffi.new("struct kvm_vcpu_events *"), ffi.new("struct kvm_vcpu_events *")
        ffi.memmove(wanted, given, len(given))
        ffi.memmove(found, part, len(part))
        # KVM on AMD shows the shadow of MOV SS with that of STI; which fields are valid is KVM's to say.
        wanted.interrupt.shadow = found.interrupt.shadow if found.interrupt.shadow & _STI else _STI
        wanted.flags = found.flags
        return bytes(ffi.buffer(wanted))

    return {"EVENTS": meant}


def _general(vcpu: Vcpu, source: random.Random) -> Meant:
    sregs = get_sregs(vcpu)
    sregs.cr2, sregs.cr8 = 0x7777_1000, 5
    sregs.fs.base, sregs.gs.base = _ADDRESS, _ADDRESS + 0x1000
    set_sregs(vcpu, sregs)
    regs = get_regs(vcpu)
    for name, _ in ffi.typeof("struct kvm_regs").fields:
        if name not in ("rip", "rflags"):
            setattr(regs, name, source.getrandbits(64))
    regs.rip, regs.rflags = 0x123458, 0xAD7
    general = _just(regs)
    set_regs(vcpu, regs)
    control = _control(cr2=0x7777_1000, cr8=5, fs__base=_ADDRESS, gs__base=_ADDRESS + 0x1000)
    return {"SREGS": control, "REGS": general}


def _vectors(vcpu: Vcpu, source: random.Random) -> Meant:
    """Fill all components that the guest's CPUID offers, with data that the CPU accepts."""
    offered = get_cpuid(vcpu).xcr0
    set_xcr0(vcpu, offered)
    area = XsaveArea(get_xsave(vcpu).data)
    for number in bits(offered):
        if number in area.layout and area.layout[number].end <= len(area.data):
            area.set_component(number, _component(number, area.layout[number].size, source))
    area.mxcsr = 0x1FA0
    data = bytes(area.data)
    set_xsave(vcpu, area)

    def xcr0(part: Part) -> Part:
        rows = [(0, 0, offered)]
        return bytes(ffi.buffer(ffi.new("struct kvm_xcrs *", {"nr_xcrs": 1, "flags": 0, "xcrs": rows})))

    def xsave(part: Part) -> Part:
        # FOP, FIP and FDP are the CPU's: it may cut or clear them where no x87 exception is pending.
        own = bytes(part)[_FOP:_FDP_END]
        return (data[:_FOP] + own + data[_FDP_END:]).ljust(len(part), b"\0")[: len(part)]

    return {"XCRS": xcr0, "XSAVE": xsave}


def _component(number: int, size: int, source: random.Random) -> bytes:
    if number == XFeature.FP:
        head = bytes([0x7F, 0x02, 0, 0x38, 0xFF, 0]) + source.randbytes(10) + bytes(8)
        registers = b"".join(source.randbytes(10) + bytes(6) for _ in range(8))
        return head[:24] + registers
    if number == XFeature.SSE:
        return (0x1FA0).to_bytes(4, "little") + bytes(4) + source.randbytes(size - 8)
    if number == XFeature.XTILECFG:
        return _PALETTE_1.ljust(size, b"\0")[:size]
    if number == XFeature.PKRU:
        return _PKRU_LOCAL.to_bytes(4, "little").ljust(size, b"\0")
    if number in (XFeature.BNDREGS, XFeature.BNDCSR):
        return bytes(size)
    return source.randbytes(size)


def _msrs(vcpu: Vcpu, indices: Iterable[int]) -> Callable[[Part], Part]:
    """Change MSRs: those that every guest has keep what they are given."""
    meant: dict[int, bytes] = {}
    for index in indices:
        if index in KEPT:
            value = KEPT[Msr(index)]
            msr.set_msr(vcpu, index, value)
            meant[index] = value.to_bytes(8, "little")
        else:
            _change_msr(vcpu, index)
    return registers(meant)


def _change_msr(vcpu: Vcpu, index: int) -> None:
    """Give an MSR the first of some values that KVM takes and keeps; leave it as it is if there is none."""
    old = msr.try_get(vcpu, index)
    if old is None:
        return
    for value in _CANDIDATES:
        try:
            if value != old and msr.set_msr(vcpu, index, value):
                if msr.try_get(vcpu, index) == value:
                    return
                msr.set_msr(vcpu, index, old)
        except KvmError:
            continue
