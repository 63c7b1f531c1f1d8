# SPDX-License-Identifier: Apache-2.0
"""Guest memory that the host's caches do not keep up with: what it needs before it is read, saved or sent.

A device whose DMA is not snooped bypasses the caches, and a guest whose page attributes the CPU honours (x86:
PAT) may do the same through an uncached or write-combining mapping. The VMM's own mapping is
cached, so it may read a stale line, and a line that it wrote may not have reached memory. Such memory is
``Coherence.NON_COHERENT``: its cache lines are written back and invalidated before a read and after a write.
Source: Intel SDM volume 3, 12.3 "Methods of caching available", 12.12 "Page attribute table"; the kernel's
Documentation/virt/kvm/x86/errata.rst and virt/kvm/vfio.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from vmm._kvm import ffi, lib

__all__ = [
    "Coherence",
    "NonCoherentMemory",
    "Plan",
    "Policy",
    "flush",
    "instruction",
    "line_size",
    "merge",
    "plan",
]


class Coherence(StrEnum):
    """Whether the host's cached mapping of guest memory is always up to date."""

    COHERENT = "coherent"  # everybody who writes it is snooped: the caches are up to date
    NON_COHERENT = "non-coherent"  # a device's DMA, or an uncached mapping of the guest, may bypass the caches


class Policy(StrEnum):
    """What a migration does about non-coherent memory."""

    REFUSE = "refuse"
    FLUSH = "flush"


class NonCoherentMemory(Exception):
    """A policy refuses to move this memory; the message names it and says what to do."""


class Region(Protocol):
    """What a plan has to know of guest memory; sizes in bytes."""

    slot: int
    gpa: int
    size: int
    coherence: Coherence


R = TypeVar("R", bound=Region)


def line_size() -> int:
    """Return the bytes that one flush instruction covers; 0 if this CPU has none for user programs."""
    return int(lib.vmm_flush_line())


def instruction() -> str:
    """Return the flush instruction's name, such as CLFLUSHOPT; empty if there is none."""
    name = lib.vmm_flush_name()
    return ffi.string(name).decode() if name != ffi.NULL else ""


def merge(ranges: Iterable[tuple[int, int]], unit: int) -> list[tuple[int, int]]:
    """Return (offset, length) ranges widened to multiples of ``unit`` bytes, in order, none touching another.

    >>> merge([(130, 1), (60, 8), (0, 1)], 64)
    [(0, 192)]
    """
    merged: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if length <= 0:
            continue
        start, end = offset // unit * unit, -(-(offset + length) // unit) * unit
        if merged and start <= sum(merged[-1]):
            start, before = merged.pop()
            end = max(end, start + before)
        merged.append((start, end - start))
    return merged


def flush(base: int, ranges: Iterable[tuple[int, int]]) -> int:
    """Write back and invalidate the cache lines of (offset, length) ranges behind address ``base``.

    Returns how many lines that were; ``base`` has to be a line's start. Raises OSError (EOPNOTSUPP) on a CPU
    without the instruction.
    """
    line = line_size()
    merged = merge(ranges, line or 1)
    if not merged:
        return 0
    result = lib.vmm_flush(base, [number for pair in merged for number in pair], len(merged))
    if result < 0:
        raise OSError(-result, "this CPU has no instruction that flushes a cache line: guest memory must be coherent")
    return sum(length for _, length in merged) // line


@dataclass(frozen=True, slots=True)
class Plan(Generic[R]):
    """What a migration has to do about coherence: ``flushed`` are the regions to read through flushes.

    Those regions are sent whole once the vCPUs and the devices have stopped: KVM's dirty log does not see
    what a device wrote, so no earlier round may count.
    """

    policy: Policy
    flushed: tuple[R, ...]

    def lines(self) -> list[str]:
        """Return one sentence per region that needs care, for the migration's report."""
        return [
            f"{_describe(region)} is read through {instruction()} and sent whole after the stop, because its "
            "writers bypass the caches and the dirty log"
            for region in self.flushed
        ]


def plan(regions: Iterable[R], policy: Policy) -> Plan[R]:
    """Decide how ``regions`` may be moved under ``policy``.

    Raises NonCoherentMemory if the policy refuses, or if this CPU cannot flush what has to be flushed.
    """
    flushed = tuple(region for region in regions if region.coherence is Coherence.NON_COHERENT)
    if flushed and policy is Policy.REFUSE:
        names = ", ".join(map(_describe, flushed))
        raise NonCoherentMemory(
            f"{names}: non-coherent memory is not moved under the policy {policy}: "
            f"stop its devices' DMA and make it coherent, or choose the policy {Policy.FLUSH}"
        )
    if flushed and not line_size():
        raise NonCoherentMemory(f"{_describe(flushed[0])} has to be flushed, and this CPU has no instruction for it")
    return Plan(policy, flushed)


def _describe(region: Region) -> str:
    return f"slot {region.slot} ({region.size >> 10} KiB at {region.gpa:#x})"
