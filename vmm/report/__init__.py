# SPDX-License-Identifier: Apache-2.0
"""Reports: projections of one stream of clause results.

Each format is a class with the methods of :class:`Reporter`; a report is written to a text stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TextIO

from vmm.conformance.model import ClauseResult, Totals

__all__ = ["FORMATS", "Reporter", "reporter"]

FORMATS = ("text", "ktap", "json", "junit")


class Reporter(Protocol):
    """What a format does. Results arrive in the order of the clauses, ``started`` calls in any order."""

    def begin(self, host: dict[str, Any], lines: list[tuple[str, str]], clauses: Sequence[str]) -> None:
        """Before the first result: the host (as JSON, and as lines for people) and the ids of all clauses."""

    def started(self, clause: str) -> None:
        """A clause has begun to run."""

    def result(self, result: ClauseResult) -> None:
        """A clause has ended."""

    def finish(self, totals: Totals, seconds: float) -> None:
        """After the last result."""


def reporter(name: str, stream: TextIO) -> Reporter:
    """Return the reporter of one of FORMATS; only its own module is imported."""
    if name == "text":
        from vmm.report.text import TextReporter

        return TextReporter(stream)
    if name == "ktap":
        from vmm.report.ktap import KtapReporter

        return KtapReporter(stream)
    if name == "json":
        from vmm.report.jsonlines import JsonReporter

        return JsonReporter(stream)
    if name == "junit":
        from vmm.report.junit import JunitReporter

        return JunitReporter(stream)
    raise ValueError(f"format {name!r} is none of {', '.join(FORMATS)}")
