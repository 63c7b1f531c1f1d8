# SPDX-License-Identifier: Apache-2.0
"""RESET: what a new vCPU holds, and what makes a used one like it."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import GUEST_XSAVE, XSAVE2, configured, pattern, plain_features
from vmm.x86 import msr
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_regs, get_sregs, get_xcr0, set_regs, set_xcr0
from vmm.x86.xsave import set_xsave

_PAT_AT_RESET = 0x0007040600070406
_CD_NW = 0x60000000


@clause("reset.xcr0-xss-xfd", arch="x86", needs=(capability("KVM_CAP_XCRS"),))
def reset_values(context: Context) -> None:
    """A new vCPU has XCR0 1, IA32_XSS, IA32_XFD and IA32_XFD_ERR 0, IA32_PAT 0x0007040600070406, CR0.CD and NW set.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_reset; Intel SDM volume 3, table 11-1.
    """
    vcpu = configured(context)
    equal("XCR0", succeeds("XCR0 by KVM_GET_XCRS", get_xcr0, vcpu), 1)
    for index in (Msr.XSS, Msr.XFD, Msr.XFD_ERR):
        value = msr.try_get(vcpu, index)
        if value is None:
            context.note(f"{msr.name(index)} is not readable here")
        else:
            equal(msr.name(index), value, 0)
    equal("IA32_PAT", msr.get_msr(vcpu, Msr.PAT), _PAT_AT_RESET)
    sregs = get_sregs(vcpu)
    equal("CR0", sregs.cr0, _CD_NW | 0x10)
    equal("CR4", sregs.cr4, 0)
    equal("EFER", sregs.efer, 0)


@clause("reset.by-writing-back", arch="x86", needs=(GUEST_XSAVE, XSAVE2))
def reset_by_writing_back(context: Context) -> None:
    """A used vCPU to which a fresh one's state is written is in every saved register like a fresh one.

    KVM has no ioctl to reset a vCPU, so this is how a VMM that keeps its fds does it.

    Source: Documentation/virt/kvm/api.rst, 4 (no such ioctl); arch/x86/kvm/x86.c, kvm_vcpu_reset.
    """
    msrs = state.saved_msrs(context.kvm)
    fresh = state.capture(configured(context), msrs)
    vcpu = configured(context)
    set_xcr0(vcpu, plain_features(context))
    set_xsave(vcpu, pattern(plain_features(context), 31))
    msr.set_msr(vcpu, Msr.PAT, 0x0006060606060606)
    regs = get_regs(vcpu)
    regs.rbx = 0x5A5A
    set_regs(vcpu, regs)
    changed = state.compare(fresh, state.capture(vcpu, msrs))
    equal(
        "pieces changed before the reset",
        {line.split(":")[0] for line in changed},
        {"REGS", "XCRS", "XSAVE", "MSRS"},
    )
    with judged("writing the fresh vCPU's state"):
        state.restore(vcpu, fresh)
    no_difference("the vCPU after the reset", state.compare(fresh, state.capture(vcpu, msrs)))
