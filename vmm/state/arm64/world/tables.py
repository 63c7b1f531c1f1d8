# SPDX-License-Identifier: Apache-2.0
"""All tables of an arm64 vCPU, and which of them are judged together."""

from __future__ import annotations

from vmm.state.arm64.world.core import CORE, FPSIMD, VECTORS
from vmm.state.arm64.world.firmware import CACHES, FIRMWARE
from vmm.state.arm64.world.identity import IDREGS
from vmm.state.arm64.world.run import EVENTS, MP_STATE, VLS
from vmm.state.arm64.world.sysregs import COUNTERS, SYSREGS
from vmm.state.world.joined import Joined
from vmm.state.world.table import Table

__all__ = ["EVERY", "FIRM", "REGISTERS"]

# What the guest's instructions change, and what only the VMM chooses or the kernel holds.
REGISTERS = Joined("registers", CORE, VECTORS, SYSREGS, COUNTERS)
FIRM = Joined("firm", FIRMWARE, CACHES, VLS, EVENTS, MP_STATE)
EVERY: tuple[Table, ...] = (*REGISTERS.tables.values(), *FIRM.tables.values(), IDREGS, FPSIMD)
