# SPDX-License-Identifier: Apache-2.0
"""The closed world: every MSR of KVM's list, and every register of KVM_GET_REG_LIST."""

from __future__ import annotations

from vmm.conformance.world.generate import generate, generate_one
from vmm.conformance.x86.world import GROUND, MSR_GROUND
from vmm.conformance.x86.world_msrs import READS, REFUSED, WRITES, reads, refused, writes
from vmm.state.x86.world.msrs import MSRS, ONE_REGS, XFD

_LISTED = "Documentation/virt/kvm/api.rst, 4.3, 4.18, 4.19"
_GUEST = "arch/x86/kvm/x86.c, kvm_emulate_rdmsr, kvm_emulate_wrmsr; what each MSR's row names"

for table in (MSRS, XFD):
    generate(__name__, MSR_GROUND, table, _LISTED, ("fresh", "kept", "moved"))
    generate_one(__name__, MSR_GROUND, table, _LISTED, ("refused", refused, REFUSED))
    generate_one(__name__, MSR_GROUND, table, _GUEST, ("guest-reads", reads, READS))
    generate_one(__name__, MSR_GROUND, table, _GUEST, ("guest-writes", writes, WRITES))
generate(
    __name__, GROUND, ONE_REGS, "Documentation/virt/kvm/api.rst, 4.68, KVM_GET_REG_LIST",
    ("fresh", "kept", "refused", "moved"),
)  # fmt: skip
