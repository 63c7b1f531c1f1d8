# SPDX-License-Identifier: Apache-2.0
"""The closed world: what one call writes is what every other call shows, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmm.conformance.needs import Need, capability
from vmm.conformance.world.generate import generate_one
from vmm.conformance.world.ground import Ground
from vmm.conformance.world.properties_views import STATEMENT, View, shown
from vmm.conformance.x86.apic import LOCAL_APICS
from vmm.conformance.x86.common import AREA, offers
from vmm.conformance.x86.smm import SMM as HAS_SMM
from vmm.conformance.x86.views import call, injected, interrupt_command, kvm_run, msrs, sync
from vmm.conformance.x86.world import GROUND, WITH_VECTORS, X2APIC
from vmm.state.world.table import Table
from vmm.state.x86.world.events import EVENTS, SMM
from vmm.state.x86.world.lapic import LAPIC, LAPIC_X2, X2_ICR, X2_READ, X2_WRITTEN
from vmm.state.x86.world.modes import SREGS, SREGS_1, SREGS_LONG
from vmm.state.x86.world.registers import REGS
from vmm.state.x86.world.vectors import FPU, LEGACY, XSAVE
from vmm.x86.msr_names import Msr
from vmm.x86.sync import Sync

_SYNC = capability("KVM_CAP_SYNC_REGS")
_RUN = "Documentation/virt/kvm/api.rst, 5 (struct kvm_run), 6.74 KVM_CAP_SYNC_REGS; arch/x86/kvm/x86.c, store_regs"
_MSRS = {"efer": Msr.EFER, "apic_base": Msr.APIC_BASE}
_SEGMENT_MSRS = {"fs.base": Msr.FS_BASE, "gs.base": Msr.GS_BASE}


def _shown(table: Table, views: Sequence[View], source: str, needs: Iterable[Need], ground: Ground = GROUND) -> None:
    generate_one(__name__, ground, table, source, ("shown", shown(views), STATEMENT), needs)


_shown(REGS, [sync(Sync.REGS), kvm_run(if_flag="rflags")], _RUN, (_SYNC,))
_shown(
    SREGS,
    [
        call(SREGS_1, lambda field: None if field.startswith(("flags", "pdptrs")) else field),
        sync(Sync.SREGS, "flags", "pdptrs"),
        kvm_run(cr8="cr8", apic_base="apic_base"),
        msrs(_MSRS),
        msrs(_SEGMENT_MSRS, written=False),
        call(LAPIC, {"cr8": "TPR"}.get, lambda value: value << 4),
    ],
    f"{_RUN}; arch/x86/kvm/x86.c, __get_sregs, kvm_get_msr_common (regs.c, msrs.c in 7.2)",
    (capability("KVM_CAP_SREGS2"), _SYNC, LOCAL_APICS),
)
# Without unrestricted guests KVM has the segments of real mode aside, and their MSRs do not reach them.
_shown(
    SREGS_LONG,
    [msrs(_MSRS | _SEGMENT_MSRS), call(SREGS_1, lambda field: None if field == "flags" else field)],
    "arch/x86/kvm/x86.c, __get_sregs, kvm_get_msr_common (regs.c, msrs.c in 7.2); vmx/vmx.c, vmx_set_msr",
    (capability("KVM_CAP_SREGS2"), offers("LM")),
)
_shown(EVENTS, [sync(Sync.EVENTS), injected(SREGS_1)], _RUN, (_SYNC,))
_shown(SMM, [sync(Sync.EVENTS), kvm_run(flags="smi.smm")], _RUN, (_SYNC, HAS_SMM, LOCAL_APICS))
_shown(
    FPU,
    [call(XSAVE, LEGACY.get)],
    "arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_get_fpu, kvm_vcpu_ioctl_x86_get_xsave2 (one fpstate)",
    AREA,
    WITH_VECTORS,
)
_shown(
    LAPIC_X2,
    [msrs(X2_READ, written=False), msrs(X2_WRITTEN), interrupt_command(X2_ICR)],
    "arch/x86/kvm/lapic.c, kvm_x2apic_msr_read, kvm_x2apic_msr_write; Intel SDM volume 3, table 11-6",
    (LOCAL_APICS,),
    X2APIC,
)
