# SPDX-License-Identifier: Apache-2.0
"""The threads of a guest with several vCPUs: all run together, and when one has to stop, all do.

A vCPU is always run by the same thread: KVM waits for a grace period when another one takes over. Threads are kept
for the next guest when one is closed, because each has a timer that only ends with the process.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue

from vmm._kvm import lib
from vmm.guest.processor import Processor
from vmm.kvm.exits import Budget, Deadline, Exit, Stopped

__all__ = ["Crew"]

_LEAST = 0.001  # seconds


class _Worker:
    """A thread that does what it is given, one after the other."""

    def __init__(self) -> None:
        self.work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._serve, name="vCPU", daemon=True).start()

    def _serve(self) -> None:
        # Python's handlers run in the main thread, which would not hear of a signal that came here.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {lib.vmm_kick_signal()})
        while True:
            self.work.get()()


_idle: list[_Worker] = []
os.register_at_fork(after_in_child=_idle.clear)  # the child has none of the threads


def _hire() -> _Worker:
    try:
        return _idle.pop()
    except IndexError:
        pass
    try:
        return _Worker()
    except RuntimeError as error:  # what Python makes of EAGAIN
        raise OSError(errno.EAGAIN, "a thread for each vCPU") from error


class Crew:
    """Runs the vCPUs of one guest: the first in the caller's thread, each other in one of its own.

    ``is_end`` tells whether an exit is the one with which a vCPU comes to its end; the others go on then.
    ``running`` is whether vCPUs may be in KVM_RUN.
    """

    def __init__(self, processors: Sequence[Processor], is_end: Callable[[Exit], bool]) -> None:
        self.running = False
        self._processors, self._is_end = processors, is_end
        self._workers = [_hire() for _ in processors[1:]]
        self._asked = threading.Event()  # somebody wants all of them to stop
        self._halting = False  # one has left, so the others stop
        self._left: list[tuple[Processor, Exit]] = []
        self._exits: list[Exit] = []
        self._failure: BaseException | None = None
        self._state = threading.Condition()
        self._turn = 0  # counts the runs
        self._to_do = 0  # workers that have not done their share of this one
        self._inside: set[Processor] = set()  # those whose workers have begun it

    @property
    def waiting(self) -> bool:
        """Whether one has left of whom run() has not told yet."""
        return bool(self._left)

    def run(self, timeout: float, ticks: int) -> tuple[Processor, Exit]:
        """Run all that have not ended until each has made its ``ticks``, or one leaves; no vCPU runs afterwards.

        Returns who left and how. If all have ended, that is the first with its last event; Stopped after kick(),
        Deadline if one did not make its ticks in ``timeout`` seconds, and else Budget are nobody's in particular.
        """
        if self._left:  # it left together with another one
            return self._left.pop(0)
        first = self._processors[0]
        if self._asked.is_set():
            self._asked.clear()
            return first, Stopped()
        self._run(time.monotonic() + timeout, ticks)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self._left:
            return self._left.pop(0)
        if self._asked.is_set():
            self._asked.clear()
            return first, Stopped()
        if any(isinstance(exit, Deadline) for exit in self._exits):
            return first, Deadline()
        return first, Budget(ticks) if self._exits or first.ended is None else first.ended

    def _run(self, until: float, ticks: int) -> None:
        first, *others = self._processors
        pairs = [(one, worker) for one, worker in zip(others, self._workers, strict=True) if one.ended is None]
        self._exits, self._halting = [], False
        self._turn, self._to_do, self.running = self._turn + 1, len(pairs), True
        try:
            for processor, worker in pairs:
                worker.work.put(partial(self._serve, processor, self._turn, until, ticks))
            if first.ended is None:
                self._one(first, until, ticks)
            with self._state:
                self._state.wait_for(lambda: not self._to_do)
        except BaseException:
            self._abandon()
            raise
        self.running = False

    def _abandon(self) -> None:
        """Stop a run that was interrupted: nothing is closed under a vCPU that runs, however often Ctrl-C comes."""
        while self.running:
            with suppress(BaseException), self._state:
                self._turn += 1  # who has not begun yet never does
                self._halt()
                self._state.wait_for(lambda: not self._inside)
                self.running = False

    def _serve(self, processor: Processor, turn: int, until: float, ticks: int) -> None:
        """A worker's share of a run."""
        with self._state:
            if turn != self._turn:
                return
            self._inside.add(processor)
        try:
            self._one(processor, until, ticks)
        except BaseException as error:
            self._failure = error
            self._halt()
        finally:
            with self._state:
                self._inside.discard(processor)
                self._to_do -= 1
                self._state.notify_all()

    def _one(self, processor: Processor, until: float, ticks: int) -> None:
        while True:
            exit = processor.run(max(until - time.monotonic(), _LEAST), ticks)
            if not isinstance(exit, Stopped) or self._halting or self._asked.is_set():
                break
            # A kick that came when its run was over: it meant nothing of this one.
            ticks -= processor.ticks
        if isinstance(exit, Stopped | Deadline | Budget):
            self._exits.append(exit)
        elif self._is_end(exit):
            processor.ended = exit
        else:
            self._left.append((processor, exit))
            self._halt()

    def _halt(self) -> None:
        self._halting = True
        for processor in self._processors:
            processor.kick()

    def kick(self) -> None:
        """Stop a run from another thread, or the next one if there is none now."""
        self._asked.set()
        for processor in self._processors:
            processor.kick()

    def close(self) -> None:
        """Let go of the threads; nothing runs any more."""
        _idle.extend(self._workers)
        self._workers = []
