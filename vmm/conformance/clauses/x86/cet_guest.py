# SPDX-License-Identifier: Apache-2.0
"""CET in the guest: shadow stacks and indirect branch tracking at work, over exits and INIT."""

from __future__ import annotations

import struct

from vmm.conformance.context import Context
from vmm.conformance.expect import Violation, equal, judged, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86 import shadow
from vmm.conformance.x86.apic import INIT_BY_MESSAGE, send_init, with_local_apics
from vmm.conformance.x86.common import untiled_features
from vmm.conformance.x86.shadow import (
    DEPTH,
    ENDBR_EN,
    IBT,
    SHSTK,
    WRITABLE_STACKS,
    set_up_msr,
    shadow_guest,
    ssp,
    tracking_guest,
)
from vmm.kvm.exits import Budget, FailEntry
from vmm.kvm.ioctl import KvmError
from vmm.x86 import boot, cpuid
from vmm.x86.guest import DONE, Fault, Guest, GuestError
from vmm.x86.msr import get_msr, name, set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_sregs, get_xcr0, set_sregs, set_xcr0

_CP = 21
_WP = 1 << 16


def _ends(context: Context, guest: Guest, what: str, entry: str, *parameters: int) -> None:
    """Run an entry at CPL3 that has to end without a fault."""
    equal(what, succeeds(what, shadow.call, context, guest, entry, *parameters, privilege=3), DONE)


def _fault_of(context: Context, guest: Guest, entry: str, *parameters: int) -> Fault:
    """Run an entry at CPL3 that has to fault, and return the fault."""
    try:
        shadow.call(context, guest, entry, *parameters, privilege=3)
    except GuestError as error:
        if isinstance(error.exit, Fault):
            return error.exit
        raise
    raise Violation(f"the guest in {entry}", "a fault", "none")


@clause("cet.shadow-stack-calls", arch="x86", needs=(SHSTK,))
def calls_and_returns(context: Context) -> None:
    """With a user shadow stack nested calls return, the return addresses are on it, and SSP ends where it began.

    Source: Intel SDM volume 1, 17.2; arch/x86/kvm/vmx/vmx.c (GUEST_SSP); Linux 6.18.
    """
    guest = shadow_guest(context)
    top = boot.USER_SHADOW_STACK_TOP
    guest.prepare("descend", DEPTH, privilege=3)
    equal("the exit at the bottom", guest.resume(context.timeout, ticks=1), Budget(1))
    equal("SSP at the bottom", ssp(guest.vcpu), top - 8 * DEPTH)
    entries = struct.unpack(f"<{DEPTH}Q", guest.memory.read(top - 8 * DEPTH, 8 * DEPTH))
    low, high = guest.payload.symbol("descend"), guest.payload.symbol("smash")
    true("return addresses on the shadow stack", all(low < entry < high for entry in entries), entries, "in descend")
    guest.vcpu.complete()
    with judged("the returns", "an end without a fault"):
        guest.finish(guest.resume(context.timeout), "the guest that returns")
    equal("returns", guest.mailbox.values[0], DEPTH)
    equal("SSP at the end", ssp(guest.vcpu), top)


@clause("cet.shadow-stack-cp", arch="x86", needs=(SHSTK,))
def changed_return_address(context: Context) -> None:
    """A return to an address that was changed on the stack is #CP with error code 1, at the RET.

    Source: Intel SDM volume 3, 7.15 (#CP); volume 1, 17.2; Linux 6.18.
    """
    guest = shadow_guest(context)
    fault = _fault_of(context, guest, "smash")
    equal("vector and error code", (fault.vector, fault.error), (_CP, 1))
    equal("RIP", fault.rip, guest.payload.symbol("at_smash"))
    plain = shadow_guest(context, user=0)
    _ends(context, plain, "the same without a shadow stack", "smash")


@clause("cet.branch-tracking-cp", arch="x86", needs=(IBT,))
def indirect_branches(context: Context) -> None:
    """With tracking an indirect jump has to land on ENDBR64, else it is #CP with error code 3 at the target.

    Source: Intel SDM volume 1, 17.3; volume 3, 7.15; Linux 6.18.
    """
    guest = tracking_guest(context, user=ENDBR_EN)
    good, bad = guest.payload.symbol("with_endbr"), guest.payload.symbol("without_endbr")
    _ends(context, guest, "a jump to ENDBR64", "branch", good)
    fault = _fault_of(context, guest, "branch", bad)
    equal("vector and error code", (fault.vector, fault.error), (_CP, 3))
    equal("RIP", fault.rip, bad)
    plain = tracking_guest(context, user=0)
    _ends(context, plain, "the same without tracking", "branch", bad)


@clause("cet.survives-exits", arch="x86", needs=(SHSTK,))
def survives_exits(context: Context) -> None:
    """The CET registers keep their values over exits and runs of the guest.

    Source: arch/x86/kvm/x86.c, kvm_load_guest_fpu (U_CET and PLn_SSP are xstate); arch/x86/kvm/vmx/vmx.c (S_CET);
    Linux 6.18.
    """
    guest = shadow_guest(context)
    values = {Msr.PL0_SSP: 0x201000, Msr.PL1_SSP: 0x1000, Msr.PL2_SSP: 0x2000, Msr.INT_SSP_TAB: 0x3000, Msr.S_CET: 2}
    for msr, value in values.items():
        set_up_msr(guest.vcpu, msr, value)
    for _ in range(3):
        _ends(context, guest, "the guest's nested calls", "descend", 3)
        for msr, value in {**values, Msr.U_CET: WRITABLE_STACKS}.items():
            equal(name(msr), get_msr(guest.vcpu, msr), value)
        equal("SSP", ssp(guest.vcpu), boot.USER_SHADOW_STACK_TOP)


@clause("cet.guest-host-agree", arch="x86", needs=(SHSTK,))
def guest_and_host_agree(context: Context) -> None:
    """What the guest writes to a CET register the host reads, and the other way round; wrong values are #GP.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_recalc_msr_intercepts; arch/x86/kvm/x86.c, kvm_is_valid_u_s_cet; Linux 6.18.
    """
    guest = shadow_guest(context, user=0)
    # Without IBT, as on AMD, U_CET has the two bits of shadow stacks.
    user = 0x3D if guest.cpuid.has("IBT") else 3
    good = {Msr.U_CET: user, Msr.S_CET: 2, Msr.PL3_SSP: 0x1230, Msr.PL2_SSP: 0x2340, Msr.PL1_SSP: 0x3450,
            Msr.PL0_SSP: 0x4560, Msr.INT_SSP_TAB: 0x7890}  # fmt: skip
    for msr, value in good.items():
        shadow.call(context, guest, "wrmsr", msr, value)
        equal(f"faults of WRMSR {name(msr)}", guest.mailbox.read("values", 15), 0)
        equal(f"{name(msr)} for the host", get_msr(guest.vcpu, msr), value)
        other = 1 if msr in (Msr.U_CET, Msr.S_CET) else value & ~0xFF
        equal(f"{name(msr)} = {other:#x} accepted", set_msr(guest.vcpu, msr, other), True)
        shadow.call(context, guest, "rdmsr", msr)
        equal(f"{name(msr)} in the guest", guest.mailbox.values[0], other)
        equal(f"{name(msr)} = 0 accepted", set_msr(guest.vcpu, msr, 0), True)
    for msr, value in {Msr.U_CET: 1 << 6, Msr.S_CET: 1 << 9, Msr.PL3_SSP: 1, Msr.PL0_SSP: 1 << 63}.items():
        shadow.call(context, guest, "wrmsr", msr, value)
        equal(f"faults of WRMSR {name(msr)} {value:#x}", guest.mailbox.read("values", 15), 1)
        equal(f"the fault of WRMSR {name(msr)} {value:#x}", guest.fault().name, "#GP")
        equal(f"{name(msr)} after the fault", get_msr(guest.vcpu, msr), 0)


@clause("cet.ssp-not-a-guest-msr", arch="x86", needs=(SHSTK,))
def internal_number(context: Context) -> None:
    """KVM's internal number for SSP is not an MSR of the guest's: RDMSR and WRMSR of it are #GP.

    Source: arch/x86/kvm/x86.c, MSR_KVM_INTERNAL_GUEST_SSP; Linux 6.18.
    """
    guest = shadow_guest(context, user=0)
    for entry in ("rdmsr", "wrmsr"):
        shadow.call(context, guest, entry, 0x4B564DFF, 0x1000)
        equal(f"faults of {entry}", guest.mailbox.read("values", 15), 1)
        equal(f"the fault of {entry}", guest.fault().name, "#GP")
        equal(f"SSP after {entry}", ssp(guest.vcpu), boot.USER_SHADOW_STACK_TOP)


@clause("cet.cr4-wp", arch="x86", needs=(SHSTK,))
def needs_write_protect(context: Context) -> None:
    """Setting CR4.CET while CR0.WP is 0, and clearing CR0.WP while CR4.CET is 1, are #GP.

    Source: arch/x86/kvm/x86.c, kvm_set_cr4, kvm_set_cr0; Intel SDM volume 3, 2.5; Linux 6.18.
    """
    guest = shadow_guest(context, user=0)
    cr4 = boot.enter(guest.vcpu, privilege=0, cr4=guest.cr4).cr4
    shadow.call(context, guest, "write_cr0", boot.CR0 & ~_WP)
    equal("faults of clearing CR0.WP with CR4.CET", guest.mailbox.read("values", 15), 1)
    equal("the fault", guest.fault().name, "#GP")
    equal("CR0.WP afterwards", get_sregs(guest.vcpu).cr0 & _WP, _WP)
    guest.prepare("write_cr4", cr4)
    boot.enter(guest.vcpu, privilege=0, cr4=guest.cr4 & ~boot.CR4_CET, cr0=boot.CR0 & ~_WP)
    guest.finish(guest.resume(context.timeout), "MOV to CR4")
    equal("faults of setting CR4.CET without CR0.WP", guest.mailbox.read("values", 15), 1)
    equal("the fault", guest.fault().name, "#GP")
    equal("CR4.CET afterwards", get_sregs(guest.vcpu).cr4 & boot.CR4_CET, 0)


@clause("cet.sregs-wp-hole", arch="x86", needs=(SHSTK,), info=True)
def contradiction_by_sregs(context: Context) -> None:
    """Whether KVM_SET_SREGS takes CR4.CET together with CR0.WP 0, which no guest can reach by itself.

    Source: arch/x86/kvm/x86.c, kvm_is_valid_sregs (CR0 and CR4 are looked at one by one); Linux 6.18.
    """
    guest = shadow_guest(context, user=0)
    guest.prepare("_start")
    sregs = get_sregs(guest.vcpu)
    sregs.cr0 &= ~_WP
    try:
        set_sregs(guest.vcpu, sregs)
    except KvmError as error:
        context.note(f"refused with {error.errno_name}")
        return
    exit = guest.resume(context.timeout)
    shown = f"FailEntry({exit.reason:#x})" if isinstance(exit, FailEntry) else str(exit)
    context.note(f"accepted; the run ends with {shown}")


@clause("cet.init", arch="x86", needs=(SHSTK, *INIT_BY_MESSAGE))
def init_clears(context: Context) -> None:
    """INIT clears every CET register and SSP, and leaves XCR0 and IA32_XSS.

    Source: arch/x86/kvm/x86.c, kvm_xstate_reset; arch/x86/kvm/vmx/vmx.c, vmx_vcpu_reset; Linux 6.18.
    """
    vm = with_local_apics(context.vm())
    vm.create_vcpu(0)
    second = vm.create_vcpu(1)
    table = context.host.facts.cpuid
    cpuid.set_cpuid(second, table)
    registers = {Msr.U_CET: 1, Msr.S_CET: 1, Msr.PL0_SSP: 0x1000, Msr.PL1_SSP: 0x2000, Msr.PL2_SSP: 0x3000,
                 Msr.PL3_SSP: 0x4000, Msr.INT_SSP_TAB: 0x5000}  # fmt: skip
    set_xcr0(second, untiled_features(context))
    for msr, value in {**registers, Msr.XSS: table.xss & shadow.CET}.items():
        set_up_msr(second, msr, value)
    shadow.set_ssp(second, 0x6000)
    send_init(vm, second)
    for msr in registers:
        equal(f"{name(msr)} after INIT", get_msr(second, msr), 0)
    equal("SSP after INIT", ssp(second), 0)
    equal("XCR0 after INIT", get_xcr0(second), untiled_features(context))
    equal("IA32_XSS after INIT", get_msr(second, Msr.XSS), table.xss & shadow.CET)
