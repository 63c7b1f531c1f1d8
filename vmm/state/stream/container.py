# SPDX-License-Identifier: Apache-2.0
"""The container of a state: a fixed header, sections with a digest each, and an end that says how many.

All numbers are little-endian. Format 1:

    header   magic (8), format (u16), architecture (u8: 1 x86, 2 arm64), flags (u8: 0), length of the body (u32),
             SHA-256 of these 16 bytes and the body (32), the body
    section  kind (16, text padded with zeros), flags (u16: bit 0 critical), zero (u16), index (u32),
             length of the body (u64), the body, SHA-256 of all that (32)
    end      a section of the kind END: how many sections were before it (u64), SHA-256 of the header's first
             48 bytes and of each section's first 32 bytes and digest (32)

A reader refuses a critical section of a kind it does not know and skips others. It works on anything with
``read(n)``, never seeks, and believes no length before it has the bytes.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from vmm.state.errors import StreamError
from vmm.state.stream.canonical import Allowance

__all__ = [
    "ARCHITECTURES",
    "END",
    "FORMAT",
    "LIMITS",
    "MAGIC",
    "Limits",
    "Readable",
    "Reader",
    "Section",
    "Writable",
    "Writer",
    "is_kind",
]

# As in PNG: not text, damaged by whatever changes line ends or strips the eighth bit.
MAGIC = b"\x89VMST\r\n\x1a"
FORMAT = 1
ARCHITECTURES = {"x86": 1, "arm64": 2}
END = "END"

_FIXED = struct.Struct("<8sHBBI")
_PREFIX = struct.Struct("<16sHHIQ")
_END = struct.Struct("<Q32s")
_DIGEST = 32
_CRITICAL = 1
_KIND = re.compile(r"[A-Z][A-Z0-9_]{0,15}")
# The most that is asked of a file at once, so that a length that lies costs no memory.
_PIECE = 2 << 20


class Readable(Protocol):
    """A pipe, a file, a socket's file: ``read`` blocks, and returns nothing only at the end."""

    def read(self, size: int, /) -> bytes: ...


class Writable(Protocol):
    """A pipe, a file, a socket's file; ``write`` returns how much of it was taken."""

    def write(self, data: bytes | memoryview, /) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader takes at most: bytes of the header, of a section, and of one that is skipped; sections of other
    kinds than MEMORY (whose number the memory limits), their bytes in all, their items of CBOR in all; bytes of guest
    memory.

    With these a stream takes less than 64 MiB beside the guest's memory, and a second, whatever is in it.
    """

    header: int = 1 << 20
    section: int = 4 << 20
    skipped: int = 64 << 20
    sections: int = 4096
    parts: int = 16 << 20
    items: int = 1 << 19
    memory: int = 4 << 30


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Section:
    """One section: ``number`` counts from 0, ``offset`` is where it begins in the stream; ``items`` are those that
    the sections of its stream may still have."""

    number: int
    offset: int
    kind: str
    index: int
    critical: bool
    body: bytes
    digest: bytes
    items: Allowance = field(default_factory=Allowance, compare=False)

    @property
    def where(self) -> str:
        """How errors name it."""
        return _where(self.number, self.kind, self.index, self.offset)


def _where(number: int, kind: str, index: int, offset: int) -> str:
    return f"section {number} ({kind} {index}) at byte {offset}"


def is_kind(name: str) -> bool:
    """Tell whether a section's kind may be spelled like this: capital letters, digits, underscores, at most 16."""
    return _KIND.fullmatch(name) is not None


class Writer:
    """Writes a stream section by section to anything with ``write``; nothing is buffered here."""

    def __init__(self, file: Writable, arch: str, header: bytes) -> None:
        self._file = file
        self._count = 0
        fixed = _FIXED.pack(MAGIC, FORMAT, ARCHITECTURES[arch], 0, len(header))
        fixed += hashlib.sha256(fixed + header).digest()
        self._all = hashlib.sha256(fixed)
        self._write(fixed + header)

    def section(self, kind: str, index: int, *body: bytes | memoryview, critical: bool = True) -> None:
        """Write one section; its body may be given in pieces."""
        if not is_kind(kind) or kind == END:
            raise ValueError(f"{kind!r} is not a kind of section")
        self._section(kind, index, body, critical)

    def end(self) -> None:
        """Write the END section: nothing may follow."""
        self._section(END, 0, (_END.pack(self._count, self._all.digest()),), True)

    def _section(self, kind: str, index: int, body: tuple[bytes | memoryview, ...], critical: bool) -> None:
        length = sum(len(piece) for piece in body)
        prefix = _PREFIX.pack(kind.encode(), _CRITICAL if critical else 0, 0, index, length)
        digest = hashlib.sha256(prefix)
        self._write(prefix)
        for piece in body:
            digest.update(piece)
            self._write(piece)
        self._write(digest.digest())
        self._all.update(prefix + digest.digest())
        self._count += 1

    def _write(self, data: bytes | memoryview) -> None:
        done = self._file.write(data)
        while done is not None and done < len(data):  # an unbuffered pipe takes what it has room for
            data = memoryview(data)[done:]
            done = self._file.write(data)


class Reader:
    """Reads a stream section by section; ``arch`` and ``header`` (the body's bytes) are there at once, ``digest``
    (of the whole stream) and ``skipped`` (the sections skipped) when the END section was read.

    ``exact``: nothing may follow the END section, as in a file. Every complaint about the stream is a
    StreamError; the file's own errors pass through.
    """

    def __init__(self, file: Readable, limits: Limits = LIMITS, *, exact: bool = True) -> None:
        self._file = file
        self._limits = limits
        self._exact = exact
        self._offset = 0
        self._items = Allowance(limits.items)
        self.skipped: list[str] = []
        self.digest: bytes | None = None
        fixed = self._read(_FIXED.size, "the header")
        magic, self.format, arch, flags, length = _FIXED.unpack(fixed)
        if magic != MAGIC:
            raise StreamError("byte 0", "not a VM state stream: wrong magic number")
        if self.format != FORMAT:
            raise StreamError("byte 8", f"the stream has format {self.format}, and this version reads {FORMAT} only")
        names = {code: name for name, code in ARCHITECTURES.items()}
        if arch not in names or flags:
            raise StreamError("byte 10", f"architecture {arch} with flags {flags:#x} is not known to this version")
        if length > limits.header:
            raise StreamError("byte 12", f"a header of {length} bytes is above the limit of {limits.header}")
        self.arch: str = names[arch]
        digest = self._read(_DIGEST, "the header")
        self.header = self._read(length, "the header")
        if hashlib.sha256(fixed + self.header).digest() != digest:
            raise StreamError("byte 0", "the header does not have its digest: the stream is damaged")
        self._all = hashlib.sha256(fixed + digest)

    def sections(self, kinds: Collection[str] | None = None) -> Iterator[Section]:
        """Yield the sections before END, each when its digest was right; the END section is checked at last.

        ``kinds`` are those that the caller knows: others are refused if they are critical, and else skipped and
        listed in ``skipped``. With None all are yielded.
        """
        number = counted = held = 0
        while True:
            kind, index, critical, length, where, offset, prefix = self._prefix(number)
            wanted = kind == END or kinds is None or kind in kinds
            if not wanted and critical:
                raise StreamError(where, "it is critical, and this version does not know this kind of section")
            most = self._limits.section if wanted else self._limits.skipped
            if length > most:
                raise StreamError(where, f"{length} bytes are above the limit of {most} for a section")
            if kind not in ("MEMORY", END):
                counted, held = counted + 1, held + length * wanted
            if counted > self._limits.sections:
                raise StreamError(where, f"the stream has more than {self._limits.sections} sections")
            if held > self._limits.parts:
                raise StreamError(where, f"the stream has more than {self._limits.parts} bytes beside the memory")
            body, digest = self._body(prefix, length, where, keep=wanted)
            if kind == END:
                if index or not critical:
                    raise StreamError(where, "an end is critical and has index 0")
                self._end(body, number, where)
                return
            self._all.update(prefix + digest)
            if wanted:
                yield Section(number, offset, kind, index, critical, body, digest, self._items)
            else:
                self.skipped.append(where)
            number += 1

    def _prefix(self, number: int) -> tuple[str, int, bool, int, str, int, bytes]:
        offset = self._offset
        prefix = self._read(_PREFIX.size, f"the head of section {number}")
        name, flags, zero, index, length = _PREFIX.unpack(prefix)
        kind = name.rstrip(b"\0").decode("latin-1")
        if not is_kind(kind):
            raise StreamError(f"section {number} at byte {offset}", "its kind is not a name: the stream is damaged")
        where = _where(number, kind, index, offset)
        if flags & ~_CRITICAL or zero:
            raise StreamError(where, f"it has flags {flags:#x} and {zero:#x}, which this version does not know")
        return kind, index, bool(flags), length, where, offset, prefix

    def _body(self, prefix: bytes, length: int, where: str, *, keep: bool) -> tuple[bytes, bytes]:
        found = hashlib.sha256(prefix)
        if keep:
            body = self._read(length, where)
            found.update(body)
        else:
            body = b""
            for start in range(0, length, _PIECE):
                found.update(self._read(min(_PIECE, length - start), where))
        digest = self._read(_DIGEST, where)
        if found.digest() != digest:
            raise StreamError(where, "it does not have its digest: the stream is damaged")
        return body, digest

    def _end(self, body: bytes, number: int, where: str) -> None:
        if len(body) != _END.size:
            raise StreamError(where, f"the end has {len(body)} bytes, not {_END.size}")
        count, digest = _END.unpack(body)
        if count != number:
            raise StreamError(where, f"the stream has {number} sections but its end declares {count}")
        if digest != self._all.digest():
            raise StreamError(where, "the digest of the whole stream is another one: sections were exchanged")
        self.digest = digest
        if self._exact and self._file.read(1):
            raise StreamError(f"byte {self._offset}", "there are bytes beyond the end of the stream")

    def _read(self, size: int, where: str) -> bytes:
        pieces = []
        left = size
        while left:
            piece = self._file.read(min(left, _PIECE))
            if not piece:
                at = self._offset + size - left
                raise StreamError(f"byte {at}", f"the stream was cut off inside {where}, {left} bytes are missing")
            pieces.append(piece)
            left -= len(piece)
        self._offset += size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
