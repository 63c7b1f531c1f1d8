# SPDX-License-Identifier: Apache-2.0
"""The writer payload: a guest that writes its memory at a rate one chooses, and proves at the end that all is right.

Each vCPU has a share of all memory beyond what the payload and its tables take. It fills it once, and then writes a
part of it again and again. See guest_payloads/*/writer.S for what every page holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm.guest.base import BaseGuest
from vmm.guest.layout import OWN_START
from vmm.guest.payload import PayloadError

__all__ = ["ENTRY", "PAGE", "PAYLOAD", "Load", "prepare", "word"]

PAYLOAD, ENTRY, PAGE = "writer", "write", 4096
_INTERVAL = 0.01  # seconds from one share of a second's pages to the next, if there are enough of them
_MICROSECONDS = 1_000_000
_NO_HOLE = 1 << 62
_MULTIPLIER, _WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Load:
    """What the guest does: pages per second of all vCPUs together, which share in percent of memory is written, and
    for how many seconds (0: no end). The pages per second are reached if the host is fast enough, and never exceeded.
    """

    rate: int
    share: int
    seconds: int

    def __post_init__(self) -> None:
        if not 1 <= self.rate <= 1 << 32 or not 1 <= self.share <= 100 or not 0 <= self.seconds <= 1 << 32:
            raise PayloadError(
                "the writer takes pages per second (1 or more), the share of memory in percent (1 to 100) and "
                f"seconds (0: no end), not {self.rate}, {self.share} and {self.seconds}"
            )

    def paced(self, vcpus: int) -> tuple[int, int, int]:
        """Return for one of so many vCPUs: pages of a burst, microseconds from burst to burst, bursts (0: no end)."""
        rate = self.rate / vcpus
        pages = max(1, round(rate * _INTERVAL))
        bursts = max(1, round(self.seconds * rate / pages)) if self.seconds else 0
        return pages, min(round(pages / rate * _MICROSECONDS), (1 << 32) - 1), bursts


def word(generation: int, address: int) -> int:
    """Return what all words of the page at ``address`` are in a generation."""
    return (generation << 40 ^ address) * _MULTIPLIER & _WORD


def prepare(guest: BaseGuest, load: Load) -> None:
    """Point all vCPUs at the payload, each with its share; PayloadError if there are not enough pages."""
    vcpus = len(guest.processors)
    ranges = _ranges(guest)
    total = sum(pages for _, pages in ranges)
    if total < vcpus:
        raise PayloadError(f"{total} free pages of memory are too few for {vcpus} vCPUs: give the guest more memory")
    for index in range(vcpus):
        first, end = total * index // vcpus, total * (index + 1) // vcpus
        start, split, gap = _place(ranges, first)
        pages = end - first
        written = max(1, pages * load.share // 100)
        parameters = (start, pages, written, *load.paced(vcpus), split, gap)
        guest.prepare_vcpu(index, ENTRY, *parameters, privilege=guest.USER)


def _ranges(guest: BaseGuest) -> list[tuple[int, int]]:
    """Return the first address and the number of pages of what is free in each region."""
    low = -(-max(OWN_START, guest.end_of_own) // PAGE) * PAGE
    first, *others = guest.vm.memories
    if len(others) > 1:
        raise PayloadError(f"the writer takes one or two memory regions, not {len(others) + 1}")
    return [(low, max(0, first.size - low) // PAGE), *((other.gpa, other.size // PAGE) for other in others)]


def _place(ranges: list[tuple[int, int]], number: int) -> tuple[int, int, int]:
    """Return where page ``number`` of all is, how many pages on from there the hole comes, and its bytes."""
    (low, pages), *others = ranges
    if not others:
        return low + number * PAGE, _NO_HOLE, 0
    high = others[0][0]
    if number >= pages:
        return high + (number - pages) * PAGE, _NO_HOLE, 0
    return low + number * PAGE, pages - number, high - (low + pages * PAGE)
