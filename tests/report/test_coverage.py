# SPDX-License-Identifier: Apache-2.0
"""The share of the closed world that a run judged, and the fields that it did not with their reasons."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.patience import LIMIT
from vmm.arch import ARCHITECTURE
from vmm.conformance.model import ClauseResult, Totals, Verdict
from vmm.kvm.system import Kvm
from vmm.report.coverage import lines


def _ran(identifier: str, judged: int, untold: dict[str, list[str]]) -> ClauseResult:
    return ClauseResult(identifier, Verdict.PASS, "S.", coverage={"judged": judged, "untold": untold})


def test_the_share_is_that_of_all_pairs() -> None:
    totals = Totals([_ran("world.a-fresh", 5, {}), _ran("world.a-kept", 1, {"it counts": ["A.x", "A.y"]})])
    assert list(lines(totals)) == [
        "world.a-fresh: 5 fields judged",
        "world.a-kept: 1 fields judged, 2 not",
        "not judged, it counts: A.x, A.y",
        "6 of 8 pairs of field and property judged: 75.0 %",
    ]


def test_a_field_that_two_properties_leave_out_is_named_once() -> None:
    untold = {"it counts": [f"A.x{number}" for number in range(8)]}
    found = list(lines(Totals([_ran("world.a-kept", 0, untold), _ran("world.a-moved", 0, untold)])))
    assert found[2] == "not judged, it counts: A.x0, A.x1, A.x2, A.x3, A.x4, A.x5 and 2 more"


def test_a_run_that_counted_nothing_says_how_to_get_a_share() -> None:
    assert list(lines(Totals([ClauseResult("a", Verdict.PASS, "S.")]))) == [
        "no clause that ran counts fields: try 'world.*'"
    ]


def _check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmm", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)


@pytest.mark.kvm
@pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"a clause of x86; this is {ARCHITECTURE}")
def test_vmm_check_prints_the_share_at_its_end_and_in_the_totals_of_json(kvm: Kvm) -> None:
    shown = _check("world.debugregs-fresh", "--coverage")
    assert shown.stdout.splitlines()[-1] == "16 of 16 pairs of field and property judged: 100.0 %", shown.stderr
    records = [json.loads(line) for line in _check("world.debugregs-fresh", "--format", "json").stdout.splitlines()]
    assert (records[-1]["judged"], records[-1]["not_judged"]) == (16, 0)
    assert records[1]["coverage"] == {"judged": 16, "untold": {}}
