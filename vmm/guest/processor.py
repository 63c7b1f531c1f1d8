# SPDX-License-Identifier: Apache-2.0
"""One vCPU of a guest: its mailbox, the exit that is still pending, and the pace of a payload that asks for one.

A guest cannot sleep, and one that counts cycles counts those of another clock after a migration. So a payload that
wants to do something at a rate writes, after each share of it, the microseconds from one share to the next to where
``PACE_...`` says, and the VMM lets it run on when they are over. A share that was late is made up for by one at most:
a guest that was paused or slowed down does not hurry afterwards.
"""

from __future__ import annotations

import threading
import time

from vmm.guest.payload import Mailbox
from vmm.kvm.exits import Budget, Deadline, Exit, IoIn, IoOut, MmioRead, MmioWrite, MsrRead, MsrWrite, Stopped
from vmm.kvm.vcpu import Vcpu

__all__ = ["Processor"]

# Exits whose instruction is only retired by the next KVM_RUN.
_PENDING = (IoOut, IoIn, MmioWrite, MmioRead, MsrRead, MsrWrite, Budget)
_MICROSECONDS = 1_000_000
_LEAST = 0.001  # seconds that the guest gets even when its time is up: a deadline of 0 is none


class Processor:
    """A vCPU and its mailbox. ``pace`` is where a payload writes its pace, None if it has none.

    ``ended`` is the event with which it came to its end, in a guest whose other vCPUs have not; ``ticks`` how many
    there were in its last run.
    """

    def __init__(self, vcpu: Vcpu, mailbox: Mailbox, pace: int | None) -> None:
        self.vcpu, self.mailbox = vcpu, mailbox
        self.pending = False
        self.ended: Exit | None = None
        self.ticks = 0
        self._pace = pace
        self._due = 0.0
        self._kicked = threading.Event()  # only ever looked at by a vCPU that waits for its next share

    def run(self, timeout: float, ticks: int) -> Exit:
        """Run to the next exit that is neither a tick nor a pace; see Vcpu.run."""
        if self._pace is not None:
            return self._run_paced(timeout, ticks)
        self.pending = False
        exit = self.vcpu.run(timeout, ticks)
        self.pending = isinstance(exit, _PENDING)
        self.ticks = self.vcpu.absorbed
        return exit

    def _run_paced(self, timeout: float, ticks: int) -> Exit:
        until = time.monotonic() + timeout
        self.ticks = 0
        while self._wait(until):
            self.pending = False
            exit = self.vcpu.run(max(until - time.monotonic(), _LEAST), ticks - self.ticks)
            self.pending = isinstance(exit, _PENDING)
            self.ticks += self.vcpu.absorbed
            if isinstance(exit, Stopped):
                self._kicked.clear()
            interval = self._interval(exit)
            if interval is None:
                return Budget(self.ticks) if isinstance(exit, Budget) else exit
            self._due = max(self._due, time.monotonic() - interval) + interval
        return Deadline()

    def _wait(self, until: float) -> bool:
        """Wait until the next share is due; False if that is later than ``until``."""
        while (left := min(self._due, until) - time.monotonic()) > 0:
            if self._kicked.wait(left):
                return True  # the vCPU will not get far
        return self._due <= until

    def _interval(self, exit: Exit) -> float | None:
        """Return the seconds that a payload asks for; None for an exit that is something else."""
        if isinstance(exit, IoOut):
            return exit.value / _MICROSECONDS if exit.port == self._pace else None
        if isinstance(exit, MmioWrite):
            return exit.value / _MICROSECONDS if exit.address == self._pace else None
        return None

    def kick(self) -> None:
        """Stop a run from another thread, or the next one if there is none now."""
        self._kicked.set()  # first: whoever it wakes has the vCPU's own flag a moment later
        self.vcpu.kick()

    def complete(self) -> None:
        """Retire the instruction that the guest left with, if it is pending."""
        if self.pending:
            self.vcpu.complete()
            self.pending = False
