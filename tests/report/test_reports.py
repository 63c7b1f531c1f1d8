# SPDX-License-Identifier: Apache-2.0
"""One run with every verdict through each report format."""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest

from vmm.conformance.model import ClauseResult, Totals, Verdict
from vmm.conformance.registry import all_clauses
from vmm.report import FORMATS, reporter
from vmm.report.ktap import kselftest_exit

HOST = {"kernel": "6.12.1", "architecture": "x86", "backend": "kvm_intel", "capabilities": {"KVM_CAP_XSAVE2": 4096}}
LINES = [("kernel", "6.12.1 (x86)"), ("back end", "kvm_intel #1")]
RUN = [
    ClauseResult("perm.works", Verdict.PASS, "It works.", 0.25, notes=["seen at 0x10"]),
    ClauseResult(
        "perm.fails", Verdict.FAIL, "It holds.", 0.5, "XCR0", "0x1 # only", "0x3", "mismatch", trace=["KVM_RUN() = 0"]
    ),
    ClauseResult("perm.accepts", Verdict.FAIL, "It is so.", 0.1, "KVM_SET_XCRS", "EINVAL", "success", "accepted"),
    ClauseResult(
        "perm.known", Verdict.KNOWN, "It holds.", 0.1, "BV", "1", "3", "mismatch", "#GP is\nnot raised", "SDM 13.3"
    ),
    ClauseResult("perm.heals", Verdict.XPASS, "It holds.", 0.1, reason="it is broken", reference="see there"),
    ClauseResult("xsave.size.a", Verdict.SKIP, "It fits.", reason="needs AMX: XCR0 is 0xe7"),
    ClauseResult("xsave.size.b", Verdict.SKIP, "It fits.", reason="needs AMX: XCR0 is 0xe7"),
    ClauseResult("xsave.says", Verdict.INFO, "It is so.", 0.1, notes=["it is 3", "and 4"]),
    ClauseResult("xsave.hangs", Verdict.TIMEOUT, "It ends.", 5.0, reason="did not end", trace=["a", "b"]),
    ClauseResult(
        "mig.dies", Verdict.ERROR, "It lives.", 0.2, reason="died \x1b[31mred\x00 \ud800 & <b>", trace=["Trace \x08"]
    ),
    ClauseResult("cet.c", Verdict.SKIP, "It is there.", reason="needs CET: XSS is 0"),
]  # fmt: skip


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def report(style: str, results: list[ClauseResult] = RUN, stream: io.StringIO | None = None) -> str:
    """The report of ``results``."""
    stream = stream or io.StringIO()
    made = reporter(style, stream)
    made.begin(HOST, LINES, [result.id for result in results])
    for result in results:
        if result.verdict is not Verdict.SKIP:
            made.started(result.id)
        made.result(result)
    made.finish(Totals(results), 6.789)
    return stream.getvalue()


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="'html' is none of text, ktap, json, junit"):
        reporter("html", io.StringIO())


def test_the_run_of_these_tests_has_every_verdict() -> None:
    assert {result.verdict for result in RUN} == set(Verdict)


@pytest.mark.parametrize("style", FORMATS)
def test_a_run_of_no_clauses_is_reported(style: str) -> None:
    assert report(style, []).endswith("\n")


# JSON lines


def test_json_lines_are_host_clauses_totals() -> None:
    records = [json.loads(line) for line in report("json").splitlines()]
    assert [record["record"] for record in records] == ["host"] + ["clause"] * len(RUN) + ["totals"]
    about = {key: records[0].pop(key, None) for key in ("tool", "node", "time", "microcode")}
    assert records[0] == {"record": "host", **HOST}
    assert about["tool"].startswith("xstate-vmm") and about["node"] == os.uname().nodename
    assert datetime.fromisoformat(about["time"]).utcoffset() == timedelta(0)
    assert records[-1] == {
        "record": "totals", "total": 11, "PASS": 1, "FAIL": 2, "KNOWN": 1, "XPASS": 1, "SKIP": 3, "INFO": 1,
        "TIMEOUT": 1, "ERROR": 1, "errno_drift": [], "judged": 0, "not_judged": 0, "seconds": 6.789,
    }  # fmt: skip


def test_a_json_clause_lacks_nothing() -> None:
    records = [json.loads(line) for line in report("json").splitlines()][1:-1]
    for record, result in zip(records, RUN, strict=True):
        assert {"id", "verdict", "statement", "seconds"} <= set(record)
        if record["verdict"] not in ("PASS", "INFO"):
            assert "reason" in record or {"expected", "observed"} <= set(record)
        del record["record"]
        assert ClauseResult.from_json(record) == result


def test_a_json_line_does_not_wait_for_the_end() -> None:
    stream = io.StringIO()
    made = reporter("json", stream)
    made.begin(HOST, LINES, ["perm.works"])
    assert stream.getvalue().count("\n") == 1
    made.result(RUN[0])
    assert stream.getvalue().count("\n") == 2


# KTAP, by the rules of Documentation/dev-tools/ktap.rst


@dataclass
class Test:
    """One KTAP result with its subtests."""

    __test__ = False
    ok: bool
    number: int
    name: str
    directive: str = ""
    reason: str = ""
    subtests: list[Test] = field(default_factory=list)
    diagnostics: list[str] = field(default_factory=list)


_RESULT = re.compile(r"(ok|not ok) (\d+)(?: (?:- )?([^#]*?))?(?: # (SKIP|TODO|XFAIL|TIMEOUT|ERROR)(?: (.*))?)?")


def parse(lines: list[str], depth: int = 0) -> tuple[list[Test], list[str]]:
    """Consume one level of KTAP from ``lines``; return its tests and its own diagnostics."""
    indent = "  " * depth
    tests: list[Test] = []
    subtests: list[Test] = []
    diagnostics: list[str] = []
    pending: list[str] = []
    version = plan = None
    announced = ""
    while lines and lines[0].startswith(indent):
        line = lines[0][len(indent) :]
        if line.startswith("  "):
            assert line[2:] == "KTAP version 1" and not subtests, f"a block does not start with its version: {line!r}"
            announced = lines[1].strip().removeprefix("# Subtest: ") if len(lines) > 1 else ""
            subtests, pending = parse(lines, depth + 1)
            continue
        lines.pop(0)
        if line == "KTAP version 1":
            assert version is None and plan is None and not tests
            version = 1
        elif match := re.fullmatch(r"1\.\.(\d+)", line):
            assert version and plan is None and not tests, "a plan that does not follow its version"
            plan = int(match[1])
        elif line.startswith("# Subtest: "):
            assert version and plan is None and not tests, "a name that does not follow its version"
        elif line.startswith("# "):
            diagnostics.append(line[2:])
        else:
            match = _RESULT.fullmatch(line)
            assert match, f"not KTAP: {line!r}"
            test = Test(match[1] == "ok", int(match[2]), match[3] or "", match[4] or "", match[5] or "")
            assert test.number == len(tests) + 1, f"out of order: {line!r}"
            assert not announced or announced == test.name
            test.subtests, test.diagnostics = subtests, pending
            subtests, pending, announced = [], [], ""
            tests.append(test)
    assert version and plan == len(tests), f"{plan} tests planned, {len(tests)} found"
    return tests, diagnostics


def ktap(results: list[ClauseResult] = RUN) -> tuple[list[Test], list[str]]:
    """The parsed KTAP report of ``results``."""
    lines = report("ktap", results).splitlines()
    parsed = parse(lines)
    assert not lines, f"not consumed: {lines[:3]}"
    return parsed


def test_the_ktap_parser_refuses_what_is_not_ktap() -> None:
    good = ["KTAP version 1", "1..1", "  KTAP version 1", "  # Subtest: a", "  1..1", "  ok 1 a.b", "ok 1 a"]
    assert [test.name for test in parse(list(good))[0]] == ["a"]
    broken = [
        good[1:],
        good[:-1],
        ["KTAP version 1", "1..2", *good[2:]],
        [*good[:5], "  ok 2 a.b", good[6]],
        [*good[:5], "  OK 1 a.b", good[6]],
        [*good[:6], "ok 1 other"],
        [*good[:2], good[3], good[2], *good[4:]],
    ]
    for lines in broken:
        with pytest.raises(AssertionError):
            rest = list(lines)
            parse(rest)
            assert not rest


def test_ktap_areas_are_tests_and_clauses_are_subtests() -> None:
    areas, _ = ktap()
    assert [(area.name, area.ok, area.directive) for area in areas] == [
        ("perm", False, ""), ("xsave", False, ""), ("mig", False, ""), ("cet", True, "SKIP"),
    ]  # fmt: skip
    assert [test.name for area in areas for test in area.subtests] == [result.id for result in RUN]


@pytest.mark.parametrize(
    ("name", "ok", "directive", "reason"),
    [
        ("perm.works", True, "", ""),
        ("perm.fails", False, "", ""),
        ("perm.known", True, "XFAIL", "GP is not raised (SDM 13.3)"),
        ("perm.heals", True, "", ""),
        ("xsave.size.a", True, "SKIP", "needs AMX: XCR0 is 0xe7"),
        ("xsave.says", True, "", ""),
        ("xsave.hangs", False, "TIMEOUT", "did not end"),
    ],
)
def test_a_ktap_result_has_the_status_of_its_verdict(name: str, ok: bool, directive: str, reason: str) -> None:
    found = next(test for area in ktap()[0] for test in area.subtests if test.name == name)
    assert (found.ok, found.directive, found.reason) == (ok, directive, reason)


def test_ktap_diagnostics_carry_the_evidence() -> None:
    areas, diagnostics = ktap()
    assert "perm.fails: XCR0: expected 0x1 only, observed 0x3 (mismatch)" in areas[0].diagnostics
    assert "perm.heals: XPASS, although it is broken" in areas[0].diagnostics
    assert "xsave.says: it is 3" in areas[1].diagnostics
    assert "kernel: 6.12.1 (x86)" in diagnostics


def test_the_ktap_totals_count_the_verdicts() -> None:
    assert report("ktap").splitlines()[-1] == "# Totals: pass:2 fail:2 xfail:1 xpass:1 skip:3 error:2"


def test_a_hash_in_ktap_always_starts_a_directive() -> None:
    for line in report("ktap").splitlines():
        body = line.strip().removeprefix("#")
        assert body.count("#") <= 1
        if "#" in body:
            assert re.search(r" # (SKIP|XFAIL|TIMEOUT|ERROR)( |$)", body)


def test_a_ktap_line_does_not_wait_for_the_end() -> None:
    stream = io.StringIO()
    made = reporter("ktap", stream)
    made.begin(HOST, LINES, ["perm.works", "perm.fails"])
    made.result(RUN[0])
    assert stream.getvalue().splitlines()[-1] == "  ok 1 perm.works"


def test_the_whole_catalogue_is_valid_ktap() -> None:
    results = [ClauseResult(clause.id, Verdict.PASS, clause.statement) for clause in all_clauses()]
    areas, _ = ktap(results)
    found = {area.name: len(area.subtests) for area in areas}
    assert found == dict(Counter(result.id.split(".")[0] for result in results))


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ("PASS INFO SKIP", 0),
        ("PASS KNOWN", 0),
        ("INFO", 0),
        ("PASS FAIL", 1),
        ("XPASS ERROR", 1),
        ("TIMEOUT", 1),
        ("KNOWN", 0),
        ("KNOWN SKIP", 0),
        ("PASS XPASS", 3),
        ("SKIP SKIP", 4),
        ("", 4),
    ],
)
def test_the_kselftest_exit_code_follows_from_the_verdicts(verdicts: str, status: int) -> None:
    totals = Totals(ClauseResult("a.b", Verdict(word), "S.") for word in verdicts.split())
    assert kselftest_exit(totals) == status


# JUnit


def junit(results: list[ClauseResult] = RUN) -> ElementTree.Element:
    """The parsed JUnit document."""
    return ElementTree.fromstring(report("junit", results).encode())


def test_junit_counts_agree_with_the_cases() -> None:
    found = {
        suite.get("name"): tuple(int(suite.get(key, "")) for key in ("tests", "failures", "errors", "skipped"))
        for suite in junit()
    }
    assert found == {"perm": (5, 2, 0, 1), "xsave": (4, 0, 1, 2), "mig": (1, 0, 1, 0), "cet": (1, 0, 0, 1)}
    for suite in junit():
        assert len(suite.findall("testcase")) == int(suite.get("tests", ""))
        for kind, key in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert len(suite.findall(f"testcase/{kind}")) == int(suite.get(key, ""))


def test_a_junit_case_has_the_kind_of_its_verdict() -> None:
    kinds = {
        str(case.get("name")): [child.tag for child in case if child.tag != "system-out"]
        for case in junit().iter("testcase")
    }
    assert kinds == {
        "perm.works": [], "perm.fails": ["failure"], "perm.accepts": ["failure"], "perm.known": ["skipped"],
        "perm.heals": [], "xsave.size.a": ["skipped"], "xsave.size.b": ["skipped"], "xsave.says": [],
        "xsave.hangs": ["error"], "mig.dies": ["error"], "cet.c": ["skipped"],
    }  # fmt: skip


def test_junit_cases_carry_the_evidence() -> None:
    cases = {str(case.get("name")): case for case in junit().iter("testcase")}
    failure = cases["perm.fails"].find("failure")
    assert failure is not None and failure.text is not None
    assert failure.get("message") == "XCR0: expected 0x1 # only, observed 0x3"
    assert failure.get("type") == "mismatch"
    for line in ("It holds.", "expected: 0x1 # only", "observed: 0x3", "KVM_RUN() = 0"):
        assert line in failure.text.splitlines()
    assert cases["perm.fails"].get("time") == "0.500" and cases["perm.fails"].get("classname") == "vmm.perm"
    skipped = cases["cet.c"].find("skipped")
    assert skipped is not None and skipped.get("message") == "needs CET: XSS is 0"
    assert cases["xsave.says"].findtext("system-out") == "it is 3\nand 4"


def test_control_characters_are_replaced_in_junit() -> None:
    error = next(case for case in junit().iter("testcase") if case.get("name") == "mig.dies").find("error")
    assert error is not None and error.text is not None
    assert error.get("message") == "died ?[31mred? ? & <b>"
    assert "Trace ?" in error.text


def test_the_junit_properties_describe_the_host() -> None:
    suite = junit()[0]
    properties = [(p.get("name"), p.get("value")) for p in suite.iter("property")]
    assert properties[: len(LINES)] == LINES
    assert {"checked by", "host", "begun"} <= {name for name, _ in properties[len(LINES) :]}
    assert suite.get("hostname") == os.uname().nodename and suite.get("timestamp")
    assert suite.get("time") == "1.050" and junit().get("time") == "6.789"


# Text


def test_the_text_report_has_no_escape_codes_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    text = report("text", [result for result in RUN if result.id != "mig.dies"])
    assert "\x1b" not in text and "\r" not in text


def test_the_text_report_shows_the_evidence() -> None:
    lines = report("text").splitlines()
    at = lines.index("FAIL    perm.fails")
    assert lines[at + 1 : at + 4] == [
        "        It holds.",
        "        XCR0: expected 0x1 # only, observed 0x3",
        "        | KVM_RUN() = 0",
    ]
    assert "        KVM_SET_XCRS: expected EINVAL, observed success (accepted)" in lines
    assert lines[lines.index("XPASS   perm.heals") + 1 :][:3] == [
        "        It holds.",
        "        it is broken",
        "        see see there",
    ]
    assert lines[lines.index("INFO    xsave.says") + 1 :][:2] == ["        it is 3", "        and 4"]
    assert lines[lines.index("PASS    perm.works") + 1] == "        seen at 0x10"
    at = lines.index("TIMEOUT xsave.hangs")
    assert lines[at + 2 : at + 5] == ["        did not end", "        | a", "        | b"]
    assert "ERROR   mig.dies" in lines


def test_the_text_report_gathers_skips_by_reason() -> None:
    lines = report("text").splitlines()
    at = lines.index("SKIP    needs AMX: XCR0 is 0xe7")
    assert lines[at + 1] == "        xsave.size.a xsave.size.b"
    assert lines[at + 2 : at + 4] == ["SKIP    needs CET: XSS is 0", "        cet.c"]
    assert lines[lines.index("What failed:") - 2] == (
        "11 clauses: 1 PASS, 2 FAIL, 1 KNOWN, 1 XPASS, 3 SKIP, 1 INFO, 1 TIMEOUT, 1 ERROR (6.79 s)"
    )  # fmt: skip
    assert not any(line.startswith("SKIP    xsave") for line in lines)


def test_the_text_report_starts_with_the_host() -> None:
    assert report("text").splitlines()[:3] == ["kernel    6.12.1 (x86)", "back end  kvm_intel #1", ""]


def test_only_the_end_of_a_long_trace_is_shown() -> None:
    result = ClauseResult("a.b", Verdict.ERROR, "S.", reason="r", trace=[f"call {n}" for n in range(30)])
    text = report("text", [result])
    assert "| call 29\n" in text and "| call 18\n" in text and "call 17\n" not in text


def test_the_terminal_report_has_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "CI", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    some: list[Any] = [result for result in RUN if result.id != "mig.dies"]
    text = report("text", some, Terminal())
    assert "\x1b[1;31mFAIL" in text and "perm.fails" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "10 clauses: 1 PASS" in plain
