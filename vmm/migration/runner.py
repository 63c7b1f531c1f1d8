# SPDX-License-Identifier: Apache-2.0
"""A guest that runs in a thread of its own and can be paused, slowed down and resumed from another.

That it runs in only one place is what migration has to guarantee. ``Journal`` writes down when it does, and
``Lease`` makes it impossible to run where somebody else does: a lock on a file, which the kernel gives back when
its process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vmm._kvm import lib
from vmm.guest.base import BaseGuest
from vmm.kvm.exits import Budget, Deadline, Exit, Hlt, IoIn, MmioRead, Shutdown, Stopped, Unsupported
from vmm.migration.errors import MigrationError

__all__ = ["SLICE", "Journal", "Lease", "Outcome", "Runner"]

SLICE = 0.05  # seconds between looks at the clock, and the period of the throttle
_PAUSE_TIMEOUT = 10.0
_MOST_IGNORED = 1_000_000


class Journal:
    """A file of JSON lines, each with the event, the process id and CLOCK_MONOTONIC in nanoseconds.

    It is for people: what it can no longer write (a full disk) is left out, and ``failure`` says so once.
    """

    def __init__(self, path: str | None = None) -> None:
        self._descriptor = -1
        self.failure = ""
        if path is not None:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, event: str, **details: object) -> None:
        """Add a line, in one piece whoever else writes to the file; never raises for a file that takes none."""
        if self._descriptor < 0:
            return
        line = {"event": event, "pid": os.getpid(), "ns": time.monotonic_ns(), **details}
        data = (json.dumps(line) + "\n").encode()
        try:
            if os.write(self._descriptor, data) == len(data):
                return
            why = "the disk is full"
        except OSError as error:
            why = error.strerror or str(error)
        self.failure = self.failure or f"the journal lacks lines from {event!r} on: {why}"


class Lease:
    """The right to run a guest: an exclusive lock on a file that all sides name; None asks nobody."""

    def __init__(self, path: str | None = None) -> None:
        self._descriptor = -1
        self._path = path
        if path is not None:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> None:
        """Take it; MigrationError if somebody else has it."""
        if self._descriptor < 0:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MigrationError(
                f"the lease {self._path} is held by another process: the guest would run twice, so it does not run"
            ) from error

    def release(self) -> None:
        """Give it back."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give it back for good."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a guest ended: its last exit, its event if it left as payloads do, and whether that was well."""

    exit: Exit | None
    event: int | None
    well: bool
    why: str


class Runner:
    """Runs ``guest`` in a thread, whose vCPUs beyond the first have threads of their own. It begins paused.

    Exits that want an answer get 0, others are ignored, as vmm run does; the payload's event and HLT end the
    guest. After ``limit`` seconds of running in all it is ended too. ``ring_full`` answers a full dirty ring.
    With ``idle_on_halt`` HLT is not the end: the guest is idle from then on.
    """

    def __init__(
        self,
        guest: BaseGuest,
        *,
        limit: float = 3600.0,
        lease: Lease | None = None,
        journal: Journal | None = None,
        idle_on_halt: bool = False,
    ) -> None:
        self.guest = guest
        self.ring_full: Callable[[], None] | None = None
        self.throttle = 0.0  # the share of time, 0 to 0.99, in which the guest does not run
        self.outcome: Outcome | None = None
        self._limit, self._idle_on_halt = limit, idle_on_halt
        self._lease, self._journal = lease or Lease(), journal or Journal()
        self._ran = 0.0
        self._ignored = 0
        self._halted = False
        self._error: BaseException | None = None
        self._state = threading.Condition()
        self._wanted = self._running = self._closing = False
        self.ended = os.eventfd(0, os.EFD_CLOEXEC)  # readable when the guest has ended
        self._thread = threading.Thread(target=self._serve, name="guest", daemon=True)
        self._thread.start()

    # --- for the other thread ---------------------------------------------------------------------

    def reserve(self) -> None:
        """Take the lease before go() does; MigrationError if another process holds it."""
        self._lease.take()

    def go(self) -> None:
        """Let the guest run, unless it has ended; MigrationError if another process holds the lease."""
        with self._state:
            if self._wanted or self.outcome is not None or self._error is not None:
                return
            self._lease.take()
            self._journal.write("run")
            self._wanted = self._running = True
            self._state.notify_all()

    def pause(self) -> None:
        """Stop all vCPUs, each between two instructions; on return none runs. Raises what the thread raised."""
        with self._state:
            self._wanted = False
            self._state.notify_all()
            if self._running:
                self.guest.kick()
            if not self._state.wait_for(lambda: not self._running, _PAUSE_TIMEOUT):
                raise MigrationError(f"the guest could not be paused in {_PAUSE_TIMEOUT:g} s")
        if self._error is not None:
            raise self._error

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Wait until the guest has ended and return how; None if it has not in ``timeout`` seconds."""
        with self._state:
            self._state.wait_for(lambda: self.outcome is not None or self._error is not None, timeout)
        if self._error is not None:
            raise self._error
        return self.outcome

    def close(self) -> None:
        """Stop the guest for good; it can be closed then."""
        with self._state:
            self._closing, self._wanted = True, False
            self._state.notify_all()
            if self._running:
                self.guest.kick()
        self._thread.join(_PAUSE_TIMEOUT)
        self._lease.close()
        os.close(self.ended)

    # --- the guest's thread -----------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._state:
                # Not _wanted: pause() may come before this thread has woken up, and waits for _running to end.
                self._state.wait_for(lambda: self._running or self._closing)
                if not self._running:
                    return
            outcome, failure = None, None
            try:
                outcome = self._run()
                # Before the lease is given back: whoever takes it next must find this line.
                self._journal.write("stop", ended=outcome.why if outcome else None)
            except BaseException as error:
                failure = error
            with self._state:
                self._running = False
                if outcome is not None or failure is not None:
                    self._wanted, self.outcome, self._error = False, outcome, failure
                    os.eventfd_write(self.ended, 1)
                self._lease.release()
                self._state.notify_all()

    def _run(self) -> Outcome | None:
        """Run until the guest is to pause (None) or has ended."""
        while self._wanted and self._halted:  # nothing can wake it: these guests have no interrupts
            self._sleep(None)
        # What has left is answered before its state is read.
        while self._wanted or self.guest.waiting:
            left = self._limit - self._ran
            if left <= 0:
                return Outcome(None, None, False, f"the guest ran for {self._limit:g} s, which is the limit")
            began = time.monotonic()
            exit = self.guest.resume(min(SLICE * (1 - self.throttle), left))
            self._ran += time.monotonic() - began
            outcome = self._handle(exit)
            if outcome is not None:
                return outcome
            if self.throttle and self._wanted:
                self._sleep(SLICE * self.throttle)
        return None

    def _handle(self, exit: Exit) -> Outcome | None:
        if isinstance(exit, Stopped | Deadline | Budget):
            return None
        if isinstance(exit, Unsupported) and exit.reason == lib.KVM_EXIT_DIRTY_RING_FULL and self.ring_full:
            self.ring_full()
            return None
        event = self.guest.event(exit)
        if event is not None:
            return Outcome(exit, event, event == self.guest.DONE, self.guest.describe(event))
        if isinstance(exit, Hlt):
            if not self._idle_on_halt:
                return Outcome(exit, None, True, "the guest halted")
            self._halted = True
            self._sleep(None)
            return None
        if isinstance(exit, IoIn | MmioRead):
            self.guest.left.vcpu.reply(0)
        elif isinstance(exit, Shutdown) or not hasattr(exit, "size"):
            return Outcome(exit, None, False, f"the guest left with {exit}")
        self._ignored += 1
        if self._ignored > _MOST_IGNORED:
            return Outcome(exit, None, False, f"the guest left {_MOST_IGNORED} times, at last with {exit}")
        return None

    def _sleep(self, seconds: float | None) -> None:
        with self._state, contextlib.suppress(TimeoutError):
            self._state.wait_for(lambda: not self._wanted or self._closing, seconds)
