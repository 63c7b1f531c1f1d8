# SPDX-License-Identifier: Apache-2.0
"""Lies about every field of REGS, SREGS, DEBUGREGS and MP_STATE."""

from __future__ import annotations

from tests.mutations.world import struct_fields, world_lies
from vmm.state.x86.world.modes import SREGS, SREGS_1, SREGS_LONG, SREGS_PAE
from vmm.state.x86.world.registers import DEBUGREGS, MP_STATE, REGS

world_lies(__name__, REGS, struct_fields(REGS), ("fresh", "kept", "moved"))
for table in (SREGS, DEBUGREGS, MP_STATE):
    world_lies(__name__, table, struct_fields(table), ("fresh", "kept", "refused", "moved"))
world_lies(__name__, SREGS_1, struct_fields(SREGS_1), ("kept",))
for table in (SREGS_LONG, SREGS_PAE):
    world_lies(__name__, table, struct_fields(table), ("kept", "refused", "moved"))
