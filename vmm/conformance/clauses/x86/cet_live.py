# SPDX-License-Identifier: Apache-2.0
"""CET state on the move: copies of a running guest, what each register is needed for, and XSAVES."""

from __future__ import annotations

import struct

from vmm.conformance.context import Context
from vmm.conformance.expect import Violation, equal, no_difference
from vmm.conformance.registry import clause
from vmm.conformance.x86 import shadow, state
from vmm.conformance.x86.common import untiled_features
from vmm.conformance.x86.shadow import (
    DEPTH,
    SHSTK,
    WRITABLE_STACKS,
    XSAVES,
    goes_on,
    set_up_msr,
    shadow_guest,
    stopped_inside,
)
from vmm.kvm.exits import Deadline, Exit, InternalError, Shutdown
from vmm.x86 import boot
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.guest import Fault, Guest, GuestError
from vmm.x86.msr import get_msr, name
from vmm.x86.msr_names import Msr
from vmm.x86.registers import set_xcr0
from vmm.x86.xfeature import XFeature

_CET_U, _CET_S = int(XFeature.CET_U), int(XFeature.CET_S)
# Which instruction of `live` needs which register, and what it does without.
_NEEDED_BY = {
    "U_CET": ("#UD", "at_user_incssp"),
    "S_CET": ("#UD", "at_kernel_incssp"),
    "PL3_SSP": ("#PF", "at_user_incssp"),
    "SSP": ("#PF", "at_kernel_incssp"),
    "XSS": ("#GP", "at_xrstors"),
}


@clause("cet.state-live", arch="x86", needs=(SHSTK, XSAVES))
def live_state(context: Context) -> None:
    """A guest that is stopped inside an exception with user and supervisor shadow stacks resumes in a new VM.

    Source: arch/x86/kvm/x86.c, msrs_to_save_base; Documentation/virt/kvm/api.rst 4.68 (KVM_REG_GUEST_SSP);
    Linux 6.18.
    """
    guest = stopped_inside(context)
    saved = shadow.capture(context, guest)
    equal("PL3_SSP inside", get_msr(guest.vcpu, Msr.PL3_SSP), boot.USER_SHADOW_STACK_TOP - 8 * DEPTH)
    equal("PL0_SSP inside", get_msr(guest.vcpu, Msr.PL0_SSP), boot.KERNEL_SHADOW_STACK_TOKEN)
    copy = shadow.twin(context, guest)
    shadow.restore(copy.vcpu, saved)
    again = shadow.capture(context, copy)
    no_difference("the copied state", state.compare(saved[0], again[0]))
    equal("the copied SSP", again[1], saved[1])
    goes_on(context, copy, "the copy")
    equal("returns of the copy", copy.mailbox.values[0], DEPTH)


@clause("cet.state-each-needed", arch="x86", needs=(SHSTK, XSAVES))
def each_register_needed(context: Context) -> None:
    """Restored without U_CET, S_CET, PL3_SSP, SSP or IA32_XSS, each alone, the guest faults where it needs that.

    So a VMM that saves four of the five breaks a guest, and this says which one was missing.

    Source: Intel SDM volume 1, 17.2, 13.12; arch/x86/kvm/x86.c, msrs_to_save_base; Linux 6.18.
    """
    guest = stopped_inside(context)
    saved = shadow.capture(context, guest)
    for register, (vector, place) in _NEEDED_BY.items():
        copy = shadow.twin(context, guest)
        shadow.restore(copy.vcpu, saved, omit=register)
        fault = _outcome(context, copy, f"the guest restored without {register}")
        context.note(f"without {register}: {fault}")
        if isinstance(fault, Fault):
            equal(f"the fault without {register}", fault.name, vector)
            equal(f"RIP of the fault without {register}", fault.rip, copy.payload.symbol(place))
        else:
            # Without a supervisor SSP no exception can be delivered either.
            equal(f"the exit without {register}", (register, fault), ("SSP", Shutdown()))
    shadow.restore(guest.vcpu, saved)
    goes_on(context, guest, "the guest itself")


def _outcome(context: Context, guest: Guest, what: str) -> Fault | Exit:
    """Run a guest that cannot end well, and return its fault or exit."""
    try:
        guest.finish(guest.resume(context.timeout), what)
    except GuestError as error:
        if isinstance(error.exit, Deadline | InternalError):
            raise
        return error.exit
    raise Violation(what, "a fault", "none")


@clause("cet.xsaves-carries-user-state", arch="x86", needs=(XSAVES, SHSTK))
def xsaves_carries_user_state(context: Context) -> None:
    """The guest's XSAVES puts U_CET and PL3_SSP into component 11, and XRSTORS brings them back for the host to read.

    Source: Intel SDM volume 1, 13.5.9; arch/x86/kvm/x86.c, kvm_access_xstate_msr; Linux 6.18.
    """
    guest = shadow_guest(context, user=0)
    set_up_msr(guest.vcpu, Msr.U_CET, WRITABLE_STACKS)
    set_up_msr(guest.vcpu, Msr.PL3_SSP, 0x123450)
    guest.memory.write(guest.payload.symbol("area"), bytes(16384))
    shadow.call(context, guest, "xsaves", 1 << _CET_U)
    stored = guest.memory.read(guest.payload.symbol("area") + 576, 16)
    equal("component 11 (U_CET, PL3_SSP)", struct.unpack("<2Q", stored), (WRITABLE_STACKS, 0x123450))
    set_up_msr(guest.vcpu, Msr.U_CET, 0)
    set_up_msr(guest.vcpu, Msr.PL3_SSP, 0)
    shadow.call(context, guest, "xrstors", 1 << _CET_U)
    equal("faults of XRSTORS", guest.mailbox.read("values", 15), 0)
    seen = (get_msr(guest.vcpu, Msr.U_CET), get_msr(guest.vcpu, Msr.PL3_SSP))
    equal("U_CET and PL3_SSP for the host", seen, (WRITABLE_STACKS, 0x123450))


@clause("cet.s-cet-not-xstate", arch="x86", needs=(XSAVES, SHSTK))
def supervisor_registers_not_xstate(context: Context) -> None:
    """XRSTORS of component 12 with its bit clear resets PL0 to PL2_SSP and leaves S_CET and INT_SSP_TAB alone.

    Source: Intel SDM volume 1, 13.5.9; arch/x86/kvm/vmx/vmx.c (S_CET is in the VMCS); Linux 6.18.
    """
    guest = shadow_guest(context, user=0)
    kept = {Msr.S_CET: 2, Msr.INT_SSP_TAB: 0x5000}
    for msr, value in {**kept, Msr.PL0_SSP: 0x1000, Msr.PL1_SSP: 0x2000, Msr.PL2_SSP: 0x3000}.items():
        set_up_msr(guest.vcpu, msr, value)
    area = bytearray(16384)
    area[520:528] = (1 << 63 | 1 << _CET_S).to_bytes(8, "little")
    guest.memory.write(guest.payload.symbol("area"), bytes(area))
    shadow.call(context, guest, "xrstors", 1 << _CET_S)
    equal("faults of XRSTORS", guest.mailbox.read("values", 15), 0)
    for msr, value in kept.items():
        equal(name(msr), get_msr(guest.vcpu, msr), value)
    for msr in (Msr.PL0_SSP, Msr.PL1_SSP, Msr.PL2_SSP):
        equal(name(msr), get_msr(guest.vcpu, msr), 0)


@clause("cet.xsaves-intercept", arch="x86", needs=(XSAVES, SHSTK))
def xsaves_not_offered(context: Context) -> None:
    """A guest whose CPUID lacks XSAVES takes #UD for it on Intel; on AMD it executes, with IA32_XSS 0.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_adjust_secondary_exec_control; arch/x86/kvm/svm/svm.c,
    svm_vcpu_after_set_cpuid; Linux 6.18.
    """
    if context.host.backend not in ("kvm_intel", "kvm_amd"):
        context.skip(f"the back end is {context.host.backend}, which is neither Intel's nor AMD's")
    table = context.host.facts.cpuid
    leaf = table.get(0xD, 1)
    table = table.edit(0xD, 1, eax=leaf.eax & ~(1 << 3), ecx=0)
    leaf7 = table.get(7)
    table = table.edit(7, 0, ecx=leaf7.ecx & ~(1 << 7), edx=leaf7.edx & ~(1 << 20))
    guest = context.own(Guest(context.kvm, "cet", cpuid=table, cr4=CR4_OSXSAVE))
    set_xcr0(guest.vcpu, untiled_features(context))
    shadow.call(context, guest, "xsaves", 1)
    faults = guest.mailbox.read("values", 15)
    if context.host.backend == "kvm_intel":
        equal("faults of XSAVES", faults, 1)
        equal("the fault of XSAVES", guest.fault().name, "#UD")
    else:
        equal("faults of XSAVES", faults, 0)
        equal("XCOMP_BV of XSAVES", guest.memory.read(guest.payload.symbol("area") + 520, 8)[:2], b"\1\0")
