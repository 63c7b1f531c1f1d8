# SPDX-License-Identifier: Apache-2.0
"""Values other than a fresh vCPU's for as much of an x86 vCPU's state as KVM lets be changed.

What a restore leaves out shows only where the value is not that of a fresh vCPU anyway.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from vmm._kvm import ffi, lib
from vmm.guest.base import BaseGuest
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.state.x86.msrs import saved_msrs
from vmm.x86 import boot, msr, permission, xfeature
from vmm.x86.cpuid import get_cpuid
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

__all__ = ["ARGUMENTS", "before", "unsettle"]

# For Guest: without OSXSAVE a guest cannot have XCR0.
ARGUMENTS: Mapping[str, Any] = {"cr4": boot.CR4_OSXSAVE}

_ADDRESS = 0x7654_3210_8000
# Legal for most: an address, a page's address, few low bits, memory types of IA32_PAT, a fixed MTRR's.
_CANDIDATES = (_ADDRESS, 0x12345000, 0x1, 0x2, 0x4, 0x10, 0x0006_0406_0007_0406, 0x0606_0606_0606_0606)
_PALETTE_1 = bytes([1, 0]) + bytes(14) + (64).to_bytes(2, "little") * 8 + bytes(16) + bytes([16]) * 8 + bytes(8)
_PKRU_LOCAL = 0x5555_5550


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


def unsettle(guest: BaseGuest, seed: int) -> None:
    """Change every register that can be changed; the vCPU must not run afterwards."""
    vcpu = guest.vcpu
    source = random.Random(seed)
    _general(vcpu, source)
    _vectors(vcpu, source)
    for index in saved_msrs(vcpu):
        _change_msr(vcpu, index)
    debug = get_debugregs(vcpu)
    for number in range(4):
        debug.db[number] = source.randrange(1, 1 << 40) << 3
    debug.dr7 = 0x400 | 0x55
    set_debugregs(vcpu, debug)
    events = vcpu.get_events()
    events.nmi.masked = 1
    events.interrupt.shadow = 1
    if guest.vm.check_extension(lib.KVM_CAP_EXCEPTION_PAYLOAD):
        # A page fault that is not delivered yet, with its address: what KVM_SET_REGS would discard.
        guest.vm.enable_cap(lib.KVM_CAP_EXCEPTION_PAYLOAD, 1)
        events.flags |= lib.KVM_VCPUEVENT_VALID_PAYLOAD
        events.exception.pending, events.exception.nr, events.exception.has_error_code = 1, 14, 1
        events.exception_has_payload, events.exception_payload = 1, 0x7777_2000
    vcpu.set_events(events)


def _general(vcpu: Vcpu, source: random.Random) -> None:
    sregs = get_sregs(vcpu)
    sregs.cr2, sregs.cr8 = 0x7777_1000, 5
    sregs.fs.base, sregs.gs.base = _ADDRESS, _ADDRESS + 0x1000
    set_sregs(vcpu, sregs)
    regs = get_regs(vcpu)
    for name, _ in ffi.typeof("struct kvm_regs").fields:
        if name not in ("rip", "rflags"):
            setattr(regs, name, source.getrandbits(64))
    regs.rip, regs.rflags = 0x123458, 0xAD7
    set_regs(vcpu, regs)


def _vectors(vcpu: Vcpu, source: random.Random) -> None:
    """Fill all components that the guest's CPUID offers, with data that the CPU accepts."""
    offered = get_cpuid(vcpu).xcr0
    set_xcr0(vcpu, offered)
    area = XsaveArea(get_xsave(vcpu).data)
    for number in bits(offered):
        if number in area.layout and area.layout[number].end <= len(area.data):
            area.set_component(number, _component(number, area.layout[number].size, source))
    area.mxcsr = 0x1FA0
    set_xsave(vcpu, area)


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
