# SPDX-License-Identifier: Apache-2.0
"""The rounds: the same operations in C and here, in turns."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from vmm import ioctl as door
from vmm._kvm import lib
from vmm.arch import ARCHITECTURE, module
from vmm.bench.baseline import Baseline, BenchUnavailable, build
from vmm.bench.result import BenchResult, Limit, compare
from vmm.exits import Budget
from vmm.memory import PAGE_SIZE
from vmm.system import Kvm

__all__ = ["OPERATIONS", "ROUNDS", "SECONDS", "Operation", "run"]

ROUNDS = 200
SECONDS = 8.0
_PAYLOAD, _ENTRY, _ENDLESS = "hello", "ticks", 1 << 62
_RECORD = struct.Struct("=QQ")


@dataclass(frozen=True, slots=True)
class Operation:
    """What is compared: ``count`` times a round, against operation ``baseline`` of the C program."""

    name: str
    baseline: str
    count: int
    limit: Limit
    measure: Callable[[_Ours, int], int]


class _Ours:
    """The Python side: a guest that ticks for ever. Every measuring method returns nanoseconds, like C's."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self._guest_type = module("guest").Guest
        self._workload = _workload()
        self.guest = self._start(kvm)
        self.tick = int(self.guest.vcpu.tick)

    def _start(self, kvm: Kvm) -> Any:
        guest = self._guest_type(kvm, _PAYLOAD)
        guest.prepare(_ENTRY, _ENDLESS)
        return guest

    def write_to(self, folder: Path) -> None:
        """Write the guest as it is, before it first runs, for the C program."""
        view = self.guest.memory.view
        (folder / "memory").write_bytes(b"".join(_RECORD.pack(at, len(data)) + data for at, data in _runs(view)))
        for name, value in self._workload.registers(self.guest).items():
            (folder / name).write_bytes(value)

    def absorbed_ticks(self, count: int) -> int:
        """Exits that the shim's loop absorbs."""
        begin = time.perf_counter_ns()
        exit = self.guest.resume(ticks=count)
        spent = time.perf_counter_ns() - begin
        return _expect_budget(spent, exit)

    def handled_ticks(self, count: int) -> int:
        """Exits that come back to Python."""
        vcpu = self.guest.vcpu
        vcpu.tick = 0
        begin = time.perf_counter_ns()
        self._workload.handle_ticks(vcpu, self.tick, count)
        spent = time.perf_counter_ns() - begin
        vcpu.tick = self.tick
        return spent

    def calls(self, count: int) -> int:
        """Ioctls through the door."""
        ioctl, fd, request = door.ioctl, self._kvm.fd, lib.KVM_GET_API_VERSION
        begin = time.perf_counter_ns()
        for _ in range(count):
            ioctl(fd, request)
        return time.perf_counter_ns() - begin

    def starts(self, count: int) -> int:
        """New guests, each up to its first exit."""
        total = 0
        for _ in range(count):
            begin = time.perf_counter_ns()
            with Kvm() as kvm, self._start(kvm) as guest:
                exit = guest.resume(ticks=1)
                total += _expect_budget(time.perf_counter_ns() - begin, exit)
        return total


OPERATIONS = (
    Operation("shim exit loop", "tick", 400, Limit("ratio", 1.05), _Ours.absorbed_ticks),
    Operation("exit handled in Python", "tick", 400, Limit("ratio", 1.25), _Ours.handled_ticks),
    Operation("ioctl through the door", "call", 2000, Limit("difference", 0.35), _Ours.calls),
    Operation("start to first exit", "start", 2, Limit("ratio", 1.25), _Ours.starts),
)


def _workload() -> ModuleType:
    try:
        return module("workload")
    except ModuleNotFoundError as error:
        raise BenchUnavailable(f"vmm bench has no guest to measure on {ARCHITECTURE} yet") from error


def _runs(view: memoryview) -> list[tuple[int, bytes]]:
    """Return the runs of pages that are not zero, as (offset, bytes)."""
    zero = bytes(PAGE_SIZE)
    runs: list[tuple[int, bytes]] = []
    for at in range(0, len(view), PAGE_SIZE):
        page = bytes(view[at : at + PAGE_SIZE])
        if page == zero:
            continue
        if runs and runs[-1][0] + len(runs[-1][1]) == at:
            page = runs[-1][1] + page
            at = runs.pop()[0]
        runs.append((at, page))
    return runs


def _expect_budget(spent: int, exit: object) -> int:
    if not isinstance(exit, Budget):
        raise BenchUnavailable(f"the guest of the benchmark left with {exit} instead of ticking")
    return spent


def run(
    rounds: int = ROUNDS, seconds: float = SECONDS, progress: Callable[[int, int], None] | None = None
) -> list[BenchResult]:
    """Compare every operation and return the results in the order of OPERATIONS.

    ``rounds`` (2 or more) are cut short when ``seconds`` have passed; ``progress`` is called with the rounds
    done and wanted. Raises KvmUnavailable, and BenchUnavailable where there is nothing to compare with.
    """
    if rounds < 2:
        raise ValueError(f"{rounds} rounds have no median to compare: ask for 2 or more")
    _workload()
    with TemporaryDirectory(prefix="vmm-bench-") as name, Kvm() as kvm:
        folder = Path(name)
        program = build(folder)
        ours = _Ours(kvm)
        with ours.guest:
            ours.write_to(folder)
            with Baseline(program, folder, ours.guest.memory.size, ours.tick) as baseline:
                return _rounds(ours, baseline, rounds, seconds, progress)


def _rounds(
    ours: _Ours,
    baseline: Baseline,
    rounds: int,
    seconds: float,
    progress: Callable[[int, int], None] | None,
) -> list[BenchResult]:
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in OPERATIONS]
    _round(ours, baseline, 0)  # warms both
    deadline = time.monotonic() + seconds
    for number in range(rounds):
        if number >= 2 and time.monotonic() > deadline:
            break
        for (mine, theirs), (my_time, their_time) in zip(times, _round(ours, baseline, number), strict=True):
            mine.append(my_time)
            theirs.append(their_time)
        if progress:
            progress(number + 1, rounds)
    pairs = zip(OPERATIONS, times, strict=True)
    return [compare(operation.name, mine, theirs, operation.limit) for operation, (mine, theirs) in pairs]


def _round(ours: _Ours, baseline: Baseline, number: int) -> list[tuple[float, float]]:
    """Return, for each operation, microseconds here and in C; even rounds begin here, odd ones in C."""
    results = []
    for operation in OPERATIONS:
        count = operation.count
        if number % 2:
            theirs = baseline.measure(operation.baseline, count)
            mine = operation.measure(ours, count)
        else:
            mine = operation.measure(ours, count)
            theirs = baseline.measure(operation.baseline, count)
        results.append((mine / count / 1000, theirs / count / 1000))
    return results
