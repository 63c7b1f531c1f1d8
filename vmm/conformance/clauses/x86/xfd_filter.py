# SPDX-License-Identifier: Apache-2.0
"""MSR filters against IA32_XFD, which KVM passes through to the CPU once the guest has used it, and IA32_XFD_ERR."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import TILE_GUESTS, TILEDATA, permit_tiles, tile_table
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
from vmm.x86.guest import Guest
from vmm.x86.msr_names import Msr

_BIT = 1 << TILEDATA


@clause("xfd.msr-filter", arch="x86", needs=(*TILE_GUESTS, FILTER, FORWARD))
def filtered(context: Context) -> None:
    """A filter set after the guest's first write of IA32_XFD denies or forwards reads and writes of it and XFD_ERR.

    Source: arch/x86/kvm/x86.c, kvm_msr_allowed; arch/x86/kvm/vmx/vmx.c, vmx_recalc_msr_intercepts (in older kernels
    vmx_msr_filter_changed).
    """
    permit_tiles(context)
    guest = context.own(Guest(context.kvm, "hello", cpuid=tile_table(context)))
    for msr in (Msr.XFD, Msr.XFD_ERR):
        let_through(context, guest, msr, _BIT)
    succeeds("the filter", set_filter, guest.vm, [Range(Msr.XFD, 2)])
    for msr in (Msr.XFD, Msr.XFD_ERR):
        denied(context, guest, msr, 0)
    forward(guest.vm)
    for msr in (Msr.XFD, Msr.XFD_ERR):
        forwarded(context, guest, msr, 0)
    succeeds("the filter without ranges", allow_all, guest.vm)
    for msr in (Msr.XFD, Msr.XFD_ERR):
        let_through(context, guest, msr, 0)
