# SPDX-License-Identifier: Apache-2.0
"""The report for people: evidence, skips by reason, colours on a terminal only."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from tests.report.test_reports import RUN, Terminal, report
from vmm.conformance.model import ClauseResult, Verdict


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
