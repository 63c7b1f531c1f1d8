# SPDX-License-Identifier: Apache-2.0
"""A memory region as migration sees it: pages of 4096 bytes, which of them to send, and what each of them holds.

Both sides keep a digest of every page: the source of what it last sent, the receiver of what it last got. A bit
that flipped on the way, and a page that was lost or went to the wrong place, shows when the two tables are
compared, before anything is handed over. The digest of a page is NH with a random key of the migration (see
bindings/shim_pages.c): two different pages have the same with a probability of 2^-64 or less, and it takes no
longer than reading the page once; SHA-256 would be the slowest part of a migration. It does not withstand
somebody who knows the key and changes what is on the line: that is what TLS is for. Of the table itself, SHA-256.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vmm._kvm import ffi, lib
from vmm.migration.errors import ProtocolError
from vmm.migration.line import Line

__all__ = ["KEY_SIZE", "PAGE", "RUN_SIZE", "Chunk", "Key", "PageTable"]

PAGE: int = lib.VMM_PAGE
KEY_SIZE = 32
RUN_SIZE: int = ffi.sizeof("struct vmm_page_run")
_DIGEST_SIZE: int = ffi.sizeof("struct vmm_page_digest")
# The pages whose digests are hashed together: those of 16 MiB.
_SEGMENT = 4096
_MOST_RUNS = 1024
# Pages that are digested and sent, or received and digested, in one go: 1 MiB is still in a CPU's own cache.
_BLOCK = 256


class Key:
    """The key of a migration's page digests, stretched from 32 random bytes."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_SIZE:
            raise ValueError(f"a key is made from {KEY_SIZE} bytes, not {len(seed)}")
        self.seed = seed
        self.words = ffi.new("uint64_t[]", PAGE // 8)
        ffi.memmove(self.words, hashlib.shake_256(b"vmm page digests" + seed).digest(PAGE), PAGE)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some pages of a region: ``runs`` as they go over the line, ``size`` bytes that are not zeros, ``zeros`` pages
    that are."""

    runs: bytes
    size: int
    zeros: int


class PageTable:
    """The pages of one region in ``view``, each with a digest; ``pages`` of them."""

    def __init__(self, view: memoryview, key: Key) -> None:
        self.view = view
        self.pages = len(view) // PAGE
        self._key = key
        self._buffer = ffi.from_buffer("uint8_t[]", view)
        # Zeros, the digest of a page of zeros, until they are touched.
        self._table = mmap.mmap(-1, self.pages * _DIGEST_SIZE)
        self._digests = ffi.from_buffer("struct vmm_page_digest[]", self._table)
        self._runs = ffi.new("struct vmm_page_run[]", _MOST_RUNS)
        self._count = 0  # runs in use
        self._segments: dict[int, bytes] = {}

    # --- the source's side ------------------------------------------------------------------------

    def chunks(self, bitmap: Any, pages_per_bit: int, first: int, end: int, most: int) -> Iterator[Chunk]:
        """Yield the pages whose bit is set, from ``first`` to before ``end``, at most ``most`` with data a chunk.

        ``bitmap`` is a cdata ``uint64_t *`` for the whole region. Send or pack each chunk before the next.
        """
        scan = self._scan(bitmap, pages_per_bit, first, end)
        while count := lib.vmm_scan_pages(scan, self._runs, _MOST_RUNS, most):
            self._count = count
            full, zeros = self._note()
            yield Chunk(bytes(ffi.buffer(self._runs, count * RUN_SIZE)), full * PAGE, zeros)

    def send(self, line: Line) -> None:
        """Send the data of the last chunk, each page digested right before.

        A page that the guest writes between the two is dirty again, and sent again.
        """
        if line.descriptor is not None:
            self._move(lib.vmm_send_runs, line, line.descriptor)
        else:
            lib.vmm_digest_runs(self._transfer())
            line.send(*self._views())

    def pack(self) -> bytes:
        """Return the data of the last chunk, digested right before it was copied."""
        lib.vmm_digest_runs(self._transfer())
        return b"".join(self._views())

    def changed(self, bitmap: Any, pages_per_bit: int) -> list[int]:
        """Return the pages whose bit is not set and that are not what they were when they were sent."""
        scan, found = self._scan(bitmap, pages_per_bit, 0, self.pages), []
        page = lib.vmm_compare_pages(scan, 0)
        while page < self.pages:
            found.append(page)
            page = lib.vmm_compare_pages(scan, page + 1)
        return found

    def _scan(self, bitmap: Any, pages_per_bit: int, first: int, end: int) -> Any:
        return ffi.new(
            "struct vmm_scan *",
            {
                "memory": self._buffer, "bitmap": bitmap, "key": self._key.words, "digests": self._digests,
                "next": first, "end": min(end, self.pages), "pages_per_bit": pages_per_bit,
            },
        )  # fmt: skip

    # --- the receiver's side ----------------------------------------------------------------------

    def accept(self, runs: bytes) -> int:
        """Check a stranger's runs and return how many bytes of data they have.

        ProtocolError unless the runs ascend within the region. Receive or unpack their data next.
        """
        count, rest = divmod(len(runs), RUN_SIZE)
        if rest or not 1 <= count <= _MOST_RUNS:
            raise ProtocolError(f"{len(runs)} bytes of page runs are not 1 to {_MOST_RUNS} runs")
        ffi.memmove(self._runs, runs, len(runs))
        pages = lib.vmm_check_runs(self._runs, count, self.pages)
        if pages < 0:
            raise ProtocolError(f"page runs that do not ascend within a region of {self.pages} pages")
        self._count = count
        return int(pages) * PAGE

    def receive(self, line: Line) -> None:
        """Take the data of the accepted runs from the line into place; pages without data become zeros."""
        if line.descriptor is not None:
            self._move(lib.vmm_receive_runs, line, line.descriptor)
        else:
            for view in self._views():
                line.receive_into(view)
            lib.vmm_digest_runs(self._transfer())
        self._taken()

    def unpack(self, data: memoryview) -> None:
        """Put the data of the accepted runs into place; pages without data become zeros."""
        for view in self._views():
            view[:], data = data[: len(view)], data[len(view) :]
        lib.vmm_digest_runs(self._transfer())
        self._taken()

    def _taken(self) -> None:
        lib.vmm_clear_runs(self._transfer())
        self._note()

    # --- both -------------------------------------------------------------------------------------

    def digest(self) -> list[bytes]:
        """Return a SHA-256 for each 16 MiB, of the digests of its pages; what did not change is not read again."""
        table = memoryview(self._table)
        for segment in range(-(-self.pages // _SEGMENT)):
            if segment not in self._segments:
                start = segment * _SEGMENT * _DIGEST_SIZE
                part = table[start : start + _SEGMENT * _DIGEST_SIZE]
                self._segments[segment] = hashlib.sha256(part).digest()
        return [self._segments[segment] for segment in sorted(self._segments)]

    def rehash(self) -> list[int]:
        """Return the pages that are not what the table says, all of the region."""
        return self.changed(ffi.new("uint64_t[]", -(-self.pages // 64)), 1)

    def segment_range(self, segment: int) -> tuple[int, int]:
        """Return the offsets in bytes between which a segment of digest() lies."""
        return segment * _SEGMENT * PAGE, min((segment + 1) * _SEGMENT, self.pages) * PAGE

    def _transfer(self, descriptor: int = -1) -> Any:
        return ffi.new(
            "struct vmm_transfer *",
            {
                "fd": descriptor, "memory": self._buffer, "key": self._key.words, "digests": self._digests,
                "runs": self._runs, "count": self._count, "block_pages": _BLOCK,
            },
        )  # fmt: skip

    def _move(self, function: Callable[[Any], int], line: Line, descriptor: int) -> None:
        transfer = self._transfer(descriptor)
        while (result := function(transfer)) == -errno.EINTR:
            pass  # Python runs its signal handlers now
        if result < 0:
            line.fail(-result)

    def _views(self) -> tuple[memoryview, ...]:
        view = self.view
        return tuple(
            view[run.first * PAGE : (run.first + run.count) * PAGE] for run in self._runs[0 : self._count] if run.full
        )

    def _note(self) -> tuple[int, int]:
        """Forget the hashes of the segments that runs touch; returns how many pages have data, and how many not."""
        pages = [0, 0]
        for run in self._runs[0 : self._count]:
            first, count = run.first, run.count
            pages[run.full] += count
            for segment in range(first // _SEGMENT, (first + count - 1) // _SEGMENT + 1):
                self._segments.pop(segment, None)
        return pages[1], pages[0]

    def close(self) -> None:
        """Let go of the memory, which may be unmapped then."""
        ffi.release(self._buffer)
        ffi.release(self._digests)
        self._table.close()
