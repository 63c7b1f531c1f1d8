# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the comparison: medians, quartiles, ratio, difference, verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["BenchResult", "BenchUnavailable", "Limit", "Limited", "compare", "quartiles"]

Limited = Literal["ratio", "difference"]


class BenchUnavailable(Exception):
    """There is nothing to compare with; the message is one sentence that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The largest ratio to the baseline, or difference from it in microseconds, that is accepted."""

    limited: Limited
    value: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One comparison: medians of the time of one operation, in ``unit``; see vmm.bench for the fields."""

    name: str
    unit: str
    rounds: int
    ours: float
    baseline: float
    ours_quartiles: tuple[float, float]
    baseline_quartiles: tuple[float, float]
    ratio: float
    difference: float
    limit: float | None
    limited: Limited | None
    within: bool

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return asdict(self)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third, interpolated between the nearest values."""
    ordered = sorted(values)

    def at(fraction: float) -> float:
        below, rest = divmod(fraction * (len(ordered) - 1), 1)
        low = ordered[int(below)]
        return low + rest * (ordered[int(below) + 1] - low) if rest else low

    return at(0.25), at(0.5), at(0.75)


def compare(name: str, ours: Sequence[float], baseline: Sequence[float], limit: Limit | None) -> BenchResult:
    """Compare the times of an operation, in microseconds, that the rounds took on each side.

    Without a limit the result is always within: it says what something costs.
    """
    first, median, third = quartiles(ours)
    base_first, base_median, base_third = quartiles(baseline)
    measured: dict[Limited, float] = {"ratio": median / base_median, "difference": median - base_median}
    return BenchResult(
        name=name,
        unit="us",
        rounds=len(ours),
        ours=median,
        baseline=base_median,
        ours_quartiles=(first, third),
        baseline_quartiles=(base_first, base_third),
        ratio=measured["ratio"],
        difference=measured["difference"],
        limit=limit.value if limit else None,
        limited=limit.limited if limit else None,
        within=limit is None or measured[limit.limited] <= limit.value,
    )
