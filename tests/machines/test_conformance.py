# SPDX-License-Identifier: Apache-2.0
"""The conformance run in the emulated machines: nothing fails, and no clause stops passing unnoticed."""

from __future__ import annotations

import pytest

from tests.machines.machines import EVERY_KERNEL, NEWEST, Running, conformance, judge

pytestmark = pytest.mark.machine
# How many clauses pass on each machine and kernel, those that tests/machines/machines.py names. Raise a number when
# clauses are added; never lower one without saying in the commit which clause does not pass any more, and why.
_PASSING = {
    ("svm", "6.1"): 311,
    ("svm", "6.12"): 318,
    ("svm", "7.2"): 328,
    ("amx", "6.1"): 413,
    ("amx", "6.12"): 428,
    ("amx", "7.2"): 478,
    ("sve", "6.1"): 216,
    ("sve", "6.12"): 240,
    ("sve", "7.2"): 248,
}


@pytest.mark.parametrize(("machine", "kernel"), [key for key in _PASSING if EVERY_KERNEL or key[1] == NEWEST])
def test_no_clause_fails_or_stops_passing(machine: str, kernel: str, running: Running) -> None:
    judge(conformance(machine, "--kernel", kernel), machine, kernel, _PASSING[machine, kernel], running)
