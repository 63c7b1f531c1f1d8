# SPDX-License-Identifier: Apache-2.0
"""A run divided among machines: nothing is lost, nothing comes twice, and the totals are of all."""

import io
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from labs.cli import make_plans, parse
from labs.errors import LabError
from labs.session import _status
from labs.shards import Merger, ShardSink, divisible, shard_command


def record(kind: str, **fields: object) -> bytes:
    return json.dumps({"record": kind, **fields}).encode() + b"\n"


def reports(clauses: list[str], whole: int) -> list[bytes]:
    """What the machines of a divided run write."""
    parts = []
    for part in range(whole):
        own = clauses[part::whole]
        lines = [record("host", kernel="7.2")] + [record("clause", id=name) for name in own]
        parts.append(
            b"".join(
                [*lines, record("totals", total=len(own), PASS=len(own), errno_drift=own[:1], seconds=1.5 + part)]
            )
        )
    return parts


@given(st.integers(1, 4), st.integers(0, 11), st.data())
def test_no_clause_is_lost_or_out_of_turn(whole: int, count: int, data: st.DataObject) -> None:
    clauses = [f"a.clause-{number}" for number in range(count)]
    output = io.BytesIO()
    merger = Merger(whole, output)
    sinks = [ShardSink(merger, part) for part in range(whole)]
    left = reports(clauses, whole)
    while any(left):
        part = data.draw(st.sampled_from([index for index in range(whole) if left[index]]))
        size = data.draw(st.integers(1, 200))
        sinks[part].output(left[part][:size])
        left[part] = left[part][size:]
    records = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [found["record"] for found in records] == ["host", *["clause"] * count, "totals"]
    assert [found["id"] for found in records[1:-1]] == clauses
    drifting = sorted(clauses[:whole])
    assert records[-1] == {
        "record": "totals", "total": count, "PASS": count, "errno_drift": drifting, "seconds": 0.5 + whole,
    }  # fmt: skip


def test_what_is_not_a_record_is_passed_on() -> None:
    output, errors = io.BytesIO(), io.BytesIO()
    sink = ShardSink(Merger(2, output), 0, errors)
    sink.output(b"a word\n17\n[1]\nand one without an end")
    sink.error(b"an error")
    sink.finish()
    sink.finish()
    assert output.getvalue() == b"a word\n17\n[1]\nand one without an end\n"
    assert errors.getvalue() == b"an error"


def test_a_run_that_was_cut_short_has_no_totals() -> None:
    output = io.BytesIO()
    merger = Merger(2, output)
    for line in reports(["a", "b"], 2)[0].splitlines(keepends=True):
        merger.line(0, line)
    assert b"totals" not in output.getvalue()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vmm check --format json", True),
        ("vmm check xsave.* --format json --time-scale 20", True),
        ("vmm check", False),
        ("vmm check --format json -o /out/a", False),
        ("vmm check --format json --shard 1/2", False),
        ("vmm probe --format json", False),
    ],
)
def test_only_a_command_whose_reports_can_be_joined_is_divided(words: str, expected: bool) -> None:
    assert divisible(words.split()) is expected
    assert shard_command(["vmm", "check"], 2, 3) == ["vmm", "check", "--shard", "2/3"]


@pytest.mark.parametrize("machine", ["amx", "sve"])
def test_a_run_on_a_machine_of_one_thread_is_divided_in_two(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    plans = make_plans(None, *parse([machine]))  # type: ignore[arg-type]
    assert [plan.command[-2:] for plan in plans] == [["--shard", "1/2"], ["--shard", "2/2"]]
    assert plans[0].merger is plans[1].merger is not None
    for words in (["svm"], [machine, "--", "vmm", "check"], [machine, "--out", "x"], [machine, "--shards", "1"]):
        assert [plan.merger for plan in make_plans(None, *parse(words))] == [None]  # type: ignore[arg-type]
    with pytest.raises(LabError, match="--shards divides"):
        make_plans(None, *parse([machine, "--shards", "2", "--", "vmm", "probe"]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("statuses", "divided", "expected"),
    [
        ((0, 4), False, 4),
        ((0, 4), True, 0),
        ((4, 4), True, 4),
        ((4, 1), True, 1),
        ((0, 1), True, 1),
        ((0, 0), True, 0),
    ],
)
def test_a_part_that_could_run_nothing_does_not_decide_for_a_divided_run(
    statuses: tuple[int, ...], divided: bool, expected: int
) -> None:
    guests = [SimpleNamespace(failure=None, status=status, console=None) for status in statuses]
    assert _status(guests, divided=divided) == expected  # type: ignore[arg-type]
