# SPDX-License-Identifier: Apache-2.0
"""Instructions that a guest is given to execute."""

from __future__ import annotations

__all__ = ["mrs", "msr"]


def mrs(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Return the instruction MRS X0, register."""
    return 0xD5300000 | (op0 & 1) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5


def msr(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Return the instruction MSR register, X0."""
    return mrs(op0, op1, crn, crm, op2) & ~(1 << 21)
