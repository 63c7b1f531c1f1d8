# SPDX-License-Identifier: Apache-2.0
"""Values other than a fresh vCPU's for as much of an x86 vCPU's state as KVM lets be changed.

What a restore leaves out shows only where the value is not that of a fresh vCPU anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from vmm.state.world.unsettle import unsettle as unsettle_fields
from vmm.state.x86.world.modes import SREGS_LONG
from vmm.state.x86.world.msrs import MSRS
from vmm.state.x86.world.registers import DEBUGREGS, REGS
from vmm.state.x86.world.vectors import XSAVE
from vmm.x86 import boot, msr, permission, xfeature
from vmm.x86.cpuid import get_cpuid
from vmm.x86.msr_names import Msr, saved_name
from vmm.x86.msr_values import UNUSED
from vmm.x86.registers import get_debugregs, get_sregs, set_debugregs, set_sregs, set_xcr0

__all__ = ["ARGUMENTS", "before", "mark", "unsettle"]

# For Guest: without OSXSAVE a guest cannot have XCR0.
ARGUMENTS: Mapping[str, Any] = {"cr4": boot.CR4_OSXSAVE}

# In the order of a restore. The guest is in long mode.
_TABLES = (SREGS_LONG, XSAVE, MSRS, REGS, DEBUGREGS)
# KVM's own MSRs and Hyper-V's have KVM write into the guest's memory, which would then change by itself. VM_HSAVE_PA
# only a guest that virtualizes has a use for, and the state of such a guest is not saved.
_OWN = (0x11, 0x12, *range(0x4B56_4D00, 0x4B56_4D10), *range(0x4000_0000, 0x4000_0120))
_LEFT = frozenset(map(saved_name, (*_OWN, 0xC001_0117)))
# Those of the fields' values that are unlike a fresh vCPU's everywhere.
_ROUNDS = 2
_CR2 = 0x7654_3210_0000
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
    """Change every field that can be changed; the vCPU must not run afterwards. Returns what was meant."""
    vcpu = guest.vcpu
    offered = get_cpuid(vcpu).xcr0
    set_xcr0(vcpu, offered)
    meant = unsettle_fields(vcpu, _TABLES, seed % _ROUNDS, _LEFT)
    # Far from that of a VM which has just begun: before Linux 6.7 a write that is close to it sets nothing.
    msr.set_msr(vcpu, Msr.TSC, _TSC)
    return {**meant, "XCRS": _xcr0(offered), **_events(guest)}


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


def _xcr0(value: int) -> Callable[[Part], Part]:
    whole = bytes(ffi.buffer(ffi.new("struct kvm_xcrs *", {"nr_xcrs": 1, "xcrs": [(0, 0, value)]})))
    return lambda part: whole
