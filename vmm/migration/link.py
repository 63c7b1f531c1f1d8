# SPDX-License-Identifier: Apache-2.0
"""What the keeper of ``vmm receive`` and the process of one guest say to each other, and what the keeper knows of it.

Notes go one way, through a pipe whose writes are whole; the keeper reads them when the process is gone, too. The
doorbell goes the other way: a sequenced socket with the answer to HELLO, new lines, and the word to make room.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from dataclasses import dataclass, field

from vmm._kvm import lib
from vmm.migration.incarnation import Incarnation
from vmm.migration.line import SocketLine
from vmm.migration.messages import ID_SIZE, TOKEN_SIZE
from vmm.migration.resolve import DIED, NEVER_RAN
from vmm.migration.wire import Channel

__all__ = ["COME", "LINE", "MARGIN", "NO", "RELEASE", "Child", "Link"]

_NOTE = struct.Struct(f"<c{ID_SIZE}s{TOKEN_SIZE}sI")
_HELLO, _ASKS, _READY, _ALONE, _STARTED, _ENDED, _SETTLED = b"H", b"Q", b"R", b"A", b"S", b"E", b"T"
# What the keeper rings with: a new line, the answers to HELLO, and that an unstarted guest has to go.
LINE, COME, NO, RELEASE = b"L", b"Y", b"N", b"D"
# Beyond the source's patience, for what its last question may take.
MARGIN = 5.0
_ANSWER = 10.0  # seconds that a decision takes at most


class Link:
    """What a guest's process has of its keeper: a pipe for notes, and a socket on which new lines come in."""

    def __init__(self, notes: int, doorbell: socket.socket, keeper: Incarnation, *, again: bool) -> None:
        self._notes, self._doorbell = notes, doorbell
        self.keeper, self.again = keeper, again

    def hello(self, identifier: bytes) -> str:
        """Announce a guest, wait for the keeper's decision, and return why it may not come; nothing if it may."""
        self._note(_HELLO, identifier)
        if not select.select([self._doorbell], [], [], _ANSWER)[0]:
            return "the keeper of this receiver does not answer"
        answer = self._doorbell.recv(1024)
        return (
            "" if answer == COME else answer[1:].decode("utf-8", "replace") or "the keeper of this receiver is gone"
        )

    def asks(self) -> None:
        """Note that the line is a source's that asks what became of its guest."""
        self._note(_ASKS)

    def ready(self, identifier: bytes, token: bytes, patience: int) -> None:
        """Note that the guest is here, and how its source proves that it is its source."""
        self._note(_READY, identifier, token, patience)

    def alone(self) -> None:
        """Note that the guest waits for HANDOVER and has no line."""
        self._note(_ALONE)

    def started(self) -> None:
        """Note that the guest is about to be started."""
        self._note(_STARTED)

    def ended(self) -> None:
        """Note that the guest has come to its end, if it has not outlived its keeper."""
        with contextlib.suppress(BrokenPipeError):
            self._note(_ENDED)

    def settled(self, identifier: bytes) -> None:
        """Note that the source knows what became of that guest; then a keeper that is gone is not needed either."""
        with contextlib.suppress(BrokenPipeError):
            self._note(_SETTLED, identifier)

    @staticmethod
    def outlive() -> None:
        """From now on this process continues without its keeper, and without its terminal's Ctrl-C."""
        lib.vmm_die_with_parent(0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _note(self, kind: bytes, identifier: bytes = b"", token: bytes = b"", patience: int = 0) -> None:
        os.write(self._notes, _NOTE.pack(kind, identifier, token, patience))

    def fileno(self) -> int:
        """The descriptor that is readable when there is a new line."""
        return self._doorbell.fileno()

    def take_line(self, timeout: float) -> Channel | bool:
        """Return the new line, without a preamble: a relay holds its other end.

        True: there is none, and the guest has to make room if it has not started; False: there is none.
        """
        data, descriptors, _, _ = socket.recv_fds(self._doorbell, 1, 1)
        if not descriptors:
            return data == RELEASE
        return Channel(SocketLine(socket.socket(fileno=descriptors[0]), "the source", timeout))


@dataclass
class Child:
    """What the keeper knows about a child."""

    pid: int
    pidfd: int
    notes: int
    doorbell: socket.socket
    peer: str | None  # the address of a stranger; None for who is known from the start
    born: float = field(default_factory=time.monotonic)
    pending: float = 0.0  # since when it waits for the decision about its guest
    alone: float = 0.0  # since when its guest waits for HANDOVER without a line
    released: bool = False
    identifier: bytes = b""
    token: bytes = b""
    patience: int = 0
    announced: bool = False
    ready: bool = False
    started: bool = False
    ended: bool = False
    settled: bool = False
    status: int | None = None
    died: float = 0.0

    def drain(self) -> list[bytes]:
        """Read all notes that there are, and return of which guests they say that their source knows."""
        settled: list[bytes] = []
        while True:
            try:
                note = os.read(self.notes, _NOTE.size)
            except BlockingIOError:
                return settled
            if len(note) < _NOTE.size:
                return settled
            kind, identifier, token, patience = _NOTE.unpack(note)
            now = time.monotonic()
            if kind in (_HELLO, _ASKS):
                self.peer = None
            if kind == _HELLO:
                self.pending, self.identifier = now, identifier
            if kind == _READY:
                self.ready, self.token, self.patience = True, token, patience
            if kind == _ALONE:
                self.alone = now
            self.started |= kind == _STARTED
            self.ended |= kind == _ENDED
            if kind == _SETTLED:
                settled.append(identifier)

    def forgettable(self) -> bool:
        """Is it dead, and will its source never ask again?"""
        if self.status is None:
            return False
        over = time.monotonic() > self.died + self.patience + MARGIN
        return not self.ready or self.settled or over

    @property
    def verdict(self) -> int:
        """The exit status that says what became of its guest."""
        if not self.started:
            return NEVER_RAN
        return self.status if self.ended and self.status in (0, 1) else DIED

    def ring(self, data: bytes) -> None:
        """Ring the doorbell; a process that has ended is noticed elsewhere."""
        with contextlib.suppress(OSError):
            self.doorbell.send(data)

    def kill(self) -> None:
        """End the process."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Close what the keeper has of it."""
        os.close(self.pidfd)
        os.close(self.notes)
        self.doorbell.close()
