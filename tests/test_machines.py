# SPDX-License-Identifier: Apache-2.0
"""The conformance run in the emulated machines: nothing fails, and no clause stops passing unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.machine
_LAB = Path(__file__).resolve().parents[1] / "scripts" / "lab"
_SECONDS = 900
# How many clauses pass on each machine and kernel. Raise a number when clauses are added; never lower one
# without saying in the commit which clause does not pass any more, and why.
_PASSING = {
    ("svm", "6.1"): 82,
    ("svm", "6.12"): 82,
    ("svm", "7.2"): 85,
    ("amx", "6.1"): 154,
    ("amx", "6.12"): 157,
    ("amx", "7.2"): 186,
    ("sve", "6.1"): 0,
    ("sve", "6.12"): 0,
    ("sve", "7.2"): 79,
}
_NEWEST = "7.2"


def _chosen() -> list[tuple[str, str]]:
    every = os.environ.get("VMM_TEST_KERNELS") == "all"
    return [key for key in _PASSING if every or key[1] == _NEWEST]


def _run(machine: str, kernel: str) -> list[dict[str, Any]]:
    """Run the clauses in a machine and return the report's records."""
    command = [sys.executable, str(_LAB), machine, "--kernel", kernel, "--timeout", str(_SECONDS), "--"]
    command += ["vmm", "check", "--format", "json", "--time-scale", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS + 1200, check=False)
    assert done.returncode in (0, 1), done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(("machine", "kernel"), _chosen())
def test_a_clause_fails_or_passes_no_more(machine: str, kernel: str) -> None:
    records = _run(machine, kernel)
    assert [records[0]["record"], records[-1]["record"]] == ["host", "totals"], "the run was cut short"
    assert records[0]["kernel"].startswith(kernel)
    clauses = [record for record in records if record["record"] == "clause"]
    failed = [c for c in clauses if c["verdict"] in ("FAIL", "ERROR", "TIMEOUT")]
    assert not failed, json.dumps(failed, indent=2)
    known = [c for c in clauses if c["verdict"] == "KNOWN"]
    assert all(c["reason"] and c["reference"] for c in known)
    print("KNOWN:", *(f"{c['id']} ({c['reference']})" for c in known), sep="\n  ")
    skipped = [c for c in clauses if c["verdict"] == "SKIP"]
    assert all(c["reason"] for c in skipped), "a skip without its measured reason"
    passed = sum(c["verdict"] == "PASS" for c in clauses)
    assert passed >= _PASSING[machine, kernel], f"{passed} clauses pass"
