# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed, and what one input may cost.

A reader that is right ends in a value or in an error of its own; everything else is a finding.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import documents, lines, streams
from tests.fuzz.trees import Leaf

__all__ = ["MEMORY", "NOISE", "RECORDED", "SECONDS", "TARGETS", "Excessive", "Target", "judge", "most"]

SECONDS = 1.0  # of processor time, for one input
MEMORY = 64 << 20  # bytes, for one input; the guests here are not larger than 16 MiB
RECORDED = Path(__file__).parents[1] / "data" / "fuzz"
# What is not measured exactly: a process's memory grows by little and little without anybody's fault.
NOISE = 16 << 20


class Excessive(AssertionError):
    """One input took too long, or too much memory."""


@dataclass(frozen=True, slots=True)
class Target:
    """One reader: valid inputs to begin with, ``read``, which tells whether the bytes were taken and raises only what
    it must not, and ``change``, which knows the form of its inputs."""

    seeds: Callable[[], Iterable[bytes]]
    read: Callable[[bytes], bool]
    change: Callable[[random.Random, bytes, Leaf], bytes]


TARGETS = {
    "stream": Target(streams.seeds, streams.read, streams.change),
    "wire": Target(lines.seeds, lines.read, lines.change),
    "probe": Target(documents.seeds, documents.read, documents.change),
}


def judge(target: Target, data: bytes, slowness: float = 1.0) -> bool:
    """Read one input and tell whether it was taken; Excessive if it costs too much, or what the reader raises.

    ``slowness`` is how much slower this machine may be than one that has nothing else to do.
    """
    before, began = most(), time.process_time()
    taken = target.read(data)
    seconds = time.process_time() - began
    if seconds > SECONDS * slowness:
        raise Excessive(f"{seconds:.2f} s of processor time for {len(data)} bytes")
    if most() - before > NOISE:
        _measure(target, data)
    return taken


def most() -> int:
    """The most memory in bytes that this process ever had, which is quick to ask for."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _measure(target: Target, data: bytes) -> None:
    """Read it once more, with the most memory counted anew from what there is now."""
    _forget()
    before = most()
    target.read(data)
    growth = most() - before
    _forget()
    if growth > MEMORY:
        raise Excessive(f"{growth >> 20} MiB of memory for {len(data)} bytes")


def _forget() -> None:
    with suppress(OSError):  # a kernel without CONFIG_PROC_PAGE_MONITOR: then it is since the process began
        Path("/proc/self/clear_refs").write_text("5")
