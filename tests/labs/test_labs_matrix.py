# SPDX-License-Identifier: Apache-2.0
"""The table of verdicts."""

from labs.matrix import Column, parse_results, render


def test_results_are_read_from_json_lines() -> None:
    text = (
        '{"kernel": "7.2"}\n'
        "a warning that is no JSON\n"
        '{"id": "a.one", "verdict": "PASS"}\n'
        '{"id": "a.two", "verdict": "FAIL", "expected": 1}\n'
        "[1, 2]\n"
    )
    assert parse_results(text) == {"a.one": "PASS", "a.two": "FAIL"}


def test_the_table_has_a_row_for_each_clause_and_the_totals() -> None:
    columns = [
        Column("svm/7.2", [], {"b": "SKIP", "a": "PASS"}),
        Column("amx/7.2", [], {"a": "FAIL", "c": "KNOWN"}),
        Column("host", [], error="no results (status 2): no KVM"),
    ]
    lines = render(columns).splitlines()
    assert lines[0].split() == ["clause", "svm/7.2", "amx/7.2", "host"]
    assert lines[2].split() == ["a", "ok", "FAIL"]
    assert lines[3].split() == ["b", "-"]
    assert lines[4].split() == ["c", "known"]
    assert lines[6].split() == ["passed", "1", "0", "none"]
    assert lines[7].split() == ["failed", "0", "1", "none"]
    assert lines[8] == "host: no results (status 2): no KVM"
