# SPDX-License-Identifier: Apache-2.0
"""The process behind ``vmm receive``: it listens, gives each guest a process of its own, and outlives them.

A guest's process notes in a pipe what it is about to do. When it is gone, however it went, its keeper still knows
whether the guest was ever started, and tells the source that asks. If the keeper dies, the kernel kills the guests'
processes (PR_SET_PDEATHSIG, prctl(2)): nobody runs a guest about which nobody can be asked.

A new line for a guest that is here (RESOLVE) is answered by a child too, which relays to the guest's process.
"""

from __future__ import annotations

import hmac
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from vmm._kvm import lib
from vmm.migration.errors import LineLost, MigrationError
from vmm.migration.handover import answer
from vmm.migration.incarnation import Incarnation
from vmm.migration.line import Line, SocketLine
from vmm.migration.messages import ID_SIZE, TOKEN_SIZE, Hello, Resolve
from vmm.migration.resolve import DIED, NEVER_RAN
from vmm.migration.transport import Listener
from vmm.migration.wire import Channel, Kind, Message

__all__ = ["Keeper", "Link", "Work"]

_NOTE = struct.Struct(f"<c{ID_SIZE}s{TOKEN_SIZE}sI")
_HELLO, _READY, _STARTED, _ENDED, _SETTLED = b"H", b"R", b"S", b"E", b"T"
_MOST_CHILDREN = 32
_DIED_BEFORE = b"its process there died before it was started"
_GLANCE = 200  # milliseconds between looks at the clock
# Beyond the source's patience, for what its last question may take.
MARGIN = 5.0


class Link:
    """What a guest's process has of its keeper: a pipe for notes, and a socket on which new lines come in."""

    def __init__(self, notes: int, doorbell: socket.socket, keeper: Incarnation, *, again: bool) -> None:
        self._notes, self._doorbell = notes, doorbell
        self.keeper, self.again = keeper, again

    def hello(self, identifier: bytes) -> None:
        """Note that a guest has been announced."""
        self._note(_HELLO, identifier)

    def ready(self, identifier: bytes, token: bytes, patience: int) -> None:
        """Note that the guest is here, and how its source proves that it is its source."""
        self._note(_READY, identifier, token, patience)

    def started(self) -> None:
        """Note that the guest is about to be started."""
        self._note(_STARTED)

    def ended(self) -> None:
        """Note that the guest has come to its end."""
        self._note(_ENDED)

    def settled(self, identifier: bytes) -> None:
        """Note that the source knows what became of that guest."""
        self._note(_SETTLED, identifier)

    def _note(self, kind: bytes, identifier: bytes = b"", token: bytes = b"", patience: int = 0) -> None:
        os.write(self._notes, _NOTE.pack(kind, identifier, token, patience))

    def fileno(self) -> int:
        """The descriptor that is readable when there is a new line."""
        return self._doorbell.fileno()

    def take_line(self, timeout: float) -> Channel | None:
        """Return the new line, without a preamble: a relay holds its other end."""
        _, descriptors, _, _ = socket.recv_fds(self._doorbell, 1, 1)
        if not descriptors:
            return None
        return Channel(SocketLine(socket.socket(fileno=descriptors[0]), "the source", timeout))


Work = Callable[[Channel, Hello, Link], int]


@dataclass
class _Child:
    """What the keeper knows about a child."""

    pid: int
    pidfd: int
    notes: int
    doorbell: socket.socket
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
            if kind in (_HELLO, _READY):
                self.announced, self.identifier = True, identifier
            if kind == _READY:
                self.ready, self.token, self.patience = True, token, patience
            self.started |= kind == _STARTED
            self.ended |= kind == _ENDED
            if kind == _SETTLED:
                settled.append(identifier)

    def forgettable(self) -> bool:
        """Is it dead, and will its source not ask any more?"""
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

    def close(self) -> None:
        os.close(self.pidfd)
        os.close(self.notes)
        self.doorbell.close()


class Keeper:
    """Accepts guests from a listener, or one from a line. ``work`` serves one, in its own process.

    At most ``most`` guests are here at a time. ``say`` prints a sentence for the operator.
    """

    def __init__(
        self,
        work: Work,
        *,
        listener: Listener | None = None,
        once: bool = False,
        most: int = 4,
        say: Callable[[str], None],
    ) -> None:
        self._work, self._listener, self._once, self._say = work, listener, once, say
        self._most = 1 if once else most
        self._children: list[_Child] = []
        self._verdict: int | None = None
        self._pid, self._self = os.getpid(), Incarnation.own()

    def serve(self) -> int:
        """Serve until stopped, or with ``once`` until the first guest is done; returns its status."""
        assert self._listener
        signal.signal(signal.SIGTERM, _stop)
        try:
            while not self._done():
                self._wait()
        except (_Stop, KeyboardInterrupt):
            self._stop_children()
        return self._verdict if self._verdict is not None else NEVER_RAN

    def serve_line(self, line: Line) -> int:
        """Serve the one guest that comes over a line, and return its status."""
        self._fork(lambda link: self._greet(line, link), again=False)
        line.close()  # or the source would not see the line end with the guest's process
        signal.signal(signal.SIGTERM, _stop)
        try:
            while self._children:
                self._wait()
        except (_Stop, KeyboardInterrupt):
            self._stop_children()
        return self._verdict if self._verdict is not None else NEVER_RAN

    # --- the keeper -------------------------------------------------------------------------------

    def _done(self) -> bool:
        return self._once and self._verdict is not None and not self._children

    def _wait(self) -> None:
        poll = select.poll()
        living = [child for child in self._children if child.status is None]
        for child in living:
            poll.register(child.pidfd, select.POLLIN)
            poll.register(child.notes, select.POLLIN)
        if self._listener and len(living) < _MOST_CHILDREN:
            poll.register(self._listener.fileno(), select.POLLIN)
        events = poll.poll(_GLANCE if len(living) < len(self._children) else None)
        self._look_after_children()
        if self._listener and any(descriptor == self._listener.fileno() for descriptor, _ in events):
            self._accept(self._listener)

    def _look_after_children(self) -> None:
        for child in list(self._children):
            if child.status is None:
                ended = os.waitpid(child.pid, os.WNOHANG)
                # In this order: what it noted before its end has all been read then.
                for identifier in child.drain():
                    self._settled(identifier)
                if ended[0]:
                    child.status, child.died = os.waitstatus_to_exitcode(ended[1]), time.monotonic()
                    self._buried(child)
        for child in [child for child in self._children if child.forgettable()]:
            self._children.remove(child)
            child.close()

    def _settled(self, identifier: bytes) -> None:
        for child in self._children:
            child.settled |= child.identifier == identifier

    def _buried(self, child: _Child) -> None:
        if child.announced:
            self._verdict = child.verdict
            if child.status not in (0, 1, NEVER_RAN):
                what = (
                    "had been started: it is lost" if child.started else "had not been started: its source keeps it"
                )
                self._say(f"the process of a guest ended with status {child.status}; the guest {what}")

    def _accept(self, listener: Listener) -> None:
        try:
            connected, name = listener.accept()
        except OSError as error:
            self._say(f"a connection was lost before it was accepted: {error.strerror}")
            return

        def serve(link: Link) -> int:
            listener.close_copy()
            return self._greet(listener.line(connected, name), link)

        self._fork(serve, again=True)
        connected.close()

    def _fork(self, serve: Callable[[Link], int], *, again: bool) -> None:
        notes, noting = os.pipe2(os.O_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(notes)
            ours.close()
            _finish(lambda: self._serve_child(serve, Link(noting, theirs, self._self, again=again)))
        os.close(noting)
        theirs.close()
        os.set_blocking(notes, False)
        self._children.append(_Child(pid, os.pidfd_open(pid), notes, ours))

    def _stop_children(self) -> None:
        """Have the guests' processes tell their sources, and wait for them."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for child in self._children:
            if child.status is None:
                signal.pidfd_send_signal(child.pidfd, signal.SIGTERM)
        deadline = time.monotonic() + MARGIN
        while time.monotonic() < deadline and any(child.status is None for child in self._children):
            time.sleep(0.02)
            self._look_after_children()

    # --- a child ----------------------------------------------------------------------------------

    def _serve_child(self, serve: Callable[[Link], int], link: Link) -> int:
        signal.signal(signal.SIGTERM, _stop)
        if lib.vmm_die_with_parent(self._pid) < 0:
            return NEVER_RAN
        try:
            return serve(link)
        except MigrationError as error:
            self._say(str(error))
        except (_Stop, KeyboardInterrupt):
            pass
        return NEVER_RAN

    def _greet(self, line: Line, link: Link) -> int:
        channel = Channel(line)
        channel.open()
        message = channel.receive(Kind.HELLO, Kind.RESOLVE)
        if message.kind is Kind.RESOLVE:
            return self._resolve(channel, Resolve.unpack(message.body), link)
        here = sum(child.announced and (self._once or child.status is None) for child in self._children)
        if here >= self._most:
            channel.abort(f"this receiver takes {self._most} guests at a time, and has {here}")
            return NEVER_RAN
        hello = Hello.unpack(message.body)
        link.hello(hello.identifier)
        return self._work(channel, hello, link)

    def _resolve(self, channel: Channel, wanted: Resolve, link: Link) -> int:
        """Answer a source that asks, from what the keeper knew when it made this process."""
        child = next((child for child in self._children if child.identifier == wanted.identifier), None)
        if child is None or not child.ready or not hmac.compare_digest(child.token, wanted.token):
            channel.send(Kind.UNKNOWN)
            return NEVER_RAN
        if child.status is None:
            return _relay(channel, child.doorbell, wanted)
        kind = answer(started=child.started, ended=child.ended)
        channel.send(kind, _DIED_BEFORE if kind is Kind.DISCARDED else b"")
        channel.receive(Kind.SETTLED)
        link.settled(wanted.identifier)
        return NEVER_RAN


def _relay(source: Channel, doorbell: socket.socket, wanted: Resolve) -> int:
    """Carry messages between a source and the process of its guest until one of them closes."""
    ours, theirs = socket.socketpair()
    try:
        socket.send_fds(doorbell, [b"L"], [theirs.fileno()])
    except OSError:
        raise LineLost("the guest's process has just ended") from None
    theirs.close()
    guest = Channel(SocketLine(ours, "the guest's process", source.line.timeout))
    guest.send(Kind.RESOLVE, wanted.pack())
    poll = select.poll()
    for channel in (source, guest):
        poll.register(channel.line.fileno(), select.POLLIN)
    while True:
        if not source.line.readable(0):
            poll.poll()
        for giver, taker, kinds in ((source, guest, _FROM_SOURCE), (guest, source, _FROM_GUEST)):
            if giver.line.readable(0):
                message: Message = giver.receive(*kinds)
                taker.send(message.kind, message.body)


_FROM_SOURCE = (Kind.HANDOVER, Kind.SETTLED, Kind.ABORT)
_FROM_GUEST = (Kind.WAITING, Kind.RUNNING, Kind.DISCARDED)


class _Stop(Exception):
    """SIGTERM came."""


def _stop(number: int, frame: object) -> NoReturn:
    raise _Stop


def _finish(run: Callable[[], int]) -> NoReturn:
    """End a forked child with what ``run`` returns, and never get back into its parent's code."""
    status = 70
    try:
        status = run()
        sys.stdout.flush()
    except LineLost:
        status = NEVER_RAN
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)
