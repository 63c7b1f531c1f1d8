# SPDX-License-Identifier: Apache-2.0
"""What is said on a line: a preamble, then messages that are checked before they are believed.

All numbers are little-endian. Either side begins with 16 bytes: the magic, the oldest and the newest version it
speaks (u16 each), four zeros. Both continue with the newest version that they share. A message is

    u32 sequence number | u16 kind | u16 zero | u64 length | body | SHA-256 of all before it

counted from 0 in each direction. A message of kind MEMORY is followed by the pages that it announces, outside of
its digest: they are covered by the digests of pages (vmm.migration.pages), which are far faster.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from enum import IntEnum
from typing import NamedTuple

from vmm.migration.errors import LineLost, MigrationError, PeerAborted, ProtocolError
from vmm.migration.line import Line
from vmm.state.errors import printable

__all__ = ["LIMITS", "NEWEST", "OLDEST", "Channel", "Kind", "Message"]

MAGIC = b"\x89VMMIG\r\n"
OLDEST = NEWEST = 1
_PREAMBLE = struct.Struct("<8sHH4x")
_HEAD = struct.Struct("<IHHQ")
_DIGEST = 32


class Kind(IntEnum):
    """The messages. S: the source sends it, R: the receiver."""

    HELLO = 1  # S: who comes, with what
    WELCOME = 2  # R: may come
    CONFIG = 3  # S: the state without memory, to prepare a VM for
    PREPARED = 4  # R
    MEMORY = 5  # S: runs of pages; pages with data follow
    ROUND = 6  # S: all pages of a round are sent
    ROUND_DONE = 7  # R: they have arrived
    FINAL = 8  # S: the state of the stopped guest, digests of its memory
    READY = 9  # R: restored; the token, and the state as captured again
    HANDOVER = 10  # S: the guest is yours
    RUNNING = 11  # R: it has been started here
    SETTLED = 12  # S: I know what became of it
    RESOLVE = 13  # S, first on a new line: what became of it?
    WAITING = 14  # R: no HANDOVER came yet
    DISCARDED = 15  # R: it never ran here and never will
    DIED = 16  # R: it was started here and its process is gone
    UNKNOWN = 17  # R: no such migration
    ABORT = 18  # both: a reason


_KINDS = frozenset(map(int, Kind))
# The longest body of each kind, in bytes; 64 for those without anything long.
LIMITS = {
    Kind.HELLO: 1 << 20,
    Kind.WELCOME: 4096,
    Kind.CONFIG: 16 << 20,
    Kind.MEMORY: 64 << 10,
    Kind.FINAL: 32 << 20,
    Kind.READY: 16 << 20,
    Kind.DISCARDED: 4096,
    Kind.ABORT: 4096,
}


class Message(NamedTuple):
    """One message."""

    kind: Kind
    body: bytes


class Channel:
    """Messages over a line, both directions."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._sent = self._received = 0

    def open(self, *, oldest: int = OLDEST, newest: int = NEWEST) -> int:
        """Exchange preambles and return the version to speak; ProtocolError if there is none in common."""
        self.line.send(_PREAMBLE.pack(MAGIC, oldest, newest))
        magic, their_oldest, their_newest = _PREAMBLE.unpack(self._read(_PREAMBLE.size))
        if magic != MAGIC:
            raise ProtocolError(
                f"{self.line.name} does not speak this protocol (it began with {magic!r}): is it vmm send or receive?"
            )
        version: int = min(newest, their_newest)
        if version < max(oldest, their_oldest):
            raise ProtocolError(
                f"{self.line.name} speaks versions {their_oldest} to {their_newest} of the protocol, "
                f"this side {oldest} to {newest}: use the same release on both sides"
            )
        return version

    def send(self, kind: Kind, *body: bytes) -> None:
        """Send a message; of MEMORY, the pages have to follow."""
        length = sum(map(len, body))
        if length > LIMITS.get(kind, 64):
            raise MigrationError(f"{kind.name} of {length} bytes is longer than the {LIMITS.get(kind, 64)} allowed")
        head = _HEAD.pack(self._sent, kind, 0, length)
        digest = hashlib.sha256(head)
        for part in body:
            digest.update(part)
        self._sent += 1
        self.line.send(b"".join([head, *body, digest.digest()]))

    def receive(self, *kinds: Kind) -> Message:
        """Return the next message, one of ``kinds``; PeerAborted, ProtocolError or LineLost."""
        head = self._read(_HEAD.size)
        sequence, number, zero, length = _HEAD.unpack(head)
        if sequence != self._received or zero or number not in _KINDS:
            raise ProtocolError(f"{self.line.name}: what should be message {self._received} is damaged")
        kind = Kind(number)
        if length > LIMITS.get(kind, 64):
            raise ProtocolError(f"{self.line.name}: {kind.name} claims {length} bytes")
        rest = self._read(length + _DIGEST)
        body = rest[:length]
        if hashlib.sha256(head + body).digest() != rest[length:]:
            raise ProtocolError(f"{self.line.name}: {kind.name} arrived damaged (its SHA-256 is another)")
        self._received += 1
        if kind not in kinds:
            if kind is Kind.ABORT:
                raise PeerAborted(printable(body.decode("utf-8", "replace")) or "no reason given")
            wanted = " or ".join(wanted.name for wanted in kinds)
            raise ProtocolError(f"{self.line.name} said {kind.name} where {wanted} was due")
        return Message(kind, body)

    def abort(self, reason: str) -> None:
        """Tell the other side why this one gives up, if it still listens."""
        with contextlib.suppress(LineLost):
            self.send(Kind.ABORT, reason.encode()[: LIMITS[Kind.ABORT]])

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        if size:
            self.line.receive_into(memoryview(data))
        return bytes(data)
