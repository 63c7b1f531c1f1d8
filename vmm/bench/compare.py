# SPDX-License-Identifier: Apache-2.0
"""The rounds: the same operations in C and in Python, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from vmm.arch import ARCHITECTURE
from vmm.bench.programs import Program, baseline, build, subject
from vmm.bench.result import BenchResult, BenchUnavailable, Limit, compare
from vmm.system import Kvm

__all__ = ["OPERATIONS", "TRIES", "Operation", "compare_all"]


@dataclass(frozen=True, slots=True)
class Operation:
    """What is compared, ``count`` times in a row: the subject's ``ours`` with the C program's ``theirs``."""

    name: str
    ours: str
    theirs: str
    count: int
    limit: Limit


# In a round each side's fastest of so many tries counts: one that had to wait for a CPU says nothing.
TRIES = 3
OPERATIONS = (
    Operation("shim exit loop", "loop", "exit", 150, Limit("ratio", 1.05)),
    Operation("exit handled in Python", "exit", "exit", 150, Limit("ratio", 1.25)),
    Operation("ioctl through the door", "call", "call", 500, Limit("difference", 0.35)),
    Operation("start to first exit", "start", "start", 1, Limit("ratio", 1.25)),
)


def compare_all(rounds: int, seconds: float, progress: Callable[[int, int], None] | None) -> list[BenchResult]:
    """Do what vmm.bench.run says."""
    if rounds < 2:
        raise ValueError(f"{rounds} rounds have no median to compare: ask for 2 or more")
    if not _has_workload():
        raise BenchUnavailable(f"vmm bench has no guest to measure on {ARCHITECTURE} yet")
    Kvm().close()  # where there is none, this says it best
    with TemporaryDirectory(prefix="vmm-bench-") as name:
        folder = Path(name)
        program = build(folder)
        with subject(folder) as ours:
            memory_size, tick = ours.numbers(2)
            with baseline(program, folder, memory_size, tick) as theirs:
                return _rounds(ours, theirs, rounds, seconds, progress)


def _has_workload() -> bool:
    try:
        return find_spec(f"vmm.{ARCHITECTURE}.workload") is not None
    except ModuleNotFoundError:  # not even the package
        return False


def _rounds(
    ours: Program,
    theirs: Program,
    rounds: int,
    seconds: float,
    progress: Callable[[int, int], None] | None,
) -> list[BenchResult]:
    times: dict[Operation, list[tuple[float, float]]] = {operation: [] for operation in OPERATIONS}
    deadline = time.monotonic() + seconds
    for number in range(rounds + 1):
        if number > 2 and time.monotonic() > deadline:
            break
        for operation, pairs in times.items():
            pairs.append(_pair(operation, ours, theirs, ours_first=number % 2 == 0))
        if progress and number:
            progress(number, rounds)
    # The first round only warmed both sides.
    return [_compare(operation, pairs[1:]) for operation, pairs in times.items()]


def _pair(operation: Operation, ours: Program, theirs: Program, *, ours_first: bool) -> tuple[float, float]:
    """Return the microseconds of one operation here and in C."""
    if ours_first:
        mine = _fastest(ours, operation.ours, operation.count)
        return mine, _fastest(theirs, operation.theirs, operation.count)
    their_time = _fastest(theirs, operation.theirs, operation.count)
    return _fastest(ours, operation.ours, operation.count), their_time


def _fastest(program: Program, operation: str, count: int) -> float:
    return min(program.measure(operation, count) for _ in range(TRIES)) / count / 1000


def _compare(operation: Operation, pairs: list[tuple[float, float]]) -> BenchResult:
    return compare(operation.name, [ours for ours, _ in pairs], [theirs for _, theirs in pairs], operation.limit)
