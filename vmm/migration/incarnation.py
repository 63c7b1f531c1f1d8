# SPDX-License-Identifier: Apache-2.0
"""Which process it is: told to the other side, so that it can know for certain when that process is gone.

A refused connection proves nothing: firewalls refuse too, and addresses move. On the same host there is better:
a pidfd, which the kernel makes readable when the process has ended (pidfd_open(2)).
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Incarnation", "Witness"]


@dataclass(frozen=True, slots=True)
class Incarnation:
    """Boot, process namespace, process id and start time in one text: no two processes share it."""

    text: str

    @classmethod
    def own(cls) -> Incarnation:
        """Return that of this process."""
        return cls(f"{_here()} {os.getpid()} {_started(os.getpid())}")


class Witness:
    """Watches other processes, if they all run on this host."""

    def __init__(self, *processes: Incarnation) -> None:
        self._pidfds: list[int] = []
        for process in processes:
            descriptor = _open(process)
            if descriptor is None:
                self.close()
                return
            self._pidfds.append(descriptor)

    @property
    def watches(self) -> bool:
        """Are they processes of this host?"""
        return bool(self._pidfds)

    def gone(self, timeout: float = 0.0) -> bool:
        """Wait up to ``timeout`` seconds for the end of all; False too where that cannot be known."""
        deadline = time.monotonic() + timeout
        for descriptor in self._pidfds:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return False
        return self.watches

    def close(self) -> None:
        """Watch no more."""
        for descriptor in self._pidfds:
            os.close(descriptor)
        self._pidfds = []


def _open(process: Incarnation) -> int | None:
    """Return a pidfd of a process of this host, None for any other."""
    here, _, number = process.text.rpartition(" ")[0].rpartition(" ")
    if here != _here() or not number.isascii() or not number.isdigit():
        return None
    try:
        descriptor = os.pidfd_open(int(number))
    except (OSError, OverflowError):
        return None
    try:
        # The number may have been given to another process by now: the start time tells.
        same = process.text.rpartition(" ")[2] == str(_started(int(number)))
    except OSError:
        same = False
    if same:
        return descriptor
    os.close(descriptor)
    return None


def _here() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"


def _started(pid: int) -> int:
    """The start time in clock ticks, proc_pid_stat(5) field 22; the name in field 2 may hold anything."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
