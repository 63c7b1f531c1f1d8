# SPDX-License-Identifier: Apache-2.0
"""All tables of x86, in the order in which a restore writes their pieces."""

from __future__ import annotations

from vmm.state.world.table import Table
from vmm.state.x86.world.registers import DEBUGREGS, MP_STATE, REGS, SREGS

__all__ = ["TABLES", "VIEWS"]

TABLES: tuple[Table, ...] = (SREGS, REGS, DEBUGREGS, MP_STATE)
# Those that show what others hold, by another call.
VIEWS: tuple[Table, ...] = ()
