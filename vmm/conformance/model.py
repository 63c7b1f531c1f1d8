# SPDX-License-Identifier: Apache-2.0
"""What a clause's run comes to: verdicts, results, totals. Every report is a projection of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["FAILING", "ClauseResult", "Totals", "Verdict"]


class Verdict(StrEnum):
    """How a clause ended."""

    PASS = "PASS"
    FAIL = "FAIL"
    KNOWN = "KNOWN"  # fails as the expectations of this kernel or back end say
    XPASS = "XPASS"  # passes although the expectations say that it fails
    SKIP = "SKIP"  # a precondition is not met; the reason has its measured value
    INFO = "INFO"  # records a behaviour that nothing promises
    TIMEOUT = "TIMEOUT"  # the guest or the clause did not end in time
    ERROR = "ERROR"  # what the clause needed could not be set up, or the harness itself failed


FAILING = frozenset({Verdict.FAIL, Verdict.TIMEOUT, Verdict.ERROR})


@dataclass(slots=True)
class ClauseResult:
    """One clause's verdict with its evidence; empty fields do not apply.

    What did not pass has the clause's ``source``.

    ``finding`` refines a failure: ``mismatch``, ``accepted`` (what must be refused), ``rejected`` (what must
    be accepted) or ``errno-drift`` (refused, with another errno). ``looks`` is how many things the clause's
    assertions looked at, ``seconds`` its own time. ``drifts`` are refusals with another errno than the documented
    one, of calls whose errnos are indicative: no failures. A clause about many fields has each that is wrong in
    ``fields`` (what, expected, observed), and in ``coverage`` how many were judged, and which not, by reason.
    """

    id: str
    verdict: Verdict
    statement: str
    seconds: float = 0.0
    what: str = ""
    expected: str = ""
    observed: str = ""
    finding: str = ""
    reason: str = ""
    reference: str = ""
    notes: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    looks: int = 0
    drifts: list[str] = field(default_factory=list)
    fields: list[dict[str, str]] = field(default_factory=list)
    coverage: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def remarks(self) -> list[str]:
        """What a report shows beside the verdict: notes, and drifts as such."""
        return [*self.notes, *(f"errno drift: {text}" for text in self.drifts)]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of this result: ``id``, ``verdict``, ``statement``, ``seconds``, and more if any."""
        always = {"id", "verdict", "statement", "seconds"}
        return {key: value for key, value in asdict(self).items() if key in always or value}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ClauseResult:
        """Rebuild a result that to_json wrote."""
        return cls(**{**data, "verdict": Verdict(data["verdict"])})


class Totals:
    """How many clauses ended with which verdict, and the exit status that follows.

    ``drifting`` are the ids of those with a drift: one errno that differs everywhere is easily overlooked in each.
    ``coverage`` is that of each clause about many fields, by its id.
    """

    def __init__(self, results: Iterable[ClauseResult] = ()) -> None:
        self.counts: Counter[Verdict] = Counter()
        self.drifting: list[str] = []
        self.coverage: dict[str, dict[str, Any]] = {}
        for result in results:
            self.add(result)

    def add(self, result: ClauseResult) -> None:
        """Count one more result."""
        self.counts[result.verdict] += 1
        if result.drifts:
            self.drifting.append(result.id)
        if result.coverage:
            self.coverage[result.id] = result.coverage

    @property
    def total(self) -> int:
        """How many there were."""
        return sum(self.counts.values())

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(self.counts[verdict] for verdict in FAILING)

    @property
    def pairs(self) -> tuple[int, int]:
        """How many pairs of field and property were judged, and how many were not."""
        untold = [fields for one in self.coverage.values() for fields in one["untold"].values()]
        return sum(one["judged"] for one in self.coverage.values()), sum(map(len, untold))

    @property
    def exit_status(self) -> int:
        """0: nothing failed; 1: something failed; 4: nothing could run."""
        if self.failed:
            return 1
        return 4 if self.total == self.counts[Verdict.SKIP] else 0

    def to_json(self) -> dict[str, Any]:
        """Return ``{"total": n, "PASS": n, ..., "errno_drift": [id, ...], "judged": n, ...}`` with every verdict."""
        counts = {str(verdict): self.counts[verdict] for verdict in Verdict}
        judged, left = self.pairs
        pairs = {"judged": judged, "not_judged": left}
        return {"total": self.total, **counts, "errno_drift": list(self.drifting), **pairs}

    def __str__(self) -> str:
        parts = [f"{self.counts[verdict]} {verdict}" for verdict in Verdict if self.counts[verdict]]
        return f"{self.total} clause{'' if self.total == 1 else 's'}: {', '.join(parts) or 'none'}"
