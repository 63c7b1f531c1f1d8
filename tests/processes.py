# SPDX-License-Identifier: Apache-2.0
"""Processes that the tests start, and their end: nothing outlives a run, however that ends.

    python3 tests/processes.py COMMAND [ARGUMENT ...]

runs a command and returns its status (128 and more for a signal, as a shell does). SIGTERM, SIGINT and SIGHUP end the
command and every process that it started, also those that have lost their parent or left its process group; what the
command itself leaves behind is ended when it ends, and named. A signal that is ignored from the start, as SIGHUP is
with nohup(1), stays so. Needs nothing but Python: it runs before .venv exists.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["descendants", "end", "gone", "state", "supervise"]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_ASKED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_GRACE = 20.0  # seconds in which those that were asked to end may tidy up


def state(pid: int) -> tuple[str, int] | None:
    """Return a process's state letter and its parent, None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1])


def gone(pid: int) -> bool:
    """Say whether a process has ended, reaped or not."""
    return (state(pid) or "Z")[0] == "Z"


def descendants(pid: int) -> list[int]:
    """Return the processes below a process that are alive, parents first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := state(int(name))) and found[0] != "Z":
            children.setdefault(found[1], []).append(int(name))
    return list(_below(children, pid))


def _below(children: dict[int, list[int]], pid: int) -> Iterator[int]:
    for child in children.get(pid, ()):
        yield child
        yield from _below(children, child)


def end(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to processes that may have ended by themselves."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def supervise(command: list[str]) -> int:
    """Run a command as the module says and return its status."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asking = {number for number in _ASKED if signal.getsignal(number) is not signal.SIG_IGN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*asking, signal.SIGCHLD})

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        process = subprocess.Popen(command, preexec_fn=prepare)  # kept: without it Popen would reap the child
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    status, asked = _wait(process.pid, asking)
    left = _end_all()
    if left and not asked:
        print(f"left running, and ended now: {', '.join(left)}", file=sys.stderr)
        return status or 1
    return 128 + asked if asked else status


def _wait(child: int, asking: set[signal.Signals]) -> tuple[int, int]:
    """Wait for the child and for signals; return its status and the first signal that asked us to end, or 0."""
    asked, deadline = 0, float("inf")
    while True:
        status = _reap(child)
        if status is not None:
            return status, asked
        if time.monotonic() > deadline:
            return 128 + asked, asked
        info = signal.sigtimedwait({*asking, signal.SIGCHLD}, 0.5)
        if info is None or info.si_signo == signal.SIGCHLD:
            continue
        # Ctrl-C comes from the kernel, to the whole process group; what a process sends comes to us alone.
        if info.si_code <= 0:
            end(descendants(os.getpid()), signal.SIGTERM)
        if not asked:
            asked, deadline = info.si_signo, time.monotonic() + _GRACE


def _reap(child: int) -> int | None:
    """Reap all that has ended; return the child's status as a shell would, None while it runs."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else 128 - code


def _end_all() -> list[str]:
    """End whatever is still running below us and return what that was."""
    names: dict[int, str] = {}
    while left := descendants(os.getpid()):
        for pid in left:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                names.setdefault(pid, f"{pid} ({words.strip()[:100]})")
        end(left)
        _reap(0)
        time.sleep(0.01)
    return list(names.values())


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
