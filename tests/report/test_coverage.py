# SPDX-License-Identifier: Apache-2.0
"""The share of the closed world that a run judged, and the fields that it did not with their reasons."""

from __future__ import annotations

from vmm.conformance.model import ClauseResult, Totals, Verdict
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
