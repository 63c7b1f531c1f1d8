# SPDX-License-Identifier: Apache-2.0
"""The process of ``vmm receive``: it listens, gives each guest a process of its own, and outlives them.

A guest's process notes in a pipe what it is about to do. When it is gone, however it went, its keeper still knows
whether the guest was ever started, and tells the source that asks. If the keeper dies, the kernel kills the guests'
processes (PR_SET_PDEATHSIG, prctl(2)): no guest runs that nobody can be asked about.

A new line for a guest that is here (RESOLVE) is answered by a child too, which relays to the guest's process.

Who connects is a stranger until HELLO or RESOLVE. Strangers have a few seconds in all, however slowly they speak, and
only so many processes: a new one takes the place of the oldest from the address that has the most of them. So lines
that say nothing keep nobody out. Whether an announced guest may come is decided here and nowhere else, one at a time.
"""

from __future__ import annotations

import hmac
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import NoReturn

from vmm._kvm import lib
from vmm.migration.errors import LineLost, MigrationError
from vmm.migration.handover import answer
from vmm.migration.incarnation import Incarnation
from vmm.migration.line import Line, SocketLine
from vmm.migration.link import COME, LINE, MARGIN, NO, RELEASE, Child, Link
from vmm.migration.messages import Hello, Resolve
from vmm.migration.resolve import NEVER_RAN
from vmm.migration.transport import Listener
from vmm.migration.wire import Channel, Kind, Message

__all__ = ["Keeper", "Work"]

_MOST_STRANGERS = 32
_GREETING = 10.0  # seconds from accept to HELLO or RESOLVE, TLS included
_ALONE_FOR = 2.0  # seconds after which a guest whose source is silent makes room for another one
_DECISION = 5.0  # seconds that an announced guest waits for room at most
_REMEMBERED = 4096  # identifiers of migrations that have been here
_DIED_BEFORE = b"its process there died before it was started"
_GLANCE = 200  # milliseconds between looks at the clock while there is something to look at


Work = Callable[[Channel, Hello, Link], int]


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
        self._children: list[Child] = []
        self._seen: dict[bytes, None] = {}
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
        if self._listener:
            poll.register(self._listener.fileno(), select.POLLIN)
        clock = len(living) < len(self._children) or any(child.pending or child.peer is not None for child in living)
        events = poll.poll(_GLANCE if clock else None)
        self._look_after_children()
        self._decide()
        self._end_silence()
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
        for child in [child for child in self._children if self._forgettable(child)]:
            self._children.remove(child)
            child.close()

    def _forgettable(self, child: Child) -> bool:
        """Is a child dead, and will nobody ask about its guest? Over pipes nobody can, and its status says it all."""
        return child.forgettable() or (self._listener is None and child.status is not None)

    def _decide(self) -> None:
        """Answer each announced guest, in the order in which they came."""
        for child in sorted(self._children, key=lambda child: child.pending):
            if not child.pending or child.status is not None:
                continue
            refusal = self._refusal(child)
            if refusal is None:
                continue  # room is being made
            child.pending = 0.0
            child.announced = not refusal
            if child.announced:
                self._seen[child.identifier] = None
                while len(self._seen) > _REMEMBERED:
                    del self._seen[next(iter(self._seen))]
            child.ring(NO + refusal.encode()[:1000] if refusal else COME)

    def _refusal(self, child: Child) -> str | None:
        """Return why a guest may not come, nothing if it may, None where that is not known yet."""
        if child.identifier in self._seen:
            return "this migration has been here before: a recorded one is not run again"
        here = [other for other in self._children if other.announced and (self._once or other.status is None)]
        if len(here) < self._most and not (self._once and self._seen):
            return ""
        now = time.monotonic()
        idle = [other for other in here if other.alone and not other.started and now > other.alone + _ALONE_FOR]
        if not self._once and idle and now < child.pending + _DECISION:
            if not idle[0].released:
                idle[0].released = True
                idle[0].ring(RELEASE)
            return None
        return f"this receiver takes {self._most} guests at a time, and has {max(len(here), 1)}"

    def _end_silence(self) -> None:
        """End strangers whose time is up."""
        for child in self._strangers():
            if time.monotonic() > child.born + _GREETING:
                child.kill()

    def _strangers(self) -> list[Child]:
        return [child for child in self._children if child.peer is not None and child.status is None]

    def _make_room(self) -> None:
        """End the oldest stranger of the address that has the most, if there are too many."""
        strangers = self._strangers()
        if len(strangers) < _MOST_STRANGERS:
            return
        count = Counter(child.peer for child in strangers)
        crowded = max(count.values())
        next(child for child in strangers if count[child.peer] == crowded).kill()

    def _settled(self, identifier: bytes) -> None:
        for child in self._children:
            child.settled |= child.identifier == identifier

    def _buried(self, child: Child) -> None:
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

        self._make_room()
        self._fork(serve, again=True, peer=name.rpartition(":")[0])
        connected.close()

    def _fork(self, serve: Callable[[Link], int], *, again: bool, peer: str | None = None) -> None:
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
        self._children.append(Child(pid, os.pidfd_open(pid), notes, ours, peer))

    def _stop_children(self) -> None:
        """Have the guests' processes tell their sources, and wait for them; those that the sources know of run on."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._look_after_children()
        ending = [child for child in self._children if child.status is None and not child.settled]
        for child in ending:
            signal.pidfd_send_signal(child.pidfd, signal.SIGTERM)
        deadline = time.monotonic() + MARGIN
        while time.monotonic() < deadline and any(child.status is None for child in ending):
            time.sleep(0.02)
            self._look_after_children()
        for child in self._children:
            if child.status is None and child.settled:
                self._say(f"a guest runs on in process {child.pid}, to its end: kill that process to end it before")

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
            link.asks()
            return self._resolve(channel, Resolve.unpack(message.body), link)
        hello = Hello.unpack(message.body)
        if refusal := link.hello(hello.identifier):
            channel.abort(refusal)
            return NEVER_RAN
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
        socket.send_fds(doorbell, [LINE], [theirs.fileno()])
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
