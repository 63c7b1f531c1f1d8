# SPDX-License-Identifier: Apache-2.0
"""Memory on its way: digests, runs, what is sent and what arrives, and whether the dirty log tells all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patience import LIMIT
from vmm._kvm import ffi
from vmm.kvm.coherence import Coherence
from vmm.migration.errors import MigrationError, ProtocolError
from vmm.migration.line import PipeLine, SocketLine
from vmm.migration.messages import MEMORY_HEAD, Codec
from vmm.migration.pages import PAGE, RUN_SIZE, Key, PageTable
from vmm.migration.precopy import MemoryReceiver, MemorySender
from vmm.migration.wire import Channel, Kind

_KEY = Key(bytes(range(32)))
_PAGES = 300


def _words(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


def _nh(page: bytes, seed: bytes) -> int:
    """NH as the paper has it, in Python."""
    key = _words(hashlib.shake_256(b"vmm page digests" + seed).digest(PAGE))
    words = _words(page)
    mask = (1 << 64) - 1
    return sum(
        ((words[i] + key[i]) & mask) * ((words[i + 1] + key[i + 1]) & mask) for i in range(0, len(words), 2)
    ) % (1 << 128)


def _bitmap(pages: set[int], size: int = _PAGES) -> Any:
    bitmap = ffi.new("uint64_t[]", -(-size // 64))
    for page in pages:
        bitmap[page // 64] |= 1 << page % 64
    return bitmap


def _memory(full: set[int], size: int = _PAGES, seed: int = 0) -> bytearray:
    numbers = random.Random(seed)
    memory = bytearray(size * PAGE)
    for page in full:
        memory[page * PAGE : (page + 1) * PAGE] = numbers.randbytes(PAGE)
    return memory


def _runs(*runs: tuple[int, int, int]) -> bytes:
    return b"".join(number.to_bytes(4, "little") for run in runs for number in run)


def _send_all(table: PageTable, dirty: set[int], pages: int) -> None:
    for _ in table.chunks(_bitmap(dirty, pages), 1, 0, pages, 10):
        table.pack()


# --- digests and runs -----------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**32))
@settings(max_examples=20)
def test_a_page_digest_is_nh(seed: bytes, number: int) -> None:
    memory = _memory({1}, 3, number)
    table = PageTable(memoryview(memory), Key(seed))
    _send_all(table, {0, 1, 2}, 3)
    digests = [table._digests[page].high << 64 | table._digests[page].low for page in range(3)]
    expected = (_nh(bytes(memory[PAGE : 2 * PAGE]), seed) - _nh(bytes(PAGE), seed)) % (1 << 128)
    assert digests == [0, expected, 0]


@given(st.sets(st.integers(0, _PAGES - 1)), st.sets(st.integers(0, _PAGES - 1)), st.integers(1, 40), st.data())
@settings(max_examples=200)
def test_every_dirty_page_is_sent_exactly_once(
    dirty: set[int], full: set[int], most: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, _PAGES))
    end = data.draw(st.integers(first, _PAGES + 5))
    per_bit = data.draw(st.sampled_from([1, 4, 16]))
    memory = _memory(full)
    table = PageTable(memoryview(memory), _KEY)
    found: list[tuple[int, bool]] = []
    for chunk in table.chunks(_bitmap(dirty), per_bit, first, end, most):
        runs = [chunk.runs[at : at + RUN_SIZE] for at in range(0, len(chunk.runs), RUN_SIZE)]
        pages = []
        for run in runs:
            start, count, kind = (int.from_bytes(run[at : at + 4], "little") for at in (0, 4, 8))
            pages += [(page, bool(kind)) for page in range(start, start + count)]
        assert sum(kind for _, kind in pages) <= most
        assert (chunk.size // PAGE, chunk.zeros) == (sum(k for _, k in pages), sum(not k for _, k in pages))
        assert table.pack() == b"".join(
            bytes(memory[page * PAGE : (page + 1) * PAGE]) for page, kind in pages if kind
        )
        found += pages
    wanted = [page for page in range(first, min(end, _PAGES)) if page // per_bit in dirty]
    assert found == [(page, page in full) for page in wanted]


def test_more_runs_than_fit_one_message_are_split() -> None:
    pages = 5000
    dirty = set(range(0, pages, 2))
    table = PageTable(memoryview(_memory(set(range(0, pages, 4)), pages)), _KEY)
    chunks = list(table.chunks(_bitmap(dirty, pages), 1, 0, pages, 1 << 20))
    assert len(chunks) == 3
    assert sum(chunk.size // PAGE + chunk.zeros for chunk in chunks) == len(dirty)


@pytest.mark.parametrize(
    "runs",
    [
        b"",
        b"short",
        _runs((0, 0, 1)),
        _runs((0, 1, 2)),
        _runs((_PAGES, 1, 1)),
        _runs((_PAGES - 1, 2, 0)),
        _runs((0, 0xFFFFFFFF, 1)),
        _runs((0xFFFFFFFF, 0xFFFFFFFF, 1)),
        _runs((5, 2, 1), (6, 1, 1)),
        _runs((5, 1, 1), (4, 1, 1)),
        _runs(*((page, 1, page & 1) for page in range(1025))),
    ],
)
def test_a_strangers_invalid_runs_are_refused(runs: bytes) -> None:
    memory = _memory({1, 2, 3})
    before = bytes(memory)
    table = PageTable(memoryview(memory), _KEY)
    with pytest.raises(ProtocolError, match=r"are not 1 to 1024 runs|do not ascend within a region"):
        table.accept(runs)
    assert memory == before


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_for_runs_stay_within_the_region(runs: bytes) -> None:
    memory = bytearray(4 * PAGE)
    table = PageTable(memoryview(memory), _KEY)
    try:
        size = table.accept(runs)
    except ProtocolError:
        return
    assert size <= len(memory)
    table.unpack(memoryview(bytes([7]) * size))
    assert memory.count(7) == size


def test_a_change_that_no_bit_names_is_noticed() -> None:
    memory = _memory(set(range(10)), 20)
    table = PageTable(memoryview(memory), _KEY)
    _send_all(table, set(range(20)), 20)
    assert table.changed(_bitmap(set(), 20), 1) == [] == table.rehash()
    memory[3 * PAGE] ^= 1
    memory[15 * PAGE + 4095] = 1
    assert table.changed(_bitmap(set(), 20), 1) == [3, 15] == table.rehash()
    assert table.changed(_bitmap({3}, 20), 1) == [15]
    assert table.changed(_bitmap({0}, 20), 4) == [15]


def test_the_digest_of_all_memory_is_renewed() -> None:
    pages = 10_000  # three segments
    memory = bytearray(pages * PAGE)
    table = PageTable(memoryview(memory), _KEY)
    empty = table.digest()
    assert len(empty) == 3 and empty[0] == empty[1] != empty[2]
    memory[4096 * PAGE] = 1
    _send_all(table, {4096}, pages)
    assert [a == b for a, b in zip(empty, table.digest(), strict=True)] == [True, False, True]
    memory[4096 * PAGE] = 0
    _send_all(table, {4096}, pages)
    assert table.digest() == empty
    assert [table.segment_range(n) for n in (0, 2)] == [(0, 16 << 20), (32 << 20, pages * PAGE)]


# --- both sides -----------------------------------------------------------------------------------


class _Region(SimpleNamespace):
    """A memory region without a VM."""

    def __init__(self, memory: bytearray, gpa: int = 0) -> None:
        given = {"view": memoryview(memory), "size": len(memory), "gpa": gpa, "coherence": Coherence.COHERENT}
        super().__init__(**given, flush=lambda *_: None)


class _Log:
    """A dirty log that somebody else fills in."""

    def __init__(self, *regions: _Region) -> None:
        self.memories = list(regions)
        self.bitmaps = [_bitmap(set(range(region.size // PAGE)), region.size // PAGE) for region in regions]

    def protect(self, region: int, first: int, end: int) -> None:
        assert first % 64 == 0

    def count(self) -> int:
        return 0

    def forget(self, region: int, first: int, end: int) -> None:
        for page in range(first, end):
            self.bitmaps[region][page // 64] &= ~(1 << page % 64)


@contextmanager
def _both(
    source: list[_Region], target: list[_Region], codec: int = Codec.RAW, rate: int = 0,
    between: Callable[[bytes], bytes] | None = None,
) -> Iterator[tuple[MemorySender, MemoryReceiver, _Log, list[Exception]]]:  # fmt: skip
    left, right = socket.socketpair()
    ours, theirs = Channel(SocketLine(left, "receiver", LIMIT)), Channel(SocketLine(right, "source", LIMIT))
    log, errors = _Log(*source), list[Exception]()
    sender = MemorySender(ours, log, _KEY, codec=codec, rate=rate, check=lambda: None)  # type: ignore[arg-type]
    receiver = MemoryReceiver(theirs, target, _KEY, codec=codec)  # type: ignore[arg-type]

    def receive() -> None:
        try:
            while True:
                message = theirs.receive(Kind.MEMORY, Kind.ROUND, Kind.SETTLED)
                if message.kind is Kind.SETTLED:
                    return
                if message.kind is Kind.ROUND:
                    theirs.send(Kind.ROUND_DONE)
                else:
                    receiver.take(message.body)
        except Exception as error:
            errors.append(error)
            theirs.line.close()

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        yield sender, receiver, log, errors
        ours.send(Kind.SETTLED)
    finally:
        thread.join()
        ours.line.close()
        theirs.line.close()
        sender.close()
        receiver.close()


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD])
def test_memory_arrives_unchanged(codec: int) -> None:
    memory, there = _memory({*range(40, 200), 250}), bytearray(_PAGES * PAGE)
    memory[60 * PAGE : 100 * PAGE] = bytes(range(256)) * (40 * PAGE // 256)  # compresses well
    small, small_there = _memory({0}, 1, seed=5), bytearray(PAGE)
    regions = [_Region(memory), _Region(small, 1 << 30)], [_Region(there), _Region(small_there, 1 << 30)]
    with _both(*regions, codec=codec) as (sender, receiver, log, errors):
        sent, _ = sender.round()
        assert there == memory and small_there == small
        assert (sender.traffic.pages, sender.traffic.zeros) == (162, _PAGES + 1 - 162)
        assert sent == sender.traffic.sent == receiver.received + sender.traffic.sent - receiver.received
        assert (sent < 130 * PAGE) == (codec == Codec.ZSTD)
        # A page becomes zeros, another one something else, and nothing else goes over the line.
        memory[70 * PAGE : 71 * PAGE] = bytes(PAGE)
        memory[299 * PAGE] = 9
        for page in (70, 71, 299):
            log.bitmaps[0][page // 64] |= 1 << page % 64
        again, _ = sender.round()
        assert there == memory and again < 3 * PAGE
        receiver.compare(sender.digests(), reread=True)
    assert not errors


def test_a_rate_is_not_exceeded() -> None:
    memory, there = _memory(set(range(_PAGES))), bytearray(_PAGES * PAGE)
    for _ in range(10):  # a machine under load may be slower than it is allowed to be, but not each time
        with _both([_Region(memory)], [_Region(there)], rate=4 << 20) as (sender, _, _, errors):
            sent, seconds = sender.round()
        assert not errors and there == memory
        assert 0.9 * sent / (4 << 20) <= seconds
        if seconds <= 3 * sent / (4 << 20):
            return
    pytest.fail(f"{sent} bytes took {seconds:.2f} s at 4 MiB/s")


@pytest.mark.parametrize("page", [0, 199, _PAGES - 1])
def test_a_bit_that_flips_in_memory_is_noticed(page: int) -> None:
    memory, there = _memory({0, 199}), bytearray(_PAGES * PAGE)
    with _both([_Region(memory, 1 << 20)], [_Region(there, 1 << 20)]) as (sender, receiver, _, _):
        sender.round()
        there[page * PAGE + 77] ^= 4
        receiver.compare(sender.digests())
        with pytest.raises(
            MigrationError, match=f"1 pages are not what arrived, the first at {(1 << 20) + page * PAGE:#x}"
        ):
            receiver.compare(sender.digests(), reread=True)


class _Flipping(PipeLine):
    """A line that changes one byte of what is received."""

    def __init__(self, connected: socket.socket, at: int) -> None:
        super().__init__(connected.fileno(), os.dup(connected.fileno()), "source", LIMIT)
        self._at = at

    def receive_into(self, view: memoryview) -> None:
        super().receive_into(view)
        if 0 <= self._at < len(view):
            view[self._at] ^= 0x20
        self._at -= len(view)


@pytest.mark.parametrize("place", [0, 20, 45, 60, 100, PAGE, 150 * PAGE])
def test_a_bit_that_flips_on_the_line_is_noticed(place: int) -> None:
    memory, there = _memory(set(range(_PAGES))), bytearray(_PAGES * PAGE)
    left, right = socket.socketpair()
    ours, theirs = Channel(SocketLine(left, "receiver", LIMIT)), Channel(_Flipping(right, place))
    sender = MemorySender(ours, _Log(_Region(memory)), _KEY, codec=Codec.RAW, rate=0, check=lambda: None)  # type: ignore[arg-type]
    receiver = MemoryReceiver(theirs, [_Region(there)], _KEY, codec=Codec.RAW)  # type: ignore[list-item]

    def send() -> None:
        with contextlib.suppress(MigrationError):  # the other side has heard enough
            sender.last_round()

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(MigrationError, match=r"damaged|is not what was sent"):
        receiver.take(theirs.receive(Kind.MEMORY).body)
        receiver.compare(sender.digests())
    theirs.line.close()
    right.detach()
    thread.join(LIMIT)
    left.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        MEMORY_HEAD.pack(1, 0, PAGE) + _runs((0, 1, 1)),
        MEMORY_HEAD.pack(0, 0, PAGE - 1) + _runs((0, 1, 1)),
        MEMORY_HEAD.pack(0, 0, 1 << 60) + _runs((0, 1, 1)),
        MEMORY_HEAD.pack(0, 2, PAGE) + _runs((0, 1, 1)),
        MEMORY_HEAD.pack(0, 1, PAGE) + _runs((0, 1, 1)),
        MEMORY_HEAD.pack(0, 1, 0) + _runs((0, 1, 1)),
        MEMORY_HEAD.pack(0, 1, 1 << 60) + _runs((0, 1, 1)),
        MEMORY_HEAD.pack(0, 1, PAGE) + _runs((0, 300, 1)),
        MEMORY_HEAD.pack(0, 0, PAGE) + _runs((0, 1, 0)),
    ],
)
@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD])
def test_an_invalid_memory_message_is_refused(body: bytes, codec: int) -> None:
    left, right = socket.socketpair()
    channel = Channel(SocketLine(right, "source", 0.1))
    receiver = MemoryReceiver(channel, [_Region(bytearray(_PAGES * PAGE))], _KEY, codec=codec)  # type: ignore[list-item]
    with pytest.raises(ProtocolError):
        receiver.take(body)
    left.close()
    right.close()


@pytest.mark.parametrize("size", [PAGE // 2, PAGE * 1000])
def test_a_compressed_page_of_another_size_is_refused(size: int) -> None:
    import zstandard

    packed = zstandard.ZstdCompressor().compress(bytes(size))
    left, right = socket.socketpair()
    left.sendall(packed)
    receiver = MemoryReceiver(
        Channel(SocketLine(right, "source", 1)), [_Region(bytearray(_PAGES * PAGE))], _KEY, codec=Codec.ZSTD  # type: ignore[list-item]
    )  # fmt: skip
    with pytest.raises(ProtocolError, match="of compressed pages promise to be"):
        receiver.take(MEMORY_HEAD.pack(0, Codec.ZSTD, len(packed)) + _runs((0, 1, 1)))
    left.close()
    right.close()
