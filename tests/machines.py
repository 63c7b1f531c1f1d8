# SPDX-License-Identifier: Apache-2.0
"""What the tests in emulated machines share: running a command there, and judging a conformance run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["EVERY_KERNEL", "NEWEST", "conformance", "judge", "lab", "records"]

# Unless asked for all, the machines run the newest kernel.
EVERY_KERNEL = os.environ.get("VMM_TEST_KERNELS") == "all"
NEWEST = "7.2"
_LAB = Path(__file__).resolve().parents[1] / "scripts" / "lab"
_SECONDS = 900
# The first run of a machine builds it.
_BUILDING = 1200


def lab(machine: str, *options: str, command: Sequence[str] = ()) -> str:
    """Run a command in a machine (default: scripts/lab's own) and return its output; it has to exit with 0 or 1."""
    words = [sys.executable, str(_LAB), machine, *options, "--timeout", str(_SECONDS)]
    if command:
        words += ["--", *command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS + _BUILDING, check=False)
    assert done.returncode in (0, 1), done.stderr[-4000:]
    return done.stdout


def records(text: str) -> list[dict[str, Any]]:
    """Return the JSON lines of an output."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def conformance(machine: str, *options: str) -> list[dict[str, Any]]:
    """Run all clauses in a machine and return the report's records."""
    return records(lab(machine, *options, "--shards", str(min(2, os.cpu_count() or 1))))


def judge(report: list[dict[str, Any]], kernel: str, passing: int) -> list[dict[str, Any]]:
    """Assert that a run is whole, that nothing fails and enough passes; return the records of the clauses."""
    assert [report[0]["record"], report[-1]["record"]] == ["host", "totals"], "the run was cut short"
    assert report[0]["kernel"].startswith(kernel)
    clauses = [record for record in report if record["record"] == "clause"]
    failed = [c for c in clauses if c["verdict"] in ("FAIL", "ERROR", "TIMEOUT")]
    assert not failed, json.dumps(failed, indent=2)
    known = [c for c in clauses if c["verdict"] == "KNOWN"]
    assert all(c["reason"] and c["reference"] for c in known)
    print("KNOWN:", *(f"{c['id']} ({c['reference']})" for c in known), sep="\n  ")
    assert all(c["reason"] for c in clauses if c["verdict"] == "SKIP"), "a skip without its measured reason"
    passed = sum(c["verdict"] == "PASS" for c in clauses)
    assert passed >= passing, f"{passed} clauses pass"
    return clauses
