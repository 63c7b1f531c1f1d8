# SPDX-License-Identifier: Apache-2.0
"""The memory on its way: round after round what the guest wrote since, until little enough is left.

Pages go straight from guest memory to the line and from the line into guest memory. Of pages of zeros only the
numbers are sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import zstandard

from vmm.kvm.coherence import Coherence
from vmm.kvm.dirty_log import DirtyLog
from vmm.kvm.memory import PAGE_SIZE, GuestMemory
from vmm.migration.errors import MigrationError, ProtocolError
from vmm.migration.messages import MEMORY_HEAD, Codec
from vmm.migration.pages import PAGE, Chunk, Key, PageTable
from vmm.migration.wire import Channel, Kind

__all__ = ["MemoryReceiver", "MemorySender", "Traffic"]

# Pages with data in one message: 32 MiB. What Python does for a message finds the caches full of pages, so there
# are few.
_CHUNK, _COMPRESSED_CHUNK = 8192, 256
# With a limit on the rate, messages per second at least.
_PACE = 20
# Pages that are protected in one go, right before they are looked at: 64 MiB.
_STRIDE = 16384
_LEVEL = 1


@dataclass(slots=True)
class Traffic:
    """What was sent: pages with data and of zeros, bytes on the line for them, rounds."""

    pages: int = 0
    zeros: int = 0
    sent: int = 0
    rounds: int = 0
    seconds: float = 0.0
    dirty: list[int] = field(default_factory=list)


def _tables(memories: list[GuestMemory], key: Key) -> list[PageTable]:
    return [PageTable(memory.view, key) for memory in memories]


class MemorySender:
    """Sends what a dirty log names. ``check`` is called between chunks, and may raise to end the migration."""

    def __init__(
        self, channel: Channel, log: DirtyLog, key: Key, *, codec: int, rate: int, check: Callable[[], None]
    ) -> None:
        self.traffic = Traffic()
        self._channel, self._log, self._codec, self._rate, self._check = channel, log, codec, rate, check
        self._per_bit = PAGE_SIZE // PAGE
        self._tables = _tables(log.memories, key)
        self._compressor: Any = None
        if codec == Codec.ZSTD:
            self._compressor = zstandard.ZstdCompressor(level=_LEVEL)

    def round(self) -> tuple[int, float]:
        """Send all dirty pages; returns the bytes and the seconds until the receiver had them."""
        began, before = time.monotonic(), self.traffic.sent
        self._send_dirty(self._rate)
        self._channel.send(Kind.ROUND)
        self._channel.receive(Kind.ROUND_DONE)
        seconds = time.monotonic() - began
        self.traffic.seconds += seconds
        return self.traffic.sent - before, seconds

    def last_round(self) -> None:
        """Send all dirty pages of the stopped guest, and all of memory that a device may have written unseen."""
        for region, memory in enumerate(self._log.memories):
            if memory.coherence is Coherence.NON_COHERENT:
                self._log.mark_all(region)
        self._send_dirty(0)

    def _send_dirty(self, rate: int) -> None:
        began, before = time.monotonic(), self.traffic.sent
        self.traffic.rounds += 1
        self.traffic.dirty.append(self._log.count())
        for region, table in enumerate(self._tables):
            self._log.memories[region].flush()
            for first in range(0, table.pages, _STRIDE):
                for chunk in self._stride(region, table, first, rate):
                    self._check()
                    self._send(region, chunk)
                    if rate:
                        ahead = (self.traffic.sent - before) / rate - (time.monotonic() - began)
                        time.sleep(max(0.0, ahead))

    def _stride(self, region: int, table: PageTable, first: int, rate: int) -> Iterator[Chunk]:
        """Yield the dirty pages of some memory, which is logged anew before it is looked at."""
        end = min(first + _STRIDE, table.pages)
        bits = first // self._per_bit, -(-end // self._per_bit)
        self._log.protect(region, *bits)
        most = _COMPRESSED_CHUNK if self._compressor else _CHUNK
        if rate:
            most = max(1, min(most, rate // PAGE // _PACE))
        yield from table.chunks(self._log.bitmaps[region], self._per_bit, first, end, most)
        self._log.forget(region, *bits)

    def _send(self, region: int, chunk: Chunk) -> None:
        table, packed = self._tables[region], None
        if self._compressor and chunk.size:
            packed = self._compressor.compress(table.pack())
            if len(packed) >= chunk.size:
                packed = None
        codec, length = (Codec.RAW, chunk.size) if packed is None else (Codec.ZSTD, len(packed))
        self._channel.send(Kind.MEMORY, MEMORY_HEAD.pack(region, codec, length), chunk.runs)
        if packed is None:
            table.send(self._channel.line)
        else:
            self._channel.line.send(packed)
        self.traffic.pages += chunk.size // PAGE
        self.traffic.zeros += chunk.zeros
        self.traffic.sent += length + len(chunk.runs)

    def audit(self) -> None:
        """Compare all memory that is not dirty with what was sent; the guest is paused.

        Raises MigrationError for a page that changed without a word of KVM's about it.
        """
        for region, (memory, table) in enumerate(zip(self._log.memories, self._tables, strict=True)):
            if pages := table.changed(self._log.bitmaps[region], self._per_bit):
                raise MigrationError(
                    f"{len(pages)} pages changed that the dirty log does not name, the first at "
                    f"{memory.gpa + pages[0] * PAGE:#x}: this KVM loses dirty pages, do not migrate guests with it"
                )

    def digests(self) -> tuple[tuple[bytes, ...], ...]:
        """Return the digests of each region's memory, as it was sent."""
        return tuple(tuple(table.digest()) for table in self._tables)

    def close(self) -> None:
        """Let go of the guest's memory."""
        for table in self._tables:
            table.close()


class MemoryReceiver:
    """Puts what arrives into the guest's memory, which is all zeros before."""

    def __init__(self, channel: Channel, memories: list[GuestMemory], key: Key, *, codec: int) -> None:
        self.received = 0
        self._channel, self._memories, self._codec = channel, memories, codec
        self._tables = _tables(memories, key)
        self._decompressor = zstandard.ZstdDecompressor()

    def take(self, body: bytes) -> None:
        """Take the pages that a MEMORY message announces from the line; ProtocolError if it is malformed."""
        if len(body) < MEMORY_HEAD.size:
            raise ProtocolError(f"MEMORY of {len(body)} bytes is too short")
        region, codec, length = MEMORY_HEAD.unpack_from(body)
        if region >= len(self._tables):
            raise ProtocolError(f"MEMORY for region {region}, and the guest has {len(self._tables)}")
        table = self._tables[region]
        size = table.accept(body[MEMORY_HEAD.size :])
        if codec == Codec.RAW:
            if length != size:
                raise ProtocolError(f"MEMORY announces {size} bytes of pages and {length} bytes")
            table.receive(self._channel.line)
        else:
            table.unpack(self._unpacked(codec, length, size))
        self.received += length

    def _unpacked(self, codec: int, length: int, size: int) -> memoryview:
        if codec != Codec.ZSTD or self._codec != codec:
            raise ProtocolError(f"MEMORY with codec {codec}, which was not agreed on")
        if not 0 < length < size or size > _COMPRESSED_CHUNK * PAGE:
            raise ProtocolError(f"MEMORY announces {size} bytes of pages compressed to {length}")
        packed = bytearray(length)
        self._channel.line.receive_into(memoryview(packed))
        try:
            # What the frame promises is allocated: it has to be what was announced.
            promised = zstandard.get_frame_parameters(packed).content_size
            if promised != size:
                raise ProtocolError(f"{size} bytes of compressed pages promise to be {promised}")
            data = memoryview(self._decompressor.decompress(packed, allow_extra_data=False))
        except zstandard.ZstdError as error:
            raise ProtocolError(f"compressed pages arrived damaged ({error})") from error
        if len(data) != size:
            raise ProtocolError(f"{size} bytes of compressed pages are {len(data)}")
        return data

    def settle(self) -> None:
        """Renew the digests of regions between rounds, so that the last comparison finds little to do."""
        for table in self._tables:
            table.digest()

    def compare(self, theirs: tuple[tuple[bytes, ...], ...], *, reread: bool = False) -> None:
        """Compare what arrived with the source's digests; ``reread`` reads all memory once more.

        Raises MigrationError that says where memory is not what was sent.
        """
        if [len(digests) for digests in theirs] != [len(table.digest()) for table in self._tables]:
            raise ProtocolError("FINAL has digests for other memory than the guest's")
        for memory, table, digests in zip(self._memories, self._tables, theirs, strict=True):
            memory.flush()
            for segment, (ours, sent) in enumerate(zip(table.digest(), digests, strict=True)):
                if ours != sent:
                    first, end = table.segment_range(segment)
                    raise MigrationError(
                        f"memory between {memory.gpa + first:#x} and {memory.gpa + end:#x} is not what was sent: "
                        "it was damaged on the way"
                    )
            if reread and (pages := table.rehash()):
                raise MigrationError(
                    f"{len(pages)} pages are not what arrived, the first at {memory.gpa + pages[0] * PAGE:#x}"
                )

    def close(self) -> None:
        """Let go of the guest's memory."""
        for table in self._tables:
            table.close()
