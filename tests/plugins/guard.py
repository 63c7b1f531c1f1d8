# SPDX-License-Identifier: Apache-2.0
"""No test leaves pytest's own process other than it found it: what would change for the next one fails the test.

Looked at are signal handlers, the signal mask, timers, the folder, the umask, the environment, resource limits, what
prctl and arch_prctl set for a process, and threads. A test that has to change one of them is marked ``apart``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.patience import eventually
from tests.plugins.owner import is_own

_SIGNALS = sorted(signal.valid_signals())
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_LIMITS = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
_PRCTLS = {"PR_GET_PDEATHSIG": 2, "PR_GET_DUMPABLE": 3, "PR_GET_CHILD_SUBREAPER": 37, "PR_GET_NO_NEW_PRIVS": 39}
_BY_POINTER = {"PR_GET_PDEATHSIG", "PR_GET_CHILD_SUBREAPER"}
_PR_SVE_GET_VL = 51
_ARCH_PRCTL = 158  # the system call's number, x86-64
_ARCH_PRCTLS = {"ARCH_GET_XCOMP_PERM": 0x1022, "ARCH_GET_XCOMP_GUEST_PERM": 0x1024}
_LIBC = ctypes.CDLL(None)


def _prctls() -> Iterator[tuple[str, object]]:
    value = ctypes.c_uint64()
    for name, number in _PRCTLS.items():
        value.value = 0
        by_pointer = name in _BY_POINTER
        result = _LIBC.prctl(number, ctypes.byref(value) if by_pointer else 0, 0, 0, 0)
        yield name, (result, value.value)
    if platform.machine() == "aarch64":
        yield "PR_SVE_GET_VL", _LIBC.prctl(_PR_SVE_GET_VL, 0, 0, 0, 0)
    elif platform.machine() == "x86_64":
        for name, number in _ARCH_PRCTLS.items():
            value.value = 0
            yield name, (_LIBC.syscall(_ARCH_PRCTL, number, ctypes.byref(value)), value.value)


def _umask() -> int:
    found = os.umask(0o77)
    os.umask(found)
    return found


def process_state() -> dict[str, object]:
    """Return what of this process another test may see."""
    return {
        "signal handlers": {number: signal.getsignal(number) for number in _SIGNALS},
        "signal mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "timers": {which: signal.getitimer(which) != (0, 0) for which in _TIMERS},
        "folder": os.getcwd(),
        "umask": _umask(),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "resource limits": {name: resource.getrlimit(number) for name, number in _LIMITS.items()},
        **dict(_prctls()),
    }


def _differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    found = []
    for name in before:
        old, new = before[name], after[name]
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{name}: {key}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        elif old != new:
            found.append(f"{name}: {old} before, {new} after")
    return found


@pytest.fixture(autouse=True)
def _leaves_the_process_as_it_was() -> Iterator[None]:
    if not is_own():  # a process of the test's own
        yield
        return
    before, threads = process_state(), set(threading.enumerate())
    yield
    changed = _differences(before, process_state())
    ended: Callable[[], bool] = lambda: set(threading.enumerate()) <= threads  # noqa: E731
    if not eventually(ended, 5):
        changed += [f"threads: {thread.name}" for thread in set(threading.enumerate()) - threads]
    assert not changed, f"this test left its process changed (mark it `apart`, or tidy up): {'; '.join(changed)}"
