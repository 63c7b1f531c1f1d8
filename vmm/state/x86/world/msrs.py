# SPDX-License-Identifier: Apache-2.0
"""The tables of what a state has of MSRs: MSRS, XFD, and the registers of KVM_GET_REG_LIST."""

from __future__ import annotations

from vmm.state.architecture import pieces
from vmm.state.piece import RegisterSet
from vmm.state.world.fields import RegisterCodec
from vmm.state.world.row import Row
from vmm.state.world.table import Table
from vmm.state.x86.world import msrs_cet, msrs_features, msrs_paravirtual, msrs_pmu, msrs_system

__all__ = ["MSRS", "ONE_REGS", "XFD", "registers_table"]


def registers_table(title: str, piece: RegisterSet, *rows: Row) -> Table:
    """Return the table of a set of registers."""
    return Table(title, piece, RegisterCodec(piece), rows)


def _piece(name: str) -> RegisterSet:
    piece = pieces("x86")[name]
    assert isinstance(piece, RegisterSet)
    return piece


MSRS = registers_table(
    "msrs", _piece("MSRS"), *msrs_system.ROWS, *msrs_cet.ROWS, *msrs_features.ROWS, *msrs_paravirtual.ROWS,
    *msrs_pmu.ROWS,
)  # fmt: skip
XFD = registers_table("xfd", _piece("XFD"), *msrs_cet.XFD_ROWS)
ONE_REGS = registers_table("one-regs", _piece("ONE_REGS"), *msrs_cet.ONE_REG_ROWS)
