# SPDX-License-Identifier: Apache-2.0
"""The round-trip check: a guest migrated k times ends with the same digest as one that never was.

The guest runs the chain payload, whose digest runs through all of its registers: what a migration loses or
changes changes the end. Each migration is checked as well by capturing the restored guest again. What the guest does
not use has values of its own from the beginning, which have to be there at the end: see vmm.state.meant.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vmm.guest.architecture import chains
from vmm.guest.base import BaseGuest
from vmm.guest.layout import Regions
from vmm.kvm.exits import Budget
from vmm.kvm.system import Kvm
from vmm.state.capture import capture, restore, verify_vcpu
from vmm.state.errors import StateRefused
from vmm.state.meant import Meant, architecture, lost
from vmm.state.stream.decode import read_state
from vmm.state.stream.encode import write_state
from vmm.state.validate import validate
from vmm.state.value import VmState
from vmm.state.vcpu import restore_vcpu, steps

__all__ = ["HOPS", "Report", "RoundTripFailed", "from_stream", "roundtrip", "to_stream"]

_MILLISECONDS = 1000


class RoundTripFailed(Exception):
    """A migration lost or changed something, or could not be made; the message says in which round what."""


@dataclass(slots=True)
class Report:
    """One guest's way: ``digest`` is what it ended with, ``expected`` what a guest that never moved computes.

    Of several vCPUs each has a digest: they follow each other, with a space between two.
    """

    level: str
    hop: str
    rounds: int
    steps: int
    seed: int
    expected: str = ""
    digest: str = ""
    unmoved: str = ""
    differences: list[str] = field(default_factory=list)
    vcpus: int = 1
    stream_bytes: int = 0
    seconds: float = 0.0
    median_ms: float = 0.0

    @property
    def good(self) -> bool:
        """Whether nothing was lost: the digests are those of the reference, and no state differed."""
        return not self.differences and self.expected == self.digest == self.unmoved

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "level": self.level,
            "hop": self.hop,
            "rounds": self.rounds,
            "steps": self.steps,
            "seed": self.seed,
            "vcpus": self.vcpus,
            "good": self.good,
            "expected": self.expected,
            "unmoved": self.unmoved,
            "digest": self.digest,
            "differences": self.differences,
            "stream_bytes": self.stream_bytes,
            "seconds": round(self.seconds, 3),
            "median_ms": round(self.median_ms, 3),
        }


def to_stream(state: VmState) -> bytes:
    """Return a state as the bytes of a stream, without the decoded fields."""
    file = io.BytesIO()
    write_state(file, state, level=None)
    return file.getvalue()


def from_stream(data: bytes) -> VmState:
    """Return the state in a stream, validated."""
    state = read_state(io.BytesIO(data))
    validate(state)
    return state


# --- ways from one VM to the next -----------------------------------------------------------------


class _Hop:
    """One way to migrate: takes a guest that has left at a tick, returns the one that continues."""

    # Ticks that the guest comes on while it is moved.
    TICKS = 0

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.stream_bytes = 0

    def move(self, guest: BaseGuest) -> BaseGuest:
        """Return the guest's successor; ``guest`` is closed unless it is the same."""
        raise NotImplementedError


class _InPlace(_Hop):
    """L0: every part is written back to the same vCPU and read again."""

    def move(self, guest: BaseGuest) -> BaseGuest:
        state = capture(guest, memory=False)
        # What is chosen once cannot be chosen again: the vCPU has run.
        order = [step.name for step in steps() if step.name not in ("INIT", "VLS", "FINALIZE")]
        for processor, saved in zip(guest.processors, state.vcpus, strict=True):
            restore_vcpu(processor.vcpu, saved, order=order)
        for processor, saved in zip(guest.processors, state.vcpus, strict=True):
            verify_vcpu(processor.vcpu, saved)
        return guest


class _NewVm(_Hop):
    """L1: through a stream in memory into a new VM of this process."""

    def move(self, guest: BaseGuest) -> BaseGuest:
        data = to_stream(capture(guest))
        self.stream_bytes = len(data)
        twin = restore(self.kvm, from_stream(data))
        guest.close()
        return twin


class _NewProcess(_Hop):
    """L2: through another process, which inherits no permission and no file descriptor, and runs the guest on."""

    TICKS = 1

    def move(self, guest: BaseGuest) -> BaseGuest:
        data = to_stream(capture(guest))
        self.stream_bytes = len(data)
        size = sum(memory.size for memory in guest.vm.memories)
        command = [sys.executable, "-m", "vmm", "restore", "-", "--ticks", str(self.TICKS), "--save", "-"]
        command += ["--memory", str(size)]
        done = subprocess.run(command, input=data, capture_output=True, timeout=600, check=False)
        if done.returncode:
            raise StateRefused(f"the other process: {done.stderr.decode(errors='replace').strip()[-400:]}")
        twin = restore(self.kvm, from_stream(done.stdout))
        guest.close()
        return twin


HOPS: dict[str, type[_Hop]] = {"in-place": _InPlace, "vm": _NewVm, "process": _NewProcess}


# --- the check ------------------------------------------------------------------------------------


@contextmanager
def _wandering() -> Iterator[Callable[[], None]]:
    """L5: yields what pins this thread to the next CPU of its set; the set is restored at the end."""
    allowed = os.sched_getaffinity(0)
    order, at = sorted(allowed), 0

    def move() -> None:
        nonlocal at
        at += 1
        os.sched_setaffinity(0, {order[at % len(order)]})

    try:
        yield move
    finally:
        os.sched_setaffinity(0, allowed)


def _digests(chain: Any, guest: BaseGuest) -> str:
    return " ".join(digest.hex() for digest in chain.digests(guest))


def _unmoved(make: Callable[[], BaseGuest], chain: Any, timeout: float) -> str:
    with make() as guest:
        guest.finish(guest.resume(timeout=timeout))
        return _digests(chain, guest)


def roundtrip(
    kvm: Kvm, level: str, *, rounds: int, steps: int, seed: int, hop: str = "vm", timeout: float = 60.0,
    progress: Callable[[int], None] = lambda done: None, regions: Regions | None = None, vcpus: int = 1,
) -> Report:  # fmt: skip
    """Migrate a guest of the chain payload ``rounds`` times, ``steps`` ticks in all, and compare digests.

    ``hop`` is one of HOPS; ``regions`` and ``vcpus`` are as for BaseGuest. Raises RoundTripFailed if a migration is
    refused or changes the state, and ValueError for a number of rounds that does not fit into the steps.
    """
    own = steps - rounds * HOPS[hop].TICKS
    if not 1 <= rounds <= own:
        raise ValueError(
            f"{rounds} rounds need more than {steps} steps: a migration takes place at a tick of its own"
        )
    chain = chains()

    def make() -> BaseGuest:
        guest = chain.make_guest(kvm, level, steps, seed, regions=regions, vcpus=vcpus)
        return guest

    report = Report(level, hop, rounds, steps, seed, vcpus=vcpus)
    report.unmoved = _unmoved(make, chain, timeout)
    report.expected = " ".join(chain.reference(level, steps, one).hex() for one in chain.seeds(seed, vcpus))
    way = HOPS[hop](kvm)
    started, times = time.perf_counter(), []
    guest = make()
    marks = [architecture().mark(processor.vcpu) for processor in guest.processors]
    with _wandering() as wander:
        try:
            for number in range(rounds):
                wander()
                ticks = _at(number + 1, rounds, own) - _at(number, rounds, own)
                exit = guest.resume(timeout, ticks=ticks)
                if not isinstance(exit, Budget):
                    raise RoundTripFailed(f"round {number + 1}: the guest left with {exit} before its next tick")
                before = time.perf_counter()
                guest = _move(way, guest, number)
                times.append(time.perf_counter() - before)
                progress(number + 1)
            guest.finish(guest.resume(timeout), "the migrated guest")
            report.digest = _digests(chain, guest)
            report.differences += _unmarked(guest, marks)
        finally:
            guest.close()
    report.stream_bytes = way.stream_bytes
    report.seconds = time.perf_counter() - started
    report.median_ms = _MILLISECONDS * statistics.median(times)
    return report


def _unmarked(guest: BaseGuest, marks: list[Meant]) -> list[str]:
    """What was written before the guest ran, and is otherwise at its end: by vCPU and register, with both values."""
    state = capture(guest, memory=False)
    return [
        f"vCPU {vcpu.identifier} {text} (what was written before the guest ran, and what is there now)"
        for vcpu, meant in zip(state.vcpus, marks, strict=True)
        for text in lost(state.arch, meant, vcpu)
    ]


def _at(number: int, rounds: int, steps: int) -> int:
    """Return the tick of migration ``number``, counted from 1: spread evenly, each later than the one before."""
    return -(-number * steps // (rounds + 1))


def _move(way: _Hop, guest: BaseGuest, number: int) -> BaseGuest:
    try:
        return way.move(guest)
    except StateRefused as error:
        raise RoundTripFailed(f"round {number + 1}: {error}") from error
