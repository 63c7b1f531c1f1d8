# SPDX-License-Identifier: Apache-2.0
"""The end of a report: what failed is seen without scrolling, can be run again and can be sent to who can mend it."""

from __future__ import annotations

import shlex

import pytest

from vmm.conformance.model import ClauseResult, Verdict
from vmm.report.ending import ending, letter

LINES = [("kernel", "6.12.1 (x86)"), ("host XCR0", "0xe7"), ("back end", "kvm_intel")]
SOURCE = "arch/x86/kvm/x86.c, __kvm_set_xcr"


def _fail(number: int = 0, fields: int = 0) -> ClauseResult:
    found = [{"what": f"REGS.r{at}", "expected": "1", "observed": "2"} for at in range(fields)]
    return ClauseResult(
        f"xcrs.fails-{number}", Verdict.FAIL, "It holds.", 0.1, "XCR0", "0x1", "0x3", trace=["KVM_RUN() = 0"],
        fields=found, source=SOURCE,
    )  # fmt: skip


def test_a_run_in_which_nothing_failed_has_no_ending() -> None:
    passed = [ClauseResult("a.b", verdict, "S.") for verdict in (Verdict.PASS, Verdict.KNOWN, Verdict.XPASS)]
    assert list(ending(passed, LINES)) == []


def test_every_failure_is_named_with_what_was_seen() -> None:
    errs = ClauseResult("a.errs", Verdict.ERROR, "S.", reason="could not set up: no memory")
    lines = list(ending([_fail(), errs], LINES))
    assert lines[1:3] == [
        "  FAIL    xcrs.fails-0: XCR0: expected 0x1, observed 0x3",
        "  ERROR   a.errs: could not set up: no memory",
    ]


def test_the_line_to_run_it_again_is_a_command_of_the_shell() -> None:
    (again,) = (line for line in ending([_fail(1), _fail(2)], LINES) if line.startswith("Run it again: "))
    assert shlex.split(again)[3:] == ["vmm", "check", "xcrs.fails-1", "xcrs.fails-2"]


@pytest.mark.parametrize("verdict", [Verdict.TIMEOUT, Verdict.ERROR])
def test_what_is_no_failure_of_the_kernel_makes_no_letter(verdict: Verdict) -> None:
    lines = list(ending([ClauseResult("a.b", verdict, "S.", reason="it hangs")], LINES))
    assert any(line.startswith(f"{verdict}: ") for line in lines)
    assert not any("Promised" in line or "kvm@vger" in line for line in lines)


def test_a_letter_has_promise_source_finding_host_and_trace() -> None:
    lines = list(letter(_fail(fields=10), LINES))
    assert lines[0] == "KVM: xcrs.fails-0: XCR0: expected 0x1, observed 0x3"
    assert "Promised: It holds." in lines and f"Source:   {SOURCE}" in lines
    assert "kernel: 6.12.1 (x86)" in lines and "back end: kvm_intel" in lines
    assert "host XCR0: 0xe7" not in lines
    assert "          REGS.r7: expected 1, observed 2" in lines and "          and 2 more fields" in "\n".join(lines)
    assert lines[-1] == "  KVM_RUN() = 0"


def test_a_letter_does_not_tell_the_hosts_name() -> None:
    assert not any(line.startswith("host: ") for line in letter(_fail(), LINES))


def test_only_the_first_few_failures_get_a_letter() -> None:
    lines = list(ending([_fail(number) for number in range(5)], LINES))
    assert sum(line.startswith("    KVM: ") for line in lines) == 3
    assert lines[-1] == "    (2 more: run them by themselves to get theirs)"
