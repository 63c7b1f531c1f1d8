# SPDX-License-Identifier: Apache-2.0
"""tests/processes.py, by which scripts/test runs all it runs: nothing outlives it, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from tests import processes
from tests.patience import LIMIT, eventually

# Starts a process in a session of its own, without a parent, that ignores signals; then goes on for a while.
_STRAY = """
import os, signal, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(3600)
    os._exit(0)
time.sleep(float(sys.argv[1]))
"""


def _supervise(*command: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-I", str(Path(processes.__file__)), *command]
    return subprocess.Popen(
        words, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True, preexec_fn=_without_nohup
    )


def _without_nohup() -> None:
    """These tests may run below nohup(1), whose SIG_IGN every program inherits."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def terminal_pair() -> tuple[int, int]:
    """A new terminal and what controls it, the latter first; skips where there are none."""
    try:
        return os.openpty()
    except OSError as error:
        pytest.skip(f"no terminals here: {error.strerror}")


@pytest.mark.parametrize(("program", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 128 + 9)])
def test_the_status_is_that_of_the_command(program: str, status: int) -> None:
    process = _supervise("sh", "-c", f"echo said; {program}")
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, err) == (status, "said\n", "")


def test_a_command_that_does_not_exist_is_named() -> None:
    process = _supervise("/no/such/program")
    assert "/no/such/program: No such file" in process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 127


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_also_ends_what_hides_from_it(number: signal.Signals) -> None:
    process = _supervise(sys.executable, "-c", _STRAY, "3600")
    assert process.stdout is not None
    stray = int(process.stdout.readline())
    process.send_signal(number)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + number
    assert eventually(lambda: processes.gone(stray))


def test_a_signal_that_is_ignored_from_the_start_stays_so() -> None:
    words = [sys.executable, "-I", str(Path(processes.__file__)), "sh", "-c", "echo ready; exec sleep 3600"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=_ignore)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGTERM


def _ignore() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_what_a_terminal_sends_reaches_the_command_once() -> None:
    """Ctrl-C is the kernel's, to the whole group: the command gets it from there, and time to tidy up."""
    controller, terminal = terminal_pair()
    program = (
        "import signal, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))\n"
        "print('ready', flush=True)\n"
        "while not seen: time.sleep(0.01)\n"
        "time.sleep(0.3); print(seen == [signal.SIGINT], flush=True)\n"
    )
    words = [sys.executable, "-I", str(Path(processes.__file__)), sys.executable, "-c", program]
    process = subprocess.Popen(
        words, stdin=terminal, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_take_terminal
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.write(controller, b"\x03")
    assert process.communicate(timeout=LIMIT)[0] == "True\n"
    assert process.returncode == 128 + signal.SIGINT
    os.close(controller)
    os.close(terminal)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_what_a_command_leaves_running_is_ended_and_named() -> None:
    process = _supervise(sys.executable, "-c", _STRAY, "0.5")
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert err.startswith(f"left running, and ended now: {out.strip()} (")
    assert processes.gone(int(out))
