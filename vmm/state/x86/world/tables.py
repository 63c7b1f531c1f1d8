# SPDX-License-Identifier: Apache-2.0
"""The tables of x86 that together have all of a vCPU's state, in the order in which a restore writes their pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmm.state.world.table import Table
from vmm.state.x86.world.events import EVENTS
from vmm.state.x86.world.lapic import LAPIC
from vmm.state.x86.world.modes import SREGS
from vmm.state.x86.world.msrs import MSRS, ONE_REGS, XFD
from vmm.state.x86.world.registers import DEBUGREGS, MP_STATE, REGS
from vmm.state.x86.world.vectors import FPU, XCRS, XSAVE

__all__ = ["SHARED", "TABLES", "VIEWS"]

TABLES: tuple[Table, ...] = (SREGS, XCRS, XFD, XSAVE, LAPIC, MSRS, REGS, DEBUGREGS, MP_STATE, EVENTS)
# Those that show what others hold, by another call.
VIEWS: tuple[Table, ...] = (FPU, ONE_REGS)
# Fields that are the same state as one that is written later, and what they are then: arch/x86/kvm/lapic.c,
# kvm_lapic_set_tpr, kvm_lapic_get_cr8.
SHARED: Mapping[str, Callable[[Mapping[str, int]], int]] = {"SREGS.cr8": lambda fields: fields["LAPIC.TPR"] >> 4}
