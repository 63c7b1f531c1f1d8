# SPDX-License-Identifier: Apache-2.0
"""A relay between the two sides of a migration that knows the messages, and does its worst at one byte of one."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from vmm.migration.messages import MEMORY_HEAD, Welcome
from vmm.migration.wire import Kind

__all__ = ["Messages", "Point", "Relay"]

_HEAD = struct.Struct("<IHHQ")
_PREAMBLE, _DIGEST = 16, 32
# Faults that strike a process: "kill-source", "full-target", ...; "full" is a disk that takes no more.
_VERBS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "int": signal.SIGINT, "full": 0}


@dataclass(frozen=True)
class Point:
    """A fault at a place of a message of a kind; ``which`` counts the messages of that kind."""

    fault: str
    kind: Kind
    place: float
    which: int = 0

    def __str__(self) -> str:
        return f"{self.fault} at {self.place:g} of {self.kind.name} {self.which}"


class Messages:
    """Follows the messages of one direction, to say which byte of the stream is which byte of what."""

    def __init__(self) -> None:
        self.counts: dict[Kind, int] = {}
        self.on_message: Callable[[Kind, bytes], None] = lambda kind, body: None
        self._preamble = _PREAMBLE
        self._head, self._body = bytearray(), bytearray()
        self._kind: Kind | None = None
        self._length = self._total = self._seen = 0

    def until(self, point: Point | None, data: bytes) -> int | None:
        """Take data and return how much of it lies before the point; None if the point is not in it."""
        at = 0
        while at < len(data):
            at += self._step(point, data[at:])
            if self._reached(point):
                return at
        return None

    def _step(self, point: Point | None, data: bytes) -> int:
        """Take as much as belongs together, up to the point at most."""
        if self._preamble:
            taken = min(self._preamble, len(data))
            self._preamble -= taken
            return taken
        if self._kind is None:
            taken = min(_HEAD.size - len(self._head), len(data))
            self._head += data[:taken]
            if len(self._head) == _HEAD.size:
                _, kind, _, self._length = _HEAD.unpack(self._head)
                self._kind, self._seen, self._total = Kind(kind), _HEAD.size, _HEAD.size + self._length + _DIGEST
                self._head.clear()
            return taken
        # Of a MEMORY message its own head comes first: it says how many pages follow.
        announced = self._kind is not Kind.MEMORY or len(self._body) >= MEMORY_HEAD.size
        end = self._total if announced else _HEAD.size + MEMORY_HEAD.size
        if self._is_meant(point):
            end = min(end, max(self._seen + 1, self._target(point)))
        taken = min(end - self._seen, len(data))
        self._body += data[: max(0, min(taken, _HEAD.size + self._length - self._seen))]
        self._seen += taken
        if not announced and len(self._body) == MEMORY_HEAD.size:
            self._total += MEMORY_HEAD.unpack(self._body)[2]
        return taken

    def _is_meant(self, point: Point | None) -> bool:
        return point is not None and self._kind is point.kind and self.counts.get(point.kind, 0) == point.which

    def _target(self, point: Point | None) -> int:
        # The head has to be seen before the kind is known: place 0 is right behind it.
        return max(_HEAD.size, int(point.place * self._total)) if point else 0

    def _reached(self, point: Point | None) -> bool:
        if self._kind is None:
            return False
        reached = self._is_meant(point) and self._seen >= self._target(point)
        if self._seen == self._total:
            self.on_message(self._kind, bytes(self._body))
            self.counts[self._kind] = self.counts.get(self._kind, 0) + 1
            self._body.clear()
            self._kind = None
        return reached


class Relay:
    """Between source and receiver; at its point it does the fault, once."""

    def __init__(self, point: Point | None, target_port: int, stop_for: float = 0.3) -> None:
        self.point, self._target_port, self._stop_for = point, target_port, stop_for
        self._stopped: tuple[int, float] | None = None  # a process, and when it goes on
        self.hit = False
        self.pids: dict[str, int] = {}
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._messages: dict[socket.socket, Messages] = {}
        self._reopen = 0.0
        self._silent = False
        self._sources: set[socket.socket] = set()
        self.said = bytearray()  # all that the source sent

    def serve(self, alive: Callable[[], bool]) -> None:
        """Relay until nobody is alive."""
        while alive():
            self._wake()
            if self._listener is None and self._reopen and time.monotonic() >= self._reopen:
                with contextlib.suppress(OSError):  # somebody has the port for a moment
                    self._listener = socket.create_server(("127.0.0.1", self.port))
            sockets = [*self._pairs, *filter(None, [self._listener])]
            for ready in select.select(sockets, [], [], 0.02)[0]:
                if ready is self._listener:
                    self._accept()
                elif ready in self._pairs:
                    self._forward(ready)
        for one in [*self._pairs, *filter(None, [self._listener])]:
            one.close()

    def close_copy(self) -> None:
        """Close this process's copy after a fork."""
        assert self._listener
        self._listener.close()

    def _accept(self) -> None:
        assert self._listener
        source, _ = self._listener.accept()
        try:
            to_target = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            source.close()
            return
        self._sources.add(source)
        for one, other in ((source, to_target), (to_target, source)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[one] = other
            self._messages[one] = Messages()
            self._messages[one].on_message = self._watch

    def _watch(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.WELCOME:
            with contextlib.suppress(Exception):
                self.pids["target"] = int(Welcome.unpack(body).process.text.split()[2])

    def _forward(self, one: socket.socket) -> None:
        try:
            data = one.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._drop(one)
            return
        if one in self._sources:
            self.said += data
        if self._silent:
            return
        before = None if self.hit else self._messages[one].until(self.point, data)
        if before is None:
            self._pass(one, data)
            return
        self.hit = True
        self._fault(one, data, before)

    def _fault(self, one: socket.socket, data: bytes, before: int) -> None:
        assert self.point
        fault = self.point.fault
        if fault == "flip":
            at = min(before, len(data) - 1)
            self._pass(one, data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
            return
        self._pass(one, data[:before])
        verb, _, who = fault.partition("-")
        if verb in _VERBS:
            # Time for what arrived to be acted on, sometimes.
            if self.point.place >= 1 and self.point.which % 2:
                time.sleep(0.01)
            victim = "keeper" if who == "all" else who
            if victim in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    self._strike(verb, self.pids[victim])
            self._pass(one, data[before:])
            return
        if fault == "silence":
            self._silent = True
            self._reopen = 0.0
            return
        self._drop(one)
        if fault in ("refuse", "cut-for-good") and self._listener:
            self._listener.close()
            self._listener = None
            self._reopen = time.monotonic() + 1.0 if fault == "refuse" else 0.0

    def _strike(self, verb: str, pid: int) -> None:
        if verb == "full":
            # No file of this process takes another byte, as on a full disk.
            _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, most))
            return
        os.kill(pid, _VERBS[verb])
        if verb == "stop":
            self._stopped = pid, time.monotonic() + self._stop_for

    def _wake(self) -> None:
        """Let a process that was stopped go on, when it is time."""
        if self._stopped and time.monotonic() >= self._stopped[1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._stopped[0], signal.SIGCONT)
            self._stopped = None

    def _pass(self, one: socket.socket, data: bytes) -> None:
        try:
            self._pairs[one].sendall(data)
        except OSError:
            self._drop(one)

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        if other is not None:
            self._pairs.pop(other, None)
            # A new line after the silence is a line like any other.
            self._silent = False
            for each in (one, other):
                self._messages.pop(each, None)
                each.close()
