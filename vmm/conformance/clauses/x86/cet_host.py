# SPDX-License-Identifier: Apache-2.0
"""CET guests and their host: the VMM's own shadow stack, no permission, and nothing of the guest's for ptrace."""

from __future__ import annotations

import errno

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import XCOMP, XCOMP_GUEST, configured
from vmm.conformance.x86.shadow import CET, DEPTH, ENDBR_EN, SH_STK_EN, SHSTK, set_up_msr, shadow_guest, ssp
from vmm.conformance.x86.traced import traced_area
from vmm.kvm.exits import IoOut
from vmm.kvm.ioctl import errno_name
from vmm.x86 import boot, permission
from vmm.x86.cpuid import supported
from vmm.x86.guest import DONE
from vmm.x86.msr import get_msr, name, set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.own_shadow import own_shadow_stack, run_with_shadow_stack
from vmm.x86.xfeature import XFeature

_VALUE = 0x1122334455667788
# The guest's PL3_SSP, in the register that the VMM's own SSP is kept in.
_GUESTS = 0x123450


@clause("cet.host-shadow-stack-intact", arch="x86", needs=(SHSTK,))
def host_shadow_stack(context: Context) -> None:
    """A VMM's thread with a user shadow stack has its SSP and may still write the stack after a CET guest has run.

    U_CET and PL3_SSP of the VMM and of the guest go through the same registers and the same component of XSAVE.

    Source: arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate; arch/x86/kvm/x86.c, kvm_load_guest_fpu;
    Documentation/arch/x86/shstk.rst; Linux 6.18.
    """
    error = own_shadow_stack()
    if error:
        context.skip(f"ARCH_SHSTK_ENABLE gives {errno_name(error)}, needs a user shadow stack for the VMM")
    # The guest's has no WR_SHSTK_EN, and tracks branches where it can, which the VMM does not.
    guest = shadow_guest(context, user=0)
    user = SH_STK_EN | ENDBR_EN * guest.cpuid.has("IBT")
    set_up_msr(guest.vcpu, Msr.U_CET, user)
    set_up_msr(guest.vcpu, Msr.PL3_SSP, _GUESTS)
    guest.prepare("descend", DEPTH, privilege=3)
    for step, port in (("to the bottom", "TICK_PORT_NUMBER"), ("to the end", "EVENT_PORT_NUMBER")):
        what = f"the run {step}"
        exit, own = succeeds(what, run_with_shadow_stack, guest.vcpu, _VALUE, context.timeout)
        true(f"the VMM's SSP before {what}", own.before != 0, own.before, "a shadow stack")
        equal(f"the VMM's SSP after {what}", own.after, own.before)
        equal(f"what WRSS wrote after {what}", own.read, _VALUE)
        left = isinstance(exit, IoOut) and exit.port == guest.payload.symbol(port)
        true(f"the exit of {what}", left, exit, "the payload's own OUT")
    equal("the guest's event", guest.event(exit), DONE)
    guest.vcpu.complete()
    equal("returns of the guest", guest.mailbox.values[0], DEPTH)
    for register, value in ((Msr.U_CET, user), (Msr.PL3_SSP, _GUESTS)):
        equal(f"{name(register)} of the guest", get_msr(guest.vcpu, register), value)
    equal("SSP of the guest", ssp(guest.vcpu), boot.USER_SHADOW_STACK_TOP)


@clause("cet.needs-no-permission", arch="x86", needs=(SHSTK, XCOMP_GUEST))
def needs_no_permission(context: Context) -> None:
    """A process that requested nothing offers and uses CET guests, and the CET components cannot be requested.

    Their space is there when a vCPU is made, unlike that of tiles.

    Source: arch/x86/kernel/fpu/core.c, fpu_alloc_guest_fpstate; arch/x86/kernel/fpu/xstate.c, xstate_request_perm
    (xstate_prctl_req), XFEATURE_MASK_GUEST_SUPERVISOR; Linux 6.18.
    """
    for component in (XFeature.CET_U, XFeature.CET_S):
        refused(f"a request for {component.name}", errno.EOPNOTSUPP, permission.request_guest, component)
    offered = supported(context.kvm).xss & CET
    equal("CET in CPUID 0xD.1", offered, CET)
    vcpu = configured(context)
    for msr, value in {Msr.XSS: CET, Msr.U_CET: SH_STK_EN, Msr.PL0_SSP: 0x1000, Msr.PL3_SSP: 0x4000}.items():
        equal(f"{name(msr)} = {value:#x} accepted", set_msr(vcpu, msr, value), True)
        equal(name(msr), get_msr(vcpu, msr), value)


@clause("cet.hidden-from-ptrace", arch="x86", needs=(SHSTK, XCOMP))
def hidden_from_ptrace(context: Context) -> None:
    """The VMM's XSAVE area in PTRACE_GETREGSET has the same bytes and components beside a CET guest as without one.

    Source: arch/x86/kernel/fpu/regset.c, xstateregs_get (the task's fpstate); arch/x86/kernel/fpu/xstate.c,
    XFEATURE_MASK_GUEST_SUPERVISOR (6.17 and later).
    """
    before = traced_area(context)
    guest = shadow_guest(context)
    for msr, value in {Msr.PL0_SSP: 0xABCD1230, Msr.PL1_SSP: 0xABCD2340, Msr.PL2_SSP: 0xABCD3450}.items():
        set_up_msr(guest.vcpu, msr, value)
    succeeds("the guest's calls", guest.call, "descend", DEPTH, privilege=3, timeout=context.timeout)
    after = traced_area(context)
    equal("bytes of the regset", len(after.data), len(before.data))
    # The components that the kernel says the frame and the regset have: uapi asm/sigcontext.h, struct _fpx_sw_bytes.
    equal("CET in the regset's components", int.from_bytes(after.software[:8], "little") & CET, 0)
    equal("the regset's components", after.software, before.software)
    equal("CET in XSTATE_BV", after.xstate_bv & CET, 0)
    for value in (0xABCD1230, 0xABCD2340, 0xABCD3450):
        equal(f"place of the guest's {value:#x}", after.data.find(value.to_bytes(8, "little")), -1)
