# SPDX-License-Identifier: Apache-2.0
"""The frames in which a machine's agent sends what its command wrote, and a waiting one is told what to run
(machine/agent.c is the other end, and says what the kinds are).

A frame is 0xF5 'L', a letter for its kind, the payload's size in four bytes and the payload.  Some
emulators put words of their own before the first frame; those are kept apart.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = [
    "ERROR",
    "FILES",
    "GO",
    "HELLO",
    "OUTPUT",
    "READY",
    "SEED",
    "STATUS",
    "TIME",
    "WRITE",
    "FrameReader",
    "frame",
]

READY, HELLO, OUTPUT, ERROR, FILES, STATUS = "R", "H", "O", "E", "F", "X"
WRITE, TIME, SEED, GO = "W", "T", "S", "G"

_MARK = b"\xf5L"
_HEAD = len(_MARK) + 1 + 4
_KINDS = frozenset((READY, HELLO, OUTPUT, ERROR, FILES, STATUS))
_MAXIMUM = 1 << 20


def frame(kind: str, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return _MARK + kind.encode() + len(payload).to_bytes(4, "little") + payload


class FrameReader:
    """Cut a stream of bytes into frames, whatever the pieces it comes in.

    >>> list(FrameReader().feed(b"noise\\xf5LO\\x02\\0\\0\\0hi"))
    [('O', b'hi')]
    """

    def __init__(self) -> None:
        self._pending = b""
        #: what came between frames: the emulator's own words
        self.noise = b""

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """Take the next bytes and give each frame that is complete as (kind, payload)."""
        self._pending += data
        while True:
            start = self._pending.find(_MARK)
            if start < 0:
                # the mark itself may be cut in two
                keep = 1 if self._pending.endswith(_MARK[:1]) else 0
                self._drop(len(self._pending) - keep)
                return
            self._drop(start)
            if len(self._pending) < _HEAD:
                return
            kind = chr(self._pending[2])
            size = int.from_bytes(self._pending[3:_HEAD], "little")
            if kind not in _KINDS or size > _MAXIMUM:
                self._drop(len(_MARK))  # not a frame, only two bytes that look like one
                continue
            if len(self._pending) < _HEAD + size:
                return
            payload = self._pending[_HEAD : _HEAD + size]
            self._pending = self._pending[_HEAD + size :]
            yield kind, payload

    def _drop(self, size: int) -> None:
        self.noise = (self.noise + self._pending[:size])[-65536:]
        self._pending = self._pending[size:]
