# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the comparison: medians, quartiles, ratio, difference, verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Literal

__all__ = ["BenchResult", "Limit", "Limited", "compare"]

Limited = Literal["ratio", "difference"]


@dataclass(frozen=True, slots=True)
class Limit:
    """The largest ratio to the baseline, or difference from it (in the result's unit), that is accepted."""

    limited: Limited
    value: float

    def __str__(self) -> str:
        return f"<= {self.value:.2f}x" if self.limited == "ratio" else f"<= {self.value:+.2f} us"


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
    limit: float
    limited: Limited
    within: bool

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return asdict(self)


def compare(name: str, ours: Sequence[float], baseline: Sequence[float], limit: Limit) -> BenchResult:
    """Compare the times of an operation, in microseconds, that two or more rounds took on each side."""
    first, median, third = quantiles(ours, n=4, method="inclusive")
    base_first, base_median, base_third = quantiles(baseline, n=4, method="inclusive")
    measures: dict[Limited, float] = {"ratio": median / base_median, "difference": median - base_median}
    return BenchResult(
        name=name,
        unit="us",
        rounds=len(ours),
        ours=median,
        baseline=base_median,
        ours_quartiles=(first, third),
        baseline_quartiles=(base_first, base_third),
        ratio=measures["ratio"],
        difference=measures["difference"],
        limit=limit.value,
        limited=limit.limited,
        within=measures[limit.limited] <= limit.value,
    )
