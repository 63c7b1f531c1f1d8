# SPDX-License-Identifier: Apache-2.0
"""The closed world: every register of KVM_GET_REG_LIST, pending events and the MP state of an arm64 vCPU."""

from __future__ import annotations

from vmm.conformance.arm64.common import SVE
from vmm.conformance.arm64.world import GROUND, PLAIN
from vmm.conformance.needs import capability
from vmm.conformance.world.generate import generate
from vmm.state.arm64.world.core import CORE, FPSIMD, VECTORS
from vmm.state.arm64.world.firmware import CACHES, FIRMWARE
from vmm.state.arm64.world.identity import IDREGS
from vmm.state.arm64.world.run import EVENTS, MP_STATE, VLS
from vmm.state.arm64.world.sysregs import COUNTERS, SYSREGS

_ONE_REG = "Documentation/virt/kvm/api.rst, 4.68, 4.69, 4.82"
_ALL = ("fresh", "kept", "refused", "moved", "reset")

for table in (CORE, SYSREGS, IDREGS, FIRMWARE, CACHES):
    generate(__name__, GROUND, table, _ONE_REG, _ALL)
generate(__name__, GROUND, COUNTERS, _ONE_REG, ("fresh", "kept", "moved", "reset"))
generate(__name__, GROUND, VECTORS, _ONE_REG, ("fresh", "kept", "moved", "reset"), (SVE,))
generate(__name__, PLAIN, FPSIMD, _ONE_REG, ("fresh", "kept", "moved", "reset"))
generate(__name__, GROUND, VLS, _ONE_REG, ("fresh", "refused", "reset"), (SVE,))
generate(
    __name__, GROUND, EVENTS, "Documentation/virt/kvm/api.rst, 4.31, 4.32", _ALL, (capability("KVM_CAP_VCPU_EVENTS"),)
)  # fmt: skip
generate(
    __name__, GROUND, MP_STATE, "Documentation/virt/kvm/api.rst, 4.38, 4.39", _ALL, (capability("KVM_CAP_MP_STATE"),)
)  # fmt: skip
