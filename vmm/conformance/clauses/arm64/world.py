# SPDX-License-Identifier: Apache-2.0
"""The closed world: every register of KVM_GET_REG_LIST, pending events and the MP state of an arm64 vCPU.

Pieces share clauses, because a new process and a new VM for each would take most of the time.
"""

from __future__ import annotations

from vmm.conformance.arm64.world import GROUND, PLAIN
from vmm.conformance.world.generate import generate
from vmm.state.arm64.world.core import FPSIMD
from vmm.state.arm64.world.identity import IDREGS
from vmm.state.arm64.world.tables import FIRM, REGISTERS

_ONE_REG = "Documentation/virt/kvm/api.rst, 4.68, 4.69, 4.82"
_EVENTS = "Documentation/virt/kvm/api.rst, 4.31, 4.32, 4.38, 4.39"
_ALL = ("fresh", "kept", "refused", "moved", "reset")

generate(__name__, GROUND, REGISTERS, _ONE_REG, _ALL, timeout=60)
generate(__name__, GROUND, IDREGS, _ONE_REG, _ALL, timeout=60)
generate(__name__, GROUND, FIRM, f"{_ONE_REG}, {_EVENTS}", _ALL, timeout=60)
generate(__name__, PLAIN, FPSIMD, _ONE_REG, ("fresh", "kept", "moved", "reset"), timeout=60)
