# SPDX-License-Identifier: Apache-2.0
"""KTAP version 1, nested: one test per area (the id up to its first dot), one subtest per clause.

Source: Documentation/dev-tools/ktap.rst. KNOWN is written as XFAIL ("ok", as kselftest counts it), XPASS and
INFO are "ok" with a diagnostic line, TIMEOUT and ERROR are "not ok" with their directive. A last line of totals
follows kselftest's own form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TextIO

from vmm.conformance.model import FAILING, ClauseResult, Totals, Verdict

__all__ = ["KSFT_EXIT", "KtapReporter", "kselftest_exit"]

KSFT_EXIT = {"pass": 0, "fail": 1, "xpass": 3, "skip": 4}
_DIRECTIVES = {
    Verdict.SKIP: "SKIP",
    Verdict.KNOWN: "XFAIL",
    Verdict.TIMEOUT: "TIMEOUT",
    Verdict.ERROR: "ERROR",
}


def _plain(text: str) -> str:
    """A description or directive is one line, and '#' starts a directive."""
    return " ".join(text.replace("#", "").split())


def _area(identifier: str) -> str:
    return identifier.split(".")[0]


def kselftest_exit(totals: Totals) -> int:
    """Return kselftest's exit code: 0 pass, 1 fail, 3 xpass, 4 skip; the worst of a run that did any.

    KNOWN counts as a pass, as an expected failure does for ksft_finished of kselftest.h: kselftest's runner prints
    "not ok" for xfail's own code, 2.
    """
    if totals.failed:
        return KSFT_EXIT["fail"]
    if totals.counts[Verdict.XPASS]:
        return KSFT_EXIT["xpass"]
    ran = any(totals.counts[verdict] for verdict in (Verdict.PASS, Verdict.INFO, Verdict.KNOWN))
    return KSFT_EXIT["pass" if ran else "skip"]


class KtapReporter:
    """Writes a subtest's line as soon as its clause has ended, an area's line after its last clause."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._left: Counter[str] = Counter()
        self._areas: list[str] = []
        self._number = 0
        self._verdicts: list[Verdict] = []

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def begin(self, host: dict[str, Any], lines: list[tuple[str, str]], clauses: Sequence[str]) -> None:
        """Write the version, the plan of areas and the host as diagnostics."""
        self._left = Counter(map(_area, clauses))
        self._areas = list(dict.fromkeys(map(_area, clauses)))
        self._line("KTAP version 1")
        self._line(f"1..{len(self._areas)}")
        for name, value in lines:
            self._line(f"# {_plain(name)}: {_plain(value)}")

    def started(self, clause: str) -> None:
        """Nothing: KTAP has no such line."""

    def result(self, result: ClauseResult) -> None:
        """Write a clause's line, inside its area's block."""
        area = _area(result.id)
        if not self._number:
            self._line("  KTAP version 1")
            self._line(f"  # Subtest: {area}")
            self._line(f"  1..{self._left[area]}")
        self._number += 1
        self._verdicts.append(result.verdict)
        for text in _diagnostics(result):
            self._line(f"  # {_plain(text)}")
        self._line("  " + _result_line(self._number, result))
        if self._number == self._left[area]:
            self._end_area(area)

    def _end_area(self, area: str) -> None:
        failed = any(verdict in FAILING for verdict in self._verdicts)
        skipped = all(verdict is Verdict.SKIP for verdict in self._verdicts)
        status = "not ok" if failed else "ok"
        suffix = " # SKIP no clause of this area applies here" if skipped else ""
        self._line(f"{status} {self._areas.index(area) + 1} {area}{suffix}")
        self._number, self._verdicts = 0, []

    def finish(self, totals: Totals, seconds: float) -> None:
        """Write kselftest's line of totals."""
        count = totals.counts
        error = count[Verdict.ERROR] + count[Verdict.TIMEOUT]
        self._line(
            f"# Totals: pass:{count[Verdict.PASS] + count[Verdict.INFO]} fail:{count[Verdict.FAIL]} "
            f"xfail:{count[Verdict.KNOWN]} xpass:{count[Verdict.XPASS]} skip:{count[Verdict.SKIP]} error:{error}"
        )


def _diagnostics(result: ClauseResult) -> list[str]:
    lines = [f"{result.id}: {note}" for note in result.remarks]
    if result.expected:
        finding = f" ({result.finding})" if result.finding else ""
        lines.append(f"{result.id}: {result.what}: expected {result.expected}, observed {result.observed}{finding}")
    if result.verdict is Verdict.XPASS:
        lines.append(f"{result.id}: XPASS, although {result.reason}")
    return lines


def _result_line(number: int, result: ClauseResult) -> str:
    status = "not ok" if result.verdict in FAILING else "ok"
    directive = _DIRECTIVES.get(result.verdict)
    reason = " ".join(filter(None, (result.reason, f"({result.reference})" if result.reference else "")))
    return f"{status} {number} {result.id}" + (f" # {directive} {_plain(reason)}".rstrip() if directive else "")
