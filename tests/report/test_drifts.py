# SPDX-License-Identifier: Apache-2.0
"""Refusals with another errno than the documented one: a line of their own in each report."""

from __future__ import annotations

import io
import json

import pytest

from vmm.conformance.model import ClauseResult, Totals, Verdict
from vmm.report import FORMATS, reporter

RUN = [
    ClauseResult(
        "sve.one", Verdict.PASS, "It holds.", drifts=["VLS after FINALIZE: expected EPERM, observed EINVAL"]
    ),
    ClauseResult("sve.two", Verdict.PASS, "It holds."),
    ClauseResult(
        "sve.three", Verdict.FAIL, "It holds.", what="a", expected="1", observed="2", drifts=["Z0 is ENOENT"]
    ),
]


def report(style: str, results: list[ClauseResult]) -> str:
    stream = io.StringIO()
    made = reporter(style, stream)
    made.begin({"kernel": "6.12.1"}, [("kernel", "6.12.1")], [result.id for result in results])
    for result in results:
        made.result(result)
    made.finish(Totals(results), 1.0)
    return stream.getvalue()


def test_a_text_run_ends_with_one_line_for_all_clauses_whose_errnos_drift() -> None:
    lines = report("text", RUN).splitlines()
    at = lines.index("errno drift (refused, with another errno than documented): sve.one sve.three")
    assert lines[at + 1] == "" and lines[at + 2].startswith("3 clauses: ")


def test_a_text_run_without_drifts_has_no_such_line() -> None:
    assert "errno drift" not in report("text", RUN[1:2])


def test_the_json_totals_name_the_clauses_whose_errnos_drift() -> None:
    records = [json.loads(line) for line in report("json", RUN).splitlines()]
    assert records[-1]["errno_drift"] == ["sve.one", "sve.three"]
    assert [record.get("drifts", []) for record in records[1:-1]] == [result.drifts for result in RUN]


@pytest.mark.parametrize("style", FORMATS)
def test_every_report_shows_the_drift_of_a_clause(style: str) -> None:
    assert "VLS after FINALIZE: expected EPERM, observed EINVAL" in report(style, RUN)
