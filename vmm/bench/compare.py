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
from vmm.kvm.system import Kvm

__all__ = ["MEMORY_OPERATIONS", "OPERATIONS", "TRIES", "Operation", "compare_all"]


@dataclass(frozen=True, slots=True)
class Operation:
    """What is compared, ``count`` times in a row: ``ours`` of our ``program`` with the C program's ``theirs``.

    Without a ``limit`` it is a cost that is shown and not judged.
    """

    name: str
    ours: str
    theirs: str
    count: int
    limit: Limit | None
    program: str = "subject"


# In a round each side's fastest of so many tries counts: one that had to wait for a CPU says nothing.
TRIES = 3
OPERATIONS = (
    Operation("shim exit loop", "loop", "exit", 150, Limit("ratio", 1.05)),
    Operation("exit handled in Python", "exit", "exit", 150, Limit("ratio", 1.25)),
    Operation("ioctl through the door", "call", "call", 500, Limit("difference", 0.35)),
    Operation("start to first exit", "start", "start", 1, Limit("ratio", 1.25)),
    Operation("vCPU state saved and restored", "state", "state", 30, Limit("ratio", 1.25), "state_subject"),
)
# In rounds of their own, after the others: what they walk through empties the caches, and a process with more
# mappings makes a VM more slowly.
MEMORY_OPERATIONS = (
    Operation("guest memory read", "read", "copy", 2, Limit("ratio", 1.25), "memory_subject"),
    Operation("guest memory read, flushed", "flushed", "flushcopy", 2, Limit("ratio", 1.25), "memory_subject"),
    Operation("what the flush costs", "flushed", "copy", 2, None, "memory_subject"),
    Operation("what it costs just written", "dirtyflush", "dirtycopy", 2, None, "memory_subject"),
)
_PHASES = ((OPERATIONS, 0.75), (MEMORY_OPERATIONS, 0.25))  # with their shares of the time


def compare_all(rounds: int, seconds: float, progress: Callable[[int, int], None] | None) -> list[BenchResult]:
    """Do what vmm.bench.run says."""
    if rounds < 2:
        raise ValueError(f"{rounds} rounds have no median to compare: ask for 2 or more")
    if find_spec(f"vmm.bench.{ARCHITECTURE}") is None:
        raise BenchUnavailable(f"vmm bench has no guest to measure on {ARCHITECTURE} yet")
    Kvm().close()  # where there is none, this says it best
    with TemporaryDirectory(prefix="vmm-bench-") as name:
        folder = Path(name)
        program = build(folder)
        with (
            subject(folder) as first,
            subject(folder, "state_subject") as second,
            subject(folder, "memory_subject") as third,
        ):
            memory_size, tick = first.numbers(2)
            second.numbers(1)
            third.numbers(1)
            subjects = {"subject": first, "state_subject": second, "memory_subject": third}
            with baseline(program, folder, memory_size, tick) as theirs:
                return _phases(subjects, theirs, rounds, seconds, progress)


def _phases(
    subjects: dict[str, Program],
    theirs: Program,
    rounds: int,
    seconds: float,
    progress: Callable[[int, int], None] | None,
) -> list[BenchResult]:
    results: list[BenchResult] = []
    for number, (operations, share) in enumerate(_PHASES):

        def report(done: int, before: int = number * rounds) -> None:
            if progress:
                progress(before + done, len(_PHASES) * rounds)

        results += _rounds(operations, subjects, theirs, rounds, seconds * share, report)
    return results


def _rounds(
    operations: tuple[Operation, ...],
    subjects: dict[str, Program],
    theirs: Program,
    rounds: int,
    seconds: float,
    report: Callable[[int], None],
) -> list[BenchResult]:
    times: dict[Operation, list[tuple[float, float]]] = {operation: [] for operation in operations}
    deadline = time.monotonic() + seconds
    for number in range(rounds + 1):
        if number > 2 and time.monotonic() > deadline:
            break
        for operation, pairs in times.items():
            ours = subjects[operation.program]
            pairs.append(_pair(operation, ours, theirs, ours_first=number % 2 == 0))
        if number:
            report(number)
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
