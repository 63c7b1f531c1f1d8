# SPDX-License-Identifier: Apache-2.0
"""What differs between the memory of two streams, page by page as they are read: neither is held."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from vmm.state.compare import Difference, differing_pages
from vmm.state.stream.memory import Piece
from vmm.state.value import PAGE, MemoryState

__all__ = ["page_differences"]

_ZERO = bytes(PAGE)
_END = 1 << 64

# Where a page is, and what it holds.
_Page = tuple[int, bytes]


@dataclass
class _Found:
    """The pages of one region that differ: how many, and the first with both its contents."""

    pages: int = 0
    gpa: int = 0
    ours: bytes = b""
    theirs: bytes = b""

    def add(self, gpa: int, ours: bytes, theirs: bytes) -> None:
        if not self.pages:
            self.gpa, self.ours, self.theirs = gpa, ours, theirs
        self.pages += 1

    def __str__(self) -> str:
        return differing_pages(self.pages, self.gpa, self.ours, self.theirs)


def page_differences(
    first: tuple[MemoryState, ...], ours: Iterable[Piece], second: tuple[MemoryState, ...], theirs: Iterable[Piece]
) -> list[Difference]:
    """Return the regions of the same place and size whose contents differ, as vmm.state.compare does.

    All pieces are taken, to their end; StreamError if they are of a stream that is damaged there.
    """
    shared = sorted(
        {(region.gpa, region.size) for region in first} & {(region.gpa, region.size) for region in second}
    )
    found = [_Found() for _ in shared]
    for gpa, one, other in _side_by_side(_pages(first, ours), _pages(second, theirs)):
        if one != other:
            place = bisect_right(shared, gpa, key=_start) - 1
            if place >= 0 and gpa < sum(shared[place]):
                found[place].add(gpa, one, other)
    return [
        Difference("memory", f"region at {gpa:#x}", str(pages))
        for (gpa, _), pages in zip(shared, found, strict=True)
        if pages.pages
    ]


def _start(region: tuple[int, int]) -> int:
    return region[0]


def _pages(regions: tuple[MemoryState, ...], pieces: Iterable[Piece]) -> Iterator[_Page]:
    """Yield pages by their addresses; only regions that do not ascend have to be held for that."""
    if any(before.gpa + before.size > after.gpa for before, after in pairwise(regions)):
        pieces = sorted(pieces, key=lambda piece: piece.gpa)
    for _, gpa, data in pieces:
        for offset in range(0, len(data), PAGE):
            yield gpa + offset, bytes(data[offset : offset + PAGE])


def _side_by_side(ours: Iterator[_Page], theirs: Iterator[_Page]) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield each page that one of them has, with the contents of both."""
    nothing = (_END, _ZERO)
    one, other = next(ours, nothing), next(theirs, nothing)
    while (gpa := min(one[0], other[0])) < _END:
        yield gpa, one[1] if one[0] == gpa else _ZERO, other[1] if other[0] == gpa else _ZERO
        here, there = one[0] == gpa, other[0] == gpa
        one = next(ours, nothing) if here else one
        other = next(theirs, nothing) if there else other
