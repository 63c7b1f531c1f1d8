# SPDX-License-Identifier: Apache-2.0
"""The closed world: every field of FPU, of XSAVE and of XCRS."""

from __future__ import annotations

from vmm.conformance.world.generate import generate
from vmm.conformance.x86.common import AREA, GUEST_XSAVE
from vmm.conformance.x86.world import GROUND
from vmm.state.x86.world.vectors import FPU, XCRS, XSAVE

generate(__name__, GROUND, FPU, "Documentation/virt/kvm/api.rst, 4.22, 4.23", ("fresh", "kept"))
generate(
    __name__, GROUND, XSAVE, "Documentation/virt/kvm/api.rst, 4.42, 4.43, KVM_GET_XSAVE2",
    ("fresh", "kept", "refused", "moved"), AREA,
)  # fmt: skip
generate(
    __name__, GROUND, XCRS, "Documentation/virt/kvm/api.rst, 4.44, 4.45",
    ("fresh", "kept", "refused", "moved"), (GUEST_XSAVE,),
)  # fmt: skip
