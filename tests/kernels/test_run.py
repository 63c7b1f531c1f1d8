# SPDX-License-Identifier: Apache-2.0
"""The runner: what a machine is told, how its report is read and judged; no machine is booted."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.kernels import run as runner
from tests.kernels.patch import Edit
from tests.kernels.run import Boot, Outcome, boots, judge, reports, script
from tests.kernels.table import Fault


def fault(number: int, *, at_load: bool = False) -> Fault:
    return Fault(number, f"fault-{number}", "wrong", ("a.*",), (Edit("a.c", "f", "skip", "x"),), ("amx",), at_load)


def report(number: int, verdicts: dict[str, str], *, whole: bool = True) -> list[str]:
    """The lines that a machine prints for one fault."""
    records: list[dict[str, object]] = [{"record": "begin", "number": number}, {"record": "host"}]
    records += [{"record": "clause", "id": name, "verdict": verdict} for name, verdict in verdicts.items()]
    return [json.dumps(record) for record in [*records, *([{"record": "totals"}] if whole else [])]]


CLAUSES = {1: ["a.one"], 2: ["a.one", "a.two"], 3: ["a.two"]}


def test_clauses_run_first_without_a_fault_and_only_once() -> None:
    first = next(boots([fault(1), fault(2)], CLAUSES, {}))
    assert first.order == [0, 1, 2]
    assert first.clauses[0] == ["a.one", "a.two"]
    second = next(boots([fault(2)], CLAUSES, {"a.one": "PASS"}))
    assert second.clauses[0] == ["a.two"]
    assert next(boots([fault(2)], CLAUSES, {"a.one": "PASS", "a.two": "SKIP"})).order == [2]


def test_what_acts_at_load_has_a_boot_of_its_own() -> None:
    found = list(boots([fault(1, at_load=True), fault(2)], CLAUSES, {"a.two": "PASS"}))
    assert [(boot.parameter, boot.order) for boot in found] == [(0, [0, 2]), (0, [0]), (1, [1])]


def test_a_fault_is_on_for_its_clauses_alone() -> None:
    lines = script(Boot([fault(2)], {2: ["a.one", "a.two"]})).splitlines()
    assert lines[1:] == [
        """echo '{"record": "begin", "number": 2}'""",
        "echo 2 > /sys/module/kvm/parameters/fault || exit 3",
        "vmm check --format json --time-scale 20 --jobs 1 a.one a.two",
        "echo 0 > /sys/module/kvm/parameters/fault",
        "exit 0",
    ]
    assert "/sys" not in script(Boot([fault(2)], {2: ["a.one"]}, parameter=2))


def test_a_report_says_which_fault_ended_the_machine() -> None:
    lines = report(0, {"a.one": "PASS"}) + report(1, {"a.one": "FAIL"}, whole=False) + ["noise"]
    assert list(reports(lines)) == [(0, {"a.one": "PASS"}, True), (1, {"a.one": "FAIL"}, False)]


@pytest.mark.parametrize(
    ("without", "with_it", "ended", "outcome"),
    [
        ("PASS", "FAIL", False, "noticed"),
        ("KNOWN", "FAIL", False, "noticed"),
        ("PASS", "FAIL", True, "noticed"),
        ("FAIL", "FAIL", False, "cannot run"),
        ("PASS", "PASS", False, "unnoticed"),
        ("KNOWN", "KNOWN", False, "unnoticed"),
        ("PASS", "SKIP", False, "unnoticed"),
        ("SKIP", "SKIP", False, "cannot run"),
        ("PASS", "TIMEOUT", False, "disturbed"),
        ("PASS", "ERROR", False, "disturbed"),
        ("ERROR", "ERROR", False, "cannot run"),
        ("PASS", "PASS", True, "cannot run"),
    ],
)
def test_noticed_is_a_fail_that_the_fault_makes(without: str, with_it: str, ended: bool, outcome: str) -> None:
    assert judge(fault(1), "amx", {"a.one": without}, {"a.one": with_it}, ended=ended).outcome == outcome


def machine(monkeypatch: pytest.MonkeyPatch, boots: Sequence[list[str]]) -> list[Boot]:
    """Have the machine print these lines in one boot after the other; return the boots that it is asked for."""
    asked: list[Boot] = []
    answers = iter(boots)

    def start(machine: str, options: Sequence[str], boot: Boot) -> Iterator[str]:
        asked.append(boot)
        return iter(next(answers))

    monkeypatch.setattr(runner, "_start", start)
    return asked


def outcomes(faults: Sequence[Fault]) -> list[Outcome]:
    return list(runner.run("amx", ["--modules", "there"], faults, {**CLAUSES, 4: []}))


def test_after_a_fault_that_ends_the_machine_the_others_are_tried_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = machine(
        monkeypatch,
        [
            report(0, {"a.one": "PASS", "a.two": "PASS"}) + report(1, {}, whole=False),
            report(2, {"a.one": "PASS", "a.two": "FAIL"}) + report(3, {"a.two": "PASS"}),
        ],
    )
    found = outcomes([fault(1), fault(2), fault(3), fault(4)])
    assert [(one.fault.number, one.outcome) for one in found] == [
        (4, "cannot run"),
        (1, "cannot run"),
        (2, "noticed"),
        (3, "unnoticed"),
    ]
    assert found[2].by == {"a.two": "FAIL"}
    assert [boot.order for boot in asked] == [[0, 1, 2, 3], [2, 3]]


@pytest.mark.parametrize("lines", [[], ["lab: no"], report(0, {"a.one": "PASS"}, whole=False)], ids=str)
def test_a_machine_that_runs_nothing_is_tried_once(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    asked = machine(monkeypatch, [lines])
    assert [one.outcome for one in outcomes([fault(1), fault(2)])] == ["cannot run", "cannot run"]
    assert len(asked) == 1


def test_a_machine_that_says_nothing_any_more_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "SILENCE", 0.5)
    monkeypatch.setattr(runner, "_SCRIPTS", tmp_path)
    lines = report(1, {"a.one": "FAIL"}, whole=False)
    program = f"import time\nfor line in {lines!r}: print(line, flush=True)\nwhile True: time.sleep(1)\n"
    (tmp_path / "lab").write_text(program)
    found = runner._start("amx", ["--modules", "there"], Boot([fault(1)], {1: ["a.one"]}))
    assert list(reports(found)) == [(1, {"a.one": "FAIL"}, False)]
