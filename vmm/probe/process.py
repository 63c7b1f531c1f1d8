# SPDX-License-Identifier: Apache-2.0
"""What the process that runs the clauses may do: facts that are neither KVM's nor the CPU's."""

from __future__ import annotations

import os
import resource
from dataclasses import asdict, dataclass

from vmm.kvm.ioctl import errno_name

__all__ = ["UNMEASURED", "Process", "measure"]


@dataclass(frozen=True, slots=True)
class Process:
    """``open_files`` and ``pending_signals`` are soft limits (-1: none); ``memfd`` is empty, or the errno's name."""

    uid: int = 0
    open_files: int = -1
    pending_signals: int = -1
    memfd: str = ""

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for people."""
        limits = ((self.open_files, "open files"), (self.pending_signals, "pending signals"))
        shown = [f"{'any number of' if limit < 0 else limit} {name}" for limit, name in limits]
        memfd = f"memfd_create fails with {self.memfd}" if self.memfd else "memfd"
        return [("this process", ", ".join([f"uid {self.uid}", *shown, memfd]))]

    def to_json(self) -> dict[str, object]:
        """Return the facts as JSON values."""
        return asdict(self)


#: What is said of a process that nobody measured: that nothing limits it.
UNMEASURED = Process()


def _memfd() -> str:
    try:
        os.close(os.memfd_create("probe"))
    except OSError as error:
        return errno_name(error.errno or 0)
    return ""


def measure() -> Process:
    """Measure this process; nothing of it changes."""
    return Process(
        uid=os.getuid(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        pending_signals=resource.getrlimit(resource.RLIMIT_SIGPENDING)[0],
        memfd=_memfd(),
    )
