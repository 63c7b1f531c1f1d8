# SPDX-License-Identifier: Apache-2.0
"""Memory that waits for its guest, and is in this process once.

A stream is read to its end before there is a guest. Its pages wait in mappings of their own, and from there each is
given back to the host as soon as the guest has it: a restore takes no more memory than the guest does.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterable, Iterator

from vmm.kvm.memory import GuestMemory
from vmm.state.stream.memory import CHUNK, Piece
from vmm.state.value import Extent, MemoryState

__all__ = ["Staging"]

_ZEROS = bytes(CHUNK)
_NORESERVE = 0x4000


class _Region:
    """One region's pages in a mapping, and a sum of each CHUNK of them when they have gone."""

    def __init__(self, region: MemoryState) -> None:
        self.gpa, self.size = region.gpa, region.size
        self.area = mmap.mmap(-1, region.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        self.view = memoryview(self.area)
        self.runs: list[tuple[int, int]] = []  # offsets of what was put: first, end
        self.sums: dict[int, int] = {}

    def put(self, offset: int, data: bytes | memoryview) -> None:
        end = offset + len(data)
        self.view[offset:end] = data
        if self.runs and self.runs[-1][1] == offset:
            offset = self.runs.pop()[0]
        self.runs.append((offset, end))

    def cut(self) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Yield each CHUNK that has pages, and their offsets in it."""
        chunk, inside = 0, list[tuple[int, int]]()
        for first, end in self.runs:
            while first < end:
                here, stop = first - first % CHUNK, min(end, first - first % CHUNK + CHUNK)
                if here != chunk and inside:
                    yield chunk, inside
                    inside = []
                chunk = here
                inside.append((first, stop))
                first = stop
        if inside:
            yield chunk, inside


class Staging:
    """The memory of one guest between its stream and its restore. It goes when nobody has views of it any more."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []

    def fill(self, regions: tuple[MemoryState, ...], pieces: Iterable[Piece]) -> tuple[MemoryState, ...]:
        """Take all pieces and return the regions with views of them; they are zeros when they have been moved."""
        self._regions = [_Region(region) for region in regions]
        for number, gpa, data in pieces:
            region = self._regions[number]
            region.put(gpa - region.gpa, data)
        return tuple(
            MemoryState(
                region.gpa,
                region.size,
                tuple(Extent(region.gpa + first, region.view[first:end]) for first, end in region.runs),
            )
            for region in self._regions
        )

    def move_to(self, memories: Iterable[GuestMemory]) -> None:
        """Write all pages to a guest's memory, which is zero, and give each CHUNK of them back to the host."""
        for region, memory in self._pairs(memories):
            for chunk, inside in region.cut():
                end = min(chunk + CHUNK, region.size)
                region.sums[chunk] = zlib.crc32(region.view[chunk:end])
                for first, stop in inside:
                    memory.write(region.gpa + first, region.view[first:stop])
                region.area.madvise(mmap.MADV_DONTNEED, chunk, end - chunk)

    def wrong(self, memories: Iterable[GuestMemory]) -> str:
        """Return where a guest's memory is not what was moved to it; nothing if it is."""
        for region, memory in self._pairs(memories):
            view = memory.current()
            for chunk in range(0, region.size, CHUNK):
                there = view[chunk : min(chunk + CHUNK, region.size)]
                if chunk in region.sums:
                    same = zlib.crc32(there) == region.sums[chunk]
                else:
                    same = bytes(there) == _ZEROS[: len(there)]
                if not same:
                    return f"{len(there)} bytes at {region.gpa + chunk:#x} are others"
        return ""

    def _pairs(self, memories: Iterable[GuestMemory]) -> list[tuple[_Region, GuestMemory]]:
        there = {memory.gpa: memory for memory in memories}
        return [(region, there[region.gpa]) for region in self._regions]
