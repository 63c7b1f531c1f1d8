# SPDX-License-Identifier: Apache-2.0
"""JSON lines: the native format, of which the others are projections.

The first line is the host: ``{"record": "host", "kernel": ..., "architecture": ..., "backend": ...,
"capabilities": {...}, ...}``, with ``tool`` (name and version), ``node``, ``time`` (UTC) and, where the kernel tells
it, ``microcode``. Then one line per clause, in the catalogue's order: ``{"record": "clause", "id", "verdict",
"statement", "seconds"}`` and, where there is any, ``looks`` (how many things its assertions looked at), ``what``,
``expected``, ``observed``, ``finding``, ``reason``, ``reference``, ``source``, ``notes``, ``trace``, ``drifts``
(refusals with another errno than the documented one, where those are indicative). A clause that looks at every field
of a piece of state has ``fields``, each one that is wrong with its ``what``, ``expected`` and ``observed``, and
``coverage``: how many were ``judged``, and which are ``untold`` (by reason); with --exhaustive also which bits of
which fields this KVM keeps although nothing promises it, as ``excused``.

The last line is ``{"record": "totals", "total": n, "PASS": n, ..., "errno_drift": [id, ...], "judged": n,
"not_judged": n, "seconds": s}`` with every verdict, the clauses with drifts, and how many pairs of field and property
were judged and how many not; a run that was cut short has none. Keys are only ever added.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TextIO

from vmm.conformance.model import ClauseResult, Totals
from vmm.report.identity import identity

__all__ = ["JsonReporter"]


class JsonReporter:
    """Writes each record as soon as it is known."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _write(self, record: str, fields: dict[str, Any]) -> None:
        self._stream.write(json.dumps({"record": record, **fields}) + "\n")
        self._stream.flush()

    def begin(self, host: dict[str, Any], lines: list[tuple[str, str]], clauses: Sequence[str]) -> None:
        """Write the host's line."""
        self._write("host", {**identity(), **host})

    def started(self, clause: str) -> None:
        """Nothing: machines wait for results."""

    def result(self, result: ClauseResult) -> None:
        """Write a clause's line."""
        self._write("clause", result.to_json())

    def finish(self, totals: Totals, seconds: float) -> None:
        """Write the totals."""
        self._write("totals", {**totals.to_json(), "seconds": round(seconds, 3)})
