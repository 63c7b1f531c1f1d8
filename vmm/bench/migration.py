# SPDX-License-Identifier: Apache-2.0
"""How fast a guest's memory is migrated, and how long the guest stands still: rounds in turns with plain sockets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from vmm.bench.programs import Program, subject
from vmm.bench.result import BenchResult, BenchUnavailable, Limit, compare
from vmm.kvm.memory import available_memory
from vmm.kvm.system import Kvm

__all__ = ["ROUNDS", "compare_migration"]

ROUNDS = 9
# 70 % of what a plain copy reaches; 20 ms more than the line alone takes, in microseconds.
_COPYING, _STANDING = Limit("ratio", 1 / 0.7), Limit("difference", 20_000.0)
# The guest, its copy at a receiver, the memory of the plain copy, and some room.
_NEEDED = 4 << 30


def compare_migration(rounds: int = ROUNDS, progress: Callable[[int, int], None] | None = None) -> list[BenchResult]:
    """Migrate a guest of 1 GiB so many times and return two results: copying, and standing still.

    Raises KvmUnavailable, and BenchUnavailable where there is too little memory.
    """
    if rounds < 2:
        raise ValueError(f"{rounds} rounds have no median to compare: ask for 2 or more")
    Kvm().close()  # where there is none, this says it best
    free = available_memory() or 0
    if free < _NEEDED:
        raise BenchUnavailable(
            f"the migration of 1 GiB needs {_NEEDED >> 30} GiB of free memory, and {free >> 20} MiB are available"
        )
    copying: list[tuple[float, float]] = []
    standing: list[tuple[float, float]] = []
    with TemporaryDirectory(prefix="vmm-bench-") as name, subject(Path(name), "migration_subject") as program:
        program.numbers(1)
        for number in range(rounds + 1):
            migrated, copied = _pair(program, ours_first=number % 2 == 0)
            still, talked = _microseconds(program, "still"), _microseconds(program, "talk")
            if number:  # the first round only warmed both sides
                copying.append((migrated, copied))
                standing.append((still, talked))
                if progress:
                    progress(number, rounds)
    return [
        _compare("memory of 1 GiB migrated over loopback", copying, _COPYING),
        _compare("idle guest standing still", standing, _STANDING),
    ]


def _pair(program: Program, *, ours_first: bool) -> tuple[float, float]:
    if ours_first:
        ours = _microseconds(program, "migrate")
        return ours, _microseconds(program, "copy")
    theirs = _microseconds(program, "copy")
    return _microseconds(program, "migrate"), theirs


def _microseconds(program: Program, operation: str) -> float:
    return program.measure(operation, 1) / 1000


def _compare(name: str, pairs: list[tuple[float, float]], limit: Limit) -> BenchResult:
    return compare(name, [ours for ours, _ in pairs], [theirs for _, theirs in pairs], limit)
