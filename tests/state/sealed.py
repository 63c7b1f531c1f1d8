# SPDX-License-Identifier: Apache-2.0
"""A stream taken apart and sealed again: what a stranger who knows the format can write.

The digests of a sealed stream are right, so that what is wrong in it reaches the checks behind them.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from vmm.state.stream.container import FORMAT, MAGIC

__all__ = ["Piece", "Sealed"]

_FIXED, _PREFIX = struct.Struct("<8sHBBI"), struct.Struct("<16sHHIQ")


@dataclass
class Piece:
    """A section: its kind as text or as it stands there."""

    kind: str | bytes
    index: int
    body: bytes
    flags: int = 1
    zero: int = 0
    length: int | None = None

    @property
    def prefix(self) -> bytes:
        kind = self.kind.encode() if isinstance(self.kind, str) else self.kind
        length = len(self.body) if self.length is None else self.length
        return _PREFIX.pack(kind, self.flags, self.zero, self.index, length)

    def copy(self) -> Piece:
        return Piece(self.kind, self.index, self.body, self.flags, self.zero, self.length)


@dataclass
class Sealed:
    """Header and sections without END, which ``seal`` makes."""

    header: bytes
    arch: int = 1
    pieces: list[Piece] = field(default_factory=list)
    magic: bytes = MAGIC
    format: int = FORMAT
    flags: int = 0

    @classmethod
    def open(cls, data: bytes) -> Sealed:
        """Take a valid stream apart, believing all of it."""
        magic, version, arch, flags, length = _FIXED.unpack_from(data)
        position = _FIXED.size + 32 + length
        found = cls(data[_FIXED.size + 32 : position], arch, [], magic, version, flags)
        while True:
            kind, section_flags, zero, index, size = _PREFIX.unpack_from(data, position)
            position += _PREFIX.size
            if kind.rstrip(b"\0") == b"END":
                return found
            body = data[position : position + size]
            found.pieces.append(Piece(kind.rstrip(b"\0").decode(), index, body, section_flags, zero))
            position += size + 32

    def seal(self, *, count: int | None = None, digest: bytes | None = None, end: Piece | None = None) -> bytes:
        """Return the stream with all its digests made anew; ``count`` and ``digest`` are what END says instead."""
        fixed = _FIXED.pack(self.magic, self.format, self.arch, self.flags, len(self.header))
        fixed += hashlib.sha256(fixed + self.header).digest()
        whole, parts = hashlib.sha256(fixed), [fixed, self.header]
        for piece in self.pieces:
            sealed = hashlib.sha256(piece.prefix + piece.body).digest()
            whole.update(piece.prefix + sealed)
            parts += [piece.prefix, piece.body, sealed]
        if end is None:
            number = len(self.pieces) if count is None else count
            end = Piece("END", 0, struct.pack("<Q32s", number, digest or whole.digest()))
        return b"".join([*parts, end.prefix, end.body, hashlib.sha256(end.prefix + end.body).digest()])

    def find(self, kind: str) -> Piece:
        """Return the first section of a kind."""
        return next(piece for piece in self.pieces if piece.kind == kind)
