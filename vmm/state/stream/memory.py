# SPDX-License-Identifier: Apache-2.0
"""The body of a MEMORY section: some pages that follow each other.

Its head is the guest physical address (u64), the length (u32) and the encoding (u32: 0 as they are, 1 one
zstandard frame), all little-endian; the section's index is the number of the region. No CBOR here, so that a
page is copied no oftener than it has to be.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import zstandard

from vmm.state.errors import StreamError
from vmm.state.stream.container import Section
from vmm.state.value import PAGE, MemoryState

__all__ = ["CHUNK", "LEVEL", "MEMORY", "MemoryDecoder", "MemoryEncoder", "Piece", "check_region"]

MEMORY = "MEMORY"
# The most that one section holds.
CHUNK = 1 << 20
LEVEL = 1
_HEAD = struct.Struct("<QII")
_PLAIN, _ZSTANDARD = 0, 1


class Piece(NamedTuple):
    """Whole pages of a region, at most CHUNK bytes: the region's number, guest physical address and contents."""

    region: int
    gpa: int
    data: bytes | memoryview


def check_region(region: MemoryState) -> None:
    """Raise ValueError unless a region's extents are whole pages, ascend, and lie inside it."""
    end = region.gpa
    for extent in region.extents:
        if extent.gpa % PAGE or len(extent.data) % PAGE or not extent.data:
            raise ValueError(f"{len(extent.data)} bytes of memory at {extent.gpa:#x} are not whole pages")
        if extent.gpa < end or extent.gpa + len(extent.data) > region.gpa + region.size:
            raise ValueError(f"memory at {extent.gpa:#x} overlaps, goes back or leaves its region")
        end = extent.gpa + len(extent.data)


class MemoryEncoder:
    """Makes bodies; ``level`` is zstandard's, None sends all pages as they are. Not for two threads at once."""

    def __init__(self, level: int | None = LEVEL) -> None:
        self._compressor = None if level is None else zstandard.ZstdCompressor(level=level)

    def body(self, gpa: int, data: bytes | memoryview) -> tuple[bytes, bytes | memoryview]:
        """Return the two pieces of a body for whole pages at ``gpa``, at most CHUNK bytes."""
        if gpa % PAGE or len(data) % PAGE or not 0 < len(data) <= CHUNK:
            raise ValueError(f"{len(data)} bytes at {gpa:#x} are not 1 to {CHUNK // PAGE} pages")
        if self._compressor is not None:
            compressed = self._compressor.compress(data)
            if len(compressed) < len(data):
                return _HEAD.pack(gpa, len(data), _ZSTANDARD), compressed
        return _HEAD.pack(gpa, len(data), _PLAIN), data

    def bodies(self, region: MemoryState) -> Iterator[tuple[bytes, bytes | memoryview]]:
        """Yield the bodies for all that a region holds."""
        for extent in region.extents:
            view = memoryview(extent.data)
            for start in range(0, len(view), CHUNK):
                yield self.body(extent.gpa + start, view[start : start + CHUNK])


class MemoryDecoder:
    """Reads bodies; never more than CHUNK bytes come out of one. Not for two threads at once."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def _place(self, section: Section) -> tuple[int, int]:
        """Return guest physical address and length of a section's pages without taking them out."""
        if len(section.body) < _HEAD.size:
            raise StreamError(section.where, f"{len(section.body)} bytes are too few for a piece of memory")
        gpa, length, _ = _HEAD.unpack_from(section.body)
        if gpa % PAGE or length % PAGE or not 0 < length <= CHUNK:
            raise StreamError(section.where, f"{length} bytes at {gpa:#x} are not 1 to {CHUNK // PAGE} pages")
        return gpa, length

    def open(self, section: Section) -> tuple[int, bytes | memoryview]:
        """Return guest physical address and contents of a section's pages."""
        gpa, length = self._place(section)
        encoding = _HEAD.unpack_from(section.body)[2]
        data = memoryview(section.body)[_HEAD.size :]
        if encoding == _ZSTANDARD:
            return gpa, self._decompress(section, data, length)
        if encoding != _PLAIN:
            raise StreamError(section.where, f"memory with encoding {encoding} is not known to this version")
        if len(data) != length:
            raise StreamError(section.where, f"it holds {len(data)} bytes of memory but declares {length}")
        return gpa, data

    def _decompress(self, section: Section, data: memoryview, length: int) -> bytes:
        if len(data) >= length:
            raise StreamError(section.where, f"{len(data)} compressed bytes for {length} are more than it takes")
        try:
            promised = zstandard.get_frame_parameters(data).content_size
            if promised != length:
                raise StreamError(section.where, f"its frame promises {promised} bytes but it declares {length}")
            found = self._decompressor.decompress(data, max_output_size=length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise StreamError(section.where, f"its zstandard frame is damaged ({error})") from error
        if len(found) != length:
            raise StreamError(section.where, f"its frame holds {len(found)} bytes but it declares {length}")
        return found
