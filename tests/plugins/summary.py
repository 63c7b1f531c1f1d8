# SPDX-License-Identifier: Apache-2.0
"""What a user has to know of a run that passed: how much of it did not run for want of a KVM, and what has moved on.

A run in which nothing ran has not passed: its status is that of pytest for no tests. With ``VMM_TEST_SUMMARY=FILE``
the lines are added to a file too, so that scripts/test can repeat them where they are read, at the end.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

__all__ = ["NEEDS_KVM", "REMARK", "remark"]

# Names of user properties of a report.
NEEDS_KVM, REMARK = "needs a KVM", "remark"
_RAN = ("passed", "failed", "error", "xfailed", "xpassed")


def remark(record: Any, sentence: str) -> None:
    """Add a sentence to the summary of the run; ``record`` is pytest's fixture record_property."""
    record(REMARK, sentence)


def _lines(reports: list[pytest.TestReport]) -> list[str]:
    reasons = Counter(str(value) for report in reports for name, value in report.user_properties if name == NEEDS_KVM)
    found = [f"{count} tests were skipped for want of a KVM: {reason}" for reason, count in reasons.items()]
    remarks = [str(value) for report in reports for name, value in report.user_properties if name == REMARK]
    return found + list(dict.fromkeys(remarks))


def _nothing_ran(stats: dict[str, list[Any]]) -> bool:
    return bool(stats.get("skipped")) and not any(stats.get(kind) for kind in _RAN)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the lines, and write them down for scripts/test."""
    stats = terminalreporter.stats
    # A property is in the reports of all phases that follow; that of the teardown is always there.
    reports = [report for kind in ("", "error") for report in stats.get(kind, [])]
    lines = _lines([report for report in reports if report.when == "teardown"])
    if _nothing_ran(stats):
        lines.append(f"nothing ran: all {len(stats['skipped'])} tests were skipped, so nothing has passed")
    if not lines:
        return
    terminalreporter.section("to know")
    for line in lines:
        terminalreporter.write_line(line)
    if path := os.environ.get("VMM_TEST_SUMMARY"):
        with Path(path).open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run that skipped all it had has not passed."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if exitstatus == pytest.ExitCode.OK and reporter is not None and _nothing_ran(reporter.stats):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
