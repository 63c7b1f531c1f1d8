# SPDX-License-Identifier: Apache-2.0
"""The closed world: every MSR of KVM's list and those beside it, and every register of KVM_GET_REG_LIST."""

from __future__ import annotations

from collections.abc import Sequence

from vmm.conformance.needs import capability, kernel
from vmm.conformance.world.generate import Property, generate, generate_one
from vmm.conformance.world.ground import Ground
from vmm.conformance.x86.common import TILE_GUESTS
from vmm.conformance.x86.world import DEVICE_GROUND, GROUND, HYPERV_GROUND, MSR_GROUND
from vmm.conformance.x86.world_msrs import (
    FROZEN,
    KEPT,
    READS,
    REFUSED,
    SHOWN,
    WRITES,
    frozen,
    kept,
    reads,
    refused,
    shown,
    writes,
)
from vmm.state.world.table import Table
from vmm.state.x86.world.msrs import MSRS, ONE_REGS, XFD
from vmm.state.x86.world.msrs_unlisted import HYPERV, UNLISTED

_LISTED = "Documentation/virt/kvm/api.rst, 4.3, 4.18, 4.19"
_GUEST = "arch/x86/kvm/x86.c, kvm_emulate_rdmsr, kvm_emulate_wrmsr; what each MSR's row names"
_REGISTER = "Documentation/virt/kvm/api.rst, 4.68, 4.69; arch/x86/kvm/x86.c, kvm_get_one_msr, kvm_set_one_msr"
_MSRS: Sequence[tuple[str, Property, str]] = (
    ("kept", kept, KEPT), ("refused", refused, REFUSED), ("guest-reads", reads, READS),
    ("guest-writes", writes, WRITES),
)  # fmt: skip


def _generate(ground: Ground, table: Table) -> None:
    generate(__name__, ground, table, _LISTED, ("fresh",))
    for what in _MSRS:
        generate_one(__name__, ground, table, _GUEST if what[0].startswith("guest") else _LISTED, what)
    generate_one(__name__, ground, table, _REGISTER, ("shown", shown, SHOWN), (capability("KVM_CAP_ONE_REG"),))


_generate(MSR_GROUND, MSRS)
_generate(DEVICE_GROUND, UNLISTED)
generate_one(
    __name__, MSR_GROUND, MSRS, "arch/x86/kvm/x86.c, do_set_msr, kvm_is_immutable_feature_msr; Linux 6.4",
    ("frozen", frozen, FROZEN), (kernel("6.4"),),
)  # fmt: skip
# All else of XFD's two is judged with the unlisted ones, in which they are too.
# Without XSAVE KVM gives XCRS and does not take them back.
generate(__name__, MSR_GROUND, MSRS, _LISTED, ("moved",))
generate(__name__, MSR_GROUND, XFD, _LISTED, ("moved",), TILE_GUESTS)
for what in _MSRS[2:]:
    generate_one(__name__, HYPERV_GROUND, HYPERV, f"{_GUEST}; Hyper-V TLFS, chapter 2", what)
generate(
    __name__, GROUND, ONE_REGS, "Documentation/virt/kvm/api.rst, 4.68, KVM_GET_REG_LIST",
    ("fresh", "kept", "refused", "moved"),
)  # fmt: skip
