# SPDX-License-Identifier: Apache-2.0
"""Verdicts, results and totals."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.conformance.model import FAILING, ClauseResult, Totals, Verdict

text = st.text(alphabet='ab #\n\0"\\\u00e9\u2603', max_size=6)
results = st.builds(
    ClauseResult,
    id=text, verdict=st.sampled_from(Verdict), statement=text, seconds=st.floats(0, 100), what=text, expected=text,
    observed=text, finding=text, reason=text, reference=text, notes=st.lists(text, max_size=3),
    trace=st.lists(text, max_size=3), drifts=st.lists(text, max_size=3),
)  # fmt: skip


def of(*verdicts: Verdict) -> Totals:
    """The totals of results with these verdicts."""
    return Totals(ClauseResult(f"a.{n}", verdict, "S.") for n, verdict in enumerate(verdicts))


def test_there_are_eight_verdicts_and_three_of_them_are_failures() -> None:
    assert [str(verdict) for verdict in Verdict] == [
        "PASS", "FAIL", "KNOWN", "XPASS", "SKIP", "INFO", "TIMEOUT", "ERROR",
    ]  # fmt: skip
    assert {str(verdict) for verdict in FAILING} == {"FAIL", "TIMEOUT", "ERROR"}


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ((Verdict.PASS,), 0),
        ((Verdict.PASS, Verdict.SKIP), 0),
        ((Verdict.KNOWN,), 0),
        ((Verdict.INFO, Verdict.SKIP), 0),
        ((Verdict.XPASS,), 0),
        ((Verdict.PASS, Verdict.FAIL), 1),
        ((Verdict.PASS, Verdict.TIMEOUT), 1),
        ((Verdict.SKIP, Verdict.ERROR), 1),
        ((Verdict.SKIP, Verdict.SKIP), 4),
        ((), 4),
    ],
)
def test_the_exit_status_follows_from_the_verdicts(verdicts: tuple[Verdict, ...], status: int) -> None:
    assert of(*verdicts).exit_status == status


def test_totals_are_counted_by_verdict() -> None:
    totals = of(Verdict.PASS, Verdict.PASS, Verdict.TIMEOUT, Verdict.KNOWN)
    totals.add(ClauseResult("b", Verdict.ERROR, "S."))
    assert (totals.total, totals.failed) == (5, 2)
    assert totals.to_json() == {
        "total": 5, "PASS": 2, "FAIL": 0, "KNOWN": 1, "XPASS": 0, "SKIP": 0, "INFO": 0, "TIMEOUT": 1, "ERROR": 1,
        "errno_drift": [], "judged": 0, "not_judged": 0,
    }  # fmt: skip
    assert str(totals) == "5 clauses: 2 PASS, 1 KNOWN, 1 TIMEOUT, 1 ERROR"
    assert str(of()) == "0 clauses: none"


def test_totals_name_the_clauses_whose_errnos_drift() -> None:
    totals = Totals(
        [ClauseResult("a", Verdict.PASS, "S.", drifts=["one", "two"]), ClauseResult("b", Verdict.PASS, "S.")]
    )
    totals.add(ClauseResult("c", Verdict.FAIL, "S.", drifts=["three"]))
    assert totals.drifting == ["a", "c"] == totals.to_json()["errno_drift"]


def test_totals_add_up_the_pairs_of_field_and_property() -> None:
    one = ClauseResult("a", Verdict.PASS, "S.", coverage={"judged": 5, "untold": {"it moves": ["x", "y"]}})
    other = ClauseResult("b", Verdict.FAIL, "S.", coverage={"judged": 2, "untold": {}})
    totals = Totals([one, other, ClauseResult("c", Verdict.PASS, "S.")])
    assert totals.pairs == (7, 2)
    assert list(totals.coverage) == ["a", "b"]


def test_the_remarks_of_a_result_are_its_notes_and_its_drifts() -> None:
    result = ClauseResult("a", Verdict.PASS, "S.", notes=["seen"], drifts=["X: expected EPERM, observed EINVAL"])
    assert result.remarks == ["seen", "errno drift: X: expected EPERM, observed EINVAL"]


@given(result=results)
@settings(max_examples=30)
def test_a_result_survives_its_way_through_json(result: ClauseResult) -> None:
    assert ClauseResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_result_leaves_out_empty_fields_except_those_that_are_always_there() -> None:
    assert ClauseResult("a.b", Verdict.PASS, "S.").to_json() == {
        "id": "a.b", "verdict": "PASS", "statement": "S.", "seconds": 0.0,
    }  # fmt: skip
    assert set(ClauseResult("a.b", Verdict.SKIP, "S.", reason="r", notes=["n"]).to_json()) == {
        "id", "verdict", "statement", "seconds", "reason", "notes",
    }  # fmt: skip


def test_an_unknown_verdict_is_refused() -> None:
    with pytest.raises(ValueError, match="MAYBE"):
        ClauseResult.from_json({"id": "a", "verdict": "MAYBE", "statement": "S."})


def test_results_do_not_share_their_lists() -> None:
    first, second = (ClauseResult(name, Verdict.PASS, "S.") for name in "ab")
    first.notes.append("mine")
    first.trace.append("mine")
    assert second.notes == [] and second.trace == []
