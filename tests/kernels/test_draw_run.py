# SPDX-License-Identifier: Apache-2.0
"""Which drawn faults compile, and how both judges' reports are read; nothing is built and no machine is booted."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from labs.errors import LabError

from tests.kernels import draw_run
from tests.kernels.draw_build import culprits
from tests.kernels.draw_run import Seen, packed, script, seen, verdict, weigh
from tests.kernels.patch import Edit
from tests.kernels.plain.__main__ import _CHEAP, SECTIONS, _sections, different, observe
from tests.kernels.table import Fault

FILE = "arch/x86/kvm/x86.c"
TEXT = """\
int f(void)
{
	{ if (!FAULT(3)) { a = (FAULT(1) ? (0) : (b)); } }
	return (FAULT(2) ? (c
		+ d) : (e));
}
"""


def column(line: int, text: str) -> int:
    return TEXT.splitlines()[line - 1].index(text) + 1


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (f"/usr/src/common/{FILE}:3:{column(3, '0) :')}: error: no such thing", {1: "no such thing"}),
        (f"x86.c:3:{column(3, 'a =')}: error: read only", {3: "read only"}),
        ("x86.c:5:4: error: lost", {2: "lost"}),
        ("x86.c:2:1: error: nothing before it", {}),
        ("other.c:3:30: error: another file", {}),
        (
            f"In function 'g',\n    inlined from 'f' at {FILE}:4:12:\ninclude/linux/types.h:9:1: error: call to x",
            {2: "call to x"},
        ),
        (f"{FILE}:3:30: warning: only that\n", {}),
    ],
)
def test_an_error_is_of_the_fault_that_begins_last_before_it(log: str, found: Mapping[int, str]) -> None:
    assert culprits(log, {FILE: TEXT}) == found


def test_each_line_with_errors_loses_one_fault_a_round() -> None:
    log = "x86.c:3:30: error: one\nx86.c:3:31: error: again\nx86.c:4:12: error: two\n"
    assert culprits(log, {FILE: TEXT}) == {1: "one", 2: "two"}


def fault(number: int) -> Fault:
    return Fault(number, f"seed-1-{number}-delete", "wrong", ("*",), (Edit("a.c", "f", "skip", "x"),), ("svm",))


def report(number: int, verdicts: dict[str, str], effects: int = 0, *, whole: bool = True) -> list[str]:
    """The lines that a machine prints for one fault."""
    records: list[dict[str, object]] = [{"record": "begin", "number": number}]
    if number:
        records.append({"record": "plain", "count": effects, "differences": {"a": "1 => 2"} if effects else {}})
    records += [{"record": "clause", "id": name, "verdict": verdict} for name, verdict in verdicts.items()]
    records += [{"record": "totals"}] * bool(verdicts)
    return [json.dumps(record) for record in [*records, *([{"record": "end"}] if whole else [])]]


@pytest.mark.parametrize(
    ("with_it", "effects", "whole", "outcome"),
    [
        ("FAIL", 3, True, "noticed"),
        ("FAIL", 0, True, "noticed"),
        ("FAIL", 0, False, "noticed"),
        ("PASS", 3, True, "unnoticed"),
        ("ERROR", 3, True, "disturbed"),
        ("TIMEOUT", 0, True, "no effect"),
        ("PASS", 0, True, "no effect"),
        ("PASS", 3, False, "ended"),
    ],
)
def test_two_judges_make_one_outcome(with_it: str, effects: int, whole: bool, outcome: str) -> None:
    found = Seen(1, {"a.one": with_it}, effects, whole=whole)
    assert verdict(fault(1), "svm", {"a.one": "PASS"}, found).outcome == outcome


def test_a_clause_that_fails_without_the_fault_notices_nothing() -> None:
    assert (
        verdict(fault(1), "svm", {"a.one": "FAIL"}, Seen(1, {"a.one": "FAIL"}, 2, whole=True)).outcome == "unnoticed"
    )


def test_a_report_that_ends_in_the_middle_is_not_whole() -> None:
    lines = ["noise", *report(0, {"a.one": "PASS"}), *report(1, {}, 2, whole=False), *report(2, {"a.one": "FAIL"}, 1)]
    assert [(one.number, one.effects, one.whole) for one in seen(lines)] == [
        (0, 0, True),
        (1, 2, False),
        (2, 1, True),
    ]


def test_the_plain_program_looks_twice_without_a_fault_and_clauses_are_asked_where_it_sees_something() -> None:
    lines = script([4], ["a.one"], ["new"]).splitlines()
    assert lines[1:] == [
        "echo 0 > /sys/module/kvm/parameters/fault || exit 3",
        "python3 /in/plain.pyz /tmp/first new",
        "python3 /in/plain.pyz /tmp/second new",
        """echo '{"record": "begin", "number": 4}'""",
        "echo 4 > /sys/module/kvm/parameters/fault || exit 3",
        "if ! python3 /in/plain.pyz --against /tmp/first /tmp/second; then",
        "{ vmm check --format json --time-scale 20 --jobs 1 a.one; [ $? = 1 ]; }",
        "fi",
        "echo 0 > /sys/module/kvm/parameters/fault",
        """echo '{"record": "end"}'""",
        "exit 0",
    ]


@pytest.mark.parametrize(("fails", "asked"), [(0, 1), (2, 3), (9, 3)])
def test_no_more_clauses_are_asked_once_one_fails(tmp_path: Path, fails: int, asked: int) -> None:
    ids = [f"a.n{number:03}" for number in range(130)]
    text = script([4], ids).replace("/sys/module/kvm/parameters/fault", str(tmp_path / "fault"))
    tools = {
        "python3": '[ "$2" != --against ]\n',
        "vmm": f"""echo ask >> {tmp_path}/asked
[ "$(wc -l < {tmp_path}/asked)" -le {fails} ] || exit 1
""",
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}")
        (tmp_path / name).chmod(0o755)
    command = ["sh", "-c", f"PATH={tmp_path}:$PATH; {text}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ['{"record": "begin", "number": 4}', '{"record": "end"}']
    assert len((tmp_path / "asked").read_text().splitlines()) == asked


def test_after_a_fault_that_ends_the_machine_the_others_are_tried_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    boots = iter(
        [
            report(0, {"a.one": "PASS", "a.two": "SKIP"}) + report(1, {}, whole=False),
            report(2, {"a.one": "PASS"}, 4),
        ]
    )

    def start(machine: str, options: Sequence[str], files: Mapping[str, bytes], longest: float) -> Iterator[str]:
        asked.append(files["faults"].decode())
        return iter(next(boots))

    monkeypatch.setattr(draw_run, "start", start)
    found = list(weigh("svm", ["--modules", "there"], [fault(1), fault(2)], {"a.one": "", "a.two": ""}))
    assert [(one.fault.number, one.outcome) for one in found] == [(1, "ended"), (2, "unnoticed")]
    assert "a.two" in asked[0] and "a.two" not in asked[1]


def test_a_machine_that_comes_to_no_fault_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_run, "start", lambda *words: iter(report(0, {"a.one": "PASS"})))
    with pytest.raises(LabError, match="does not come as far"):
        list(weigh("svm", ["--modules", "there"], [fault(1)], {"a.one": ""}))


@pytest.mark.parametrize(("architecture", "section"), [("x86_64", "msr_bits"), ("aarch64", "guest_sysregs")])
def test_each_architecture_has_sections_of_its_own_and_cheap_ones_first(architecture: str, section: str) -> None:
    found = _sections(architecture)
    assert section in found and len(found) >= 10
    assert list(found)[: len(_CHEAP[architecture])] == list(_CHEAP[architecture])
    assert all(name == one.__name__ for name, one in found.items())


def test_the_plain_program_is_one_file_that_depends_on_nothing(tmp_path: Path) -> None:
    (tmp_path / "plain.pyz").write_bytes(packed())
    with zipfile.ZipFile(tmp_path / "plain.pyz") as archive:
        assert "tests/kernels/plain/__main__.py" in archive.namelist()
    code = "import sys; sys.path.insert(0, 'plain.pyz'); from tests.kernels.plain import __main__ as m"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{code}; print(len(m.SECTIONS))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == len(SECTIONS)


def test_a_difference_is_in_what_is_the_same_each_time_without_a_fault() -> None:
    known = [{"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4", "c": "3"}]
    assert different({"a": "1", "b": "9", "c": "3"}, known) == set()
    assert different({"a": "0", "b": "9", "d": "5"}, known) == {"a", "c", "d"}


@pytest.mark.kvm
@pytest.mark.parametrize("section", ["new", "instructions", "events", "vectors"])
def test_what_the_plain_program_sees_is_mostly_the_same_each_time(section: str) -> None:
    first, second = observe(section), observe(section)
    assert first[f"{section} ends"] == "0" and f"{section} fails" not in first
    changed = different(second, [first])
    assert len(first) > 10 and len(changed) < len(first) / 20
