# SPDX-License-Identifier: Apache-2.0
"""The closed world: every MSR of KVM's list, and every register of KVM_GET_REG_LIST."""

from __future__ import annotations

from vmm.conformance.world.generate import generate
from vmm.conformance.x86.world import GROUND
from vmm.state.x86.world.msrs import MSRS, ONE_REGS, XFD

_LISTED = "Documentation/virt/kvm/api.rst, 4.3, 4.18, 4.19"
generate(__name__, GROUND, MSRS, _LISTED, ("fresh", "kept", "refused", "moved"))
generate(__name__, GROUND, XFD, _LISTED, ("fresh", "kept", "refused", "moved"))
generate(
    __name__,
    GROUND,
    ONE_REGS,
    "Documentation/virt/kvm/api.rst, 4.68, KVM_GET_REG_LIST",
    ("fresh", "kept", "refused", "moved"),
)
