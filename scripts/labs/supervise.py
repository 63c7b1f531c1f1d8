# SPDX-License-Identifier: Apache-2.0
"""Run emulators: pass on what their machines send, and end them whatever happens.

A hung machine spins a core for ever, so each run has a time limit; a kernel that panics is noticed on its
console.  Only processes started here are ended, by their id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .errors import LabError
from .frames import ERROR, FILES, HELLO, OUTPUT, READY, STATUS, FrameReader
from .progress import note

__all__ = ["Guest", "Sink", "console_reports", "console_tail", "failure_text", "supervise"]

_PANIC = b"Kernel panic - not syncing"
_FAULT = re.compile(r"\b(?:BUG|Oops|Internal error|Kernel panic|Unable to handle|general protection|double fault)\b")
_REPORT = re.compile(r"\b(?:WARNING:|BUG:|Oops:|Internal error:)")
_PANIC_GRACE = 1.0  # seconds for the rest of the panic's text
_END_GRACE = 5.0  # seconds to switch off after the command's status has come
_PR_SET_PDEATHSIG = 1


class Sink(Protocol):
    """Where a machine's output goes."""

    def output(self, data: bytes) -> None:
        """Take a piece of the command's standard output."""

    def error(self, data: bytes) -> None:
        """Take a piece of the command's standard error."""

    def files(self, data: bytes) -> None:
        """Take a piece of the archive with the files that the command left."""


@dataclass
class Guest:
    """A machine to run, then running, then ended with a `status` or a `failure`."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    data: tuple[int, int]  # the socket pair for its frames: (ours, the emulator's)
    data_is_stdout: bool
    console: Path | None  # the file its console is written to; None when the user sees it
    log: Path  # the emulator's own words
    inherited: Sequence[int]  # more descriptors for the emulator, closed here once it has them
    sink: Sink
    outgoing: bytes = b""  # frames for the agent
    when_ready: Callable[[Guest], None] | None = None  # called when the agent waits for its task
    status: int | None = None
    failure: str | None = None
    reader: FrameReader = field(default_factory=FrameReader)
    process: subprocess.Popen[bytes] | None = None
    panic_at: float | None = None
    status_at: float | None = None
    greetings: int = 0

    @property
    def ended(self) -> bool:
        """Whether the emulator has ended."""
        return self.process is None or self.process.poll() is not None

    def start(self) -> None:
        """Start the emulator with nothing to read; it ends when this process does."""
        ours, theirs = self.data
        with open(self.log, "wb") as log:
            try:
                self.process = subprocess.Popen(
                    self.command,
                    env={**os.environ, **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=theirs if self.data_is_stdout else log,
                    stderr=log,
                    pass_fds=(theirs, *self.inherited),
                    start_new_session=True,  # Ctrl-C is for us; we end the emulator
                    preexec_fn=_die_with_parent,
                )
            except OSError as error:
                raise LabError(f"The emulator {self.command[0]} could not be started: {error.strerror}.") from None
        for descriptor in (theirs, *self.inherited):
            os.close(descriptor)
        os.set_blocking(ours, False)

    def send(self) -> None:
        """Send as many of the outgoing frames as the channel takes."""
        try:
            self.outgoing = self.outgoing[os.write(self.data[0], self.outgoing) :]
        except BlockingIOError:
            pass
        except OSError:
            self.outgoing = b""  # nothing is there to take them; why is found when its end is received

    def receive(self) -> bool:
        """Take what has come through the channel; false at its end."""
        try:
            data = os.read(self.data[0], 1 << 16)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        for kind, payload in self.reader.feed(data):
            self._frame(kind, payload)
        return bool(data)

    def _frame(self, kind: str, payload: bytes) -> None:
        if kind == READY and self.when_ready is not None:
            self.when_ready(self)
        elif kind == HELLO:
            self.greetings += 1
            note(f"{self.name}: {payload.decode(errors='replace')}")
            if self.greetings > 1:
                self.failure = f"The machine {self.name} started a second time: something reset its processor."
        elif kind == OUTPUT:
            self.sink.output(payload)
        elif kind == ERROR:
            self.sink.error(payload)
        elif kind == FILES:
            self.sink.files(payload)
        elif kind == STATUS:
            self.status = int(payload)
            self.status_at = time.monotonic()

    def stop(self) -> None:
        """End the emulator."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def supervise(guests: Sequence[Guest], timeout: float, relay: Callable[[], bool] | None = None) -> None:
    """Run the guests until all have ended, `timeout` seconds at most.

    `relay` is called all the time to serve an interactive console; when it returns false, the run is over.
    """
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        try:
            for guest in guests:
                guest.start()
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if guest.outgoing else 0)
                selector.register(guest.data[0], events, guest)
            while selector.get_map() and not any(guest.failure for guest in guests):
                for key, events in selector.select(0.02 if relay else 0.1):
                    _exchange(selector, key.data, events)
                if relay is not None and not relay():
                    return
                for guest in guests:
                    _judge(guest, deadline, timeout)
            for guest in guests:
                _farewell(guest)
        finally:
            for guest in guests:
                guest.stop()
                os.close(guest.data[0])


def _exchange(selector: selectors.BaseSelector, guest: Guest, events: int) -> None:
    """Send and receive what the channel of a guest is ready for."""
    if events & selectors.EVENT_WRITE:
        guest.send()
        if not guest.outgoing:
            selector.modify(guest.data[0], selectors.EVENT_READ, guest)
    if events & selectors.EVENT_READ and not guest.receive():
        selector.unregister(guest.data[0])


def _judge(guest: Guest, deadline: float, timeout: float) -> None:
    """Look whether a guest has to be ended."""
    now = time.monotonic()
    if guest.ended:
        return
    if guest.status_at is not None:
        if now > guest.status_at + _END_GRACE:
            guest.stop()
        return
    if now > deadline:
        guest.failure = (
            f"The machine {guest.name} did not finish within {timeout:g} s and was ended; "
            "it hangs, or the command needs a longer --timeout."
        )
    elif guest.panic_at is None:
        if guest.console is not None and _PANIC in _tail_bytes(guest.console):
            guest.panic_at = now
    elif now > guest.panic_at + _PANIC_GRACE:
        guest.failure = _panic_sentence(guest)


def _panic_sentence(guest: Guest) -> str:
    text = _tail_bytes(guest.console) if guest.console is not None else b""
    reason = text.partition(_PANIC)[2].partition(b"\n")[0].strip(b" :\r").decode(errors="replace")
    return f"The kernel of the machine {guest.name} panicked: {reason or 'no reason given'}."


def _farewell(guest: Guest) -> None:
    """Say why a guest whose channel has closed has no status, if so."""
    if guest.status is not None or guest.failure is not None:
        return
    code = None
    if guest.process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = guest.process.wait(_END_GRACE)
    if guest.panic_at is not None or (guest.console is not None and _PANIC in _tail_bytes(guest.console)):
        guest.failure = _panic_sentence(guest)
    else:
        guest.failure = f"The emulator of the machine {guest.name} ended with status {code} before the command did."


def console_tail(guest: Guest, lines: int = 12) -> list[str]:
    """Return the last lines of a guest's console, or of the emulator's own words when there are none.

    When the kernel has reported a fault, the lines begin there: what led to a panic says more than its trace.
    """
    for file in (guest.console, guest.log):
        if file is None:
            continue
        text = _tail_bytes(file).decode(errors="replace").replace("\r", "")
        found = [line for line in text.splitlines() if line.strip()]
        fault = next((index for index, line in enumerate(found) if _FAULT.search(line)), None)
        if fault is not None:
            return found[fault : fault + 2 * lines]
        if found:
            return found[-lines:]
    return []


def failure_text(guest: Guest) -> str:
    """Return why a guest failed, with the last lines it printed."""
    tail = "".join(f"\n  {line}" for line in console_tail(guest))
    return f"{guest.failure} Its last words were:{tail}" if tail else f"{guest.failure} It printed nothing."


def console_reports(guest: Guest, most: int = 5) -> list[str]:
    """Return the first lines with which a guest's kernel has reported a fault of its own that it survived."""
    text = _tail_bytes(guest.console, 1 << 20).decode(errors="replace") if guest.console is not None else ""
    return [line.strip() for line in text.splitlines() if _REPORT.search(line)][:most]


def _tail_bytes(file: Path, size: int = 16384) -> bytes:
    try:
        with open(file, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - size))
            return stream.read()
    except FileNotFoundError:
        return b""


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
