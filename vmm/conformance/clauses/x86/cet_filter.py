# SPDX-License-Identifier: Apache-2.0
"""MSR filters against CET registers, which KVM passes through to the CPU where no filter says otherwise."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86.msr_filter import (
    FILTER,
    FORWARD,
    Range,
    allow_all,
    denied,
    forward,
    forwarded,
    let_through,
    set_filter,
)
from vmm.conformance.x86.shadow import SHSTK, shadow_guest
from vmm.x86.msr_names import Msr

_VALUES = {Msr.U_CET: 2, Msr.S_CET: 2, Msr.PL0_SSP: 0x1000, Msr.PL3_SSP: 0x4000}


@clause("cet.msr-filter", arch="x86", needs=(SHSTK, FILTER, FORWARD))
def filtered(context: Context) -> None:
    """A filter that is set when a guest uses its CET registers denies or forwards each read and write until it ends.

    Source: arch/x86/kvm/x86.c, kvm_msr_allowed; arch/x86/kvm/vmx/vmx.c, vmx_recalc_msr_intercepts;
    arch/x86/kvm/svm/svm.c, svm_recalc_msr_intercepts; Linux 6.18.
    """
    guest = shadow_guest(context, user=0)
    for msr, value in _VALUES.items():
        let_through(context, guest, msr, value)
    ranges = [Range(msr) for msr in _VALUES]
    succeeds("the filter", set_filter, guest.vm, ranges)
    for msr in _VALUES:
        denied(context, guest, msr, 0)
    forward(guest.vm)
    for msr in (Msr.U_CET, Msr.PL0_SSP):
        forwarded(context, guest, msr, 0)
    succeeds("the filter without ranges", allow_all, guest.vm)
    for msr in _VALUES:
        let_through(context, guest, msr, 0)
