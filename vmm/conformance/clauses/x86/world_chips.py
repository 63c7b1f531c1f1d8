# SPDX-License-Identifier: Apache-2.0
"""The closed world: every field of the chips that a VM has in the kernel."""

from __future__ import annotations

from vmm.conformance.needs import capability
from vmm.conformance.world.generate import generate
from vmm.conformance.x86.world import WITH_CHIPS
from vmm.state.x86.world.chips import CHIPS

for table in CHIPS:
    generate(
        __name__, WITH_CHIPS, table, "Documentation/virt/kvm/api.rst, 4.24 to 4.29, 4.71, 4.72", ("fresh", "kept"),
        (capability("KVM_CAP_IRQCHIP"),),
    )  # fmt: skip
