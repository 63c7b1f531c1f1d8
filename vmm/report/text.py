# SPDX-License-Identifier: Apache-2.0
"""The report for people: a line per clause, evidence where it failed, reasons for skips gathered at the end.

On a terminal it is coloured and a line at the bottom shows what is running; in a pipe it is plain.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from vmm.conformance.model import FAILING, ClauseResult, Totals, Verdict
from vmm.report.ending import ending

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["TextReporter"]

_TRACE_SHOWN = 12
_STYLES = {
    Verdict.PASS: "green",
    Verdict.INFO: "cyan",
    Verdict.SKIP: "bright_black",
    Verdict.KNOWN: "yellow",
    Verdict.XPASS: "magenta",
    Verdict.FAIL: "bold red",
    Verdict.TIMEOUT: "bold red",
    Verdict.ERROR: "bold red",
}


class _Terminal:
    """Colours and a progress line by rich, which is imported only where somebody is looking."""

    def __init__(self, stream: TextIO, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (BarColumn(30), MofNCompleteColumn(), TextColumn("{task.description}"))
        self.console: Console = Console(file=stream if stream.isatty() else sys.stderr, highlight=False)
        self._progress: Progress = Progress(*columns, console=self.console, transient=True)
        self._task: TaskID = self._progress.add_task("", total=total)
        self._running: list[str] = []
        self._progress.start()

    def started(self, clause: str) -> None:
        self._running.append(clause)
        self._progress.update(self._task, description=" ".join(self._running))

    def ended(self, clause: str) -> None:
        if clause in self._running:
            self._running.remove(clause)
        self._progress.update(self._task, advance=1, description=" ".join(self._running))

    def stop(self) -> None:
        self._progress.stop()


class TextReporter:
    """Writes to ``stream`` (usually standard output) and shows progress on standard error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal: _Terminal | None = None
        self._skipped: dict[str, list[str]] = {}
        self._failed: list[ClauseResult] = []
        self._lines: Sequence[tuple[str, str]] = ()

    def _write(self, text: str, verdict: Verdict | None = None) -> None:
        """Write a line, its first word in the verdict's colour where there are colours."""
        label = f"{verdict:7} " if verdict else ""
        if self._terminal and self._stream.isatty():
            from rich.text import Text

            style = _STYLES[verdict] if verdict else ""
            self._terminal.console.print(Text.assemble((label, style), text), soft_wrap=True)
        else:
            self._stream.write(label + text + "\n")

    def begin(self, host: dict[str, Any], lines: list[tuple[str, str]], clauses: Sequence[str]) -> None:
        """Write what the host is."""
        if self._stream.isatty() or sys.stderr.isatty():
            self._terminal = _Terminal(self._stream, len(clauses))
        self._lines = lines
        width = max(len(name) for name, _ in lines)
        for name, value in lines:
            self._write(f"{name:{width}}  {value}")
        self._write("")

    def started(self, clause: str) -> None:
        """Show it on the progress line."""
        if self._terminal:
            self._terminal.started(clause)

    def result(self, result: ClauseResult) -> None:
        """Write the clause's line and, unless it passed, why."""
        if self._terminal:
            self._terminal.ended(result.id)
        if result.verdict is Verdict.SKIP:
            self._skipped.setdefault(result.reason, []).append(result.id)
            return
        if result.verdict in FAILING:
            self._failed.append(result)
        self._write(result.id, result.verdict)
        for line in _details(result):
            self._write(f"        {line}")
        self._stream.flush()

    def finish(self, totals: Totals, seconds: float) -> None:
        """Write the skipped clauses by reason, the totals, and what failed once more: that has scrolled away."""
        if self._terminal:
            self._terminal.stop()
        for reason, clauses in self._skipped.items():
            self._write(reason, Verdict.SKIP)
            for line in textwrap.wrap(" ".join(clauses), 100, break_on_hyphens=False):
                self._write(f"        {line}")
        if totals.drifting:
            self._write(f"\nerrno drift (refused, with another errno than documented): {' '.join(totals.drifting)}")
        self._write(f"\n{totals} ({seconds:.2f} s)")
        if self._failed:
            self._write("")
        for line in ending(self._failed, self._lines):
            self._write(line)
        self._stream.flush()


def _details(result: ClauseResult) -> list[str]:
    if result.verdict is Verdict.PASS:
        return result.remarks
    lines = []
    if result.verdict is not Verdict.INFO:
        lines.append(result.statement)
    if result.expected:
        finding = f" ({result.finding})" if result.finding not in ("", "mismatch") else ""
        lines.append(f"{result.what}: expected {result.expected}, observed {result.observed}{finding}")
    if result.reason:
        lines.append(result.reason)
    if result.reference:
        lines.append(f"see {result.reference}")
    lines += result.remarks
    if result.verdict in (Verdict.FAIL, Verdict.TIMEOUT, Verdict.ERROR):
        lines += [f"| {line}" for line in result.trace[-_TRACE_SHOWN:]]
    return lines
