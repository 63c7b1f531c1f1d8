# SPDX-License-Identifier: Apache-2.0
"""A clause that hangs, crashes or is interrupted is its own affair, and leaves nothing running."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.patience import LIMIT, TIME_SCALE, eventually
from tests.processes import gone, state
from vmm.conformance import server
from vmm.conformance.context import Options
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.runner import Job, Runner

pytestmark = pytest.mark.kvm
_PRELOAD = ["tests.conformance.isolation_clauses"]
_DRIVER = """
import sys
from vmm.conformance.context import Options
from vmm.conformance.runner import Job, Runner
with Runner(preload=["tests.conformance.isolation_clauses"], pristine=PRISTINE) as runner:
    for number, result in runner.run([Job.of("test.sleeps", Options())]):
        print(runner._process.pid, flush=True)
"""


def _run(*clauses: str, time_scale: float = TIME_SCALE) -> dict[str, ClauseResult]:
    options = Options(time_scale=time_scale)
    with Runner(preload=_PRELOAD) as runner:
        return {result.id: result for result in runner.results(Job.of(name, options) for name in clauses)}


def _children(pid: int) -> list[int]:
    every = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [child for child in every if (found := state(child)) and found[1] == pid]


def _left_behind() -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"left-behind-by-test.hangs" in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def test_each_way_to_misbehave_is_only_that_clauses_verdict() -> None:
    results = _run("test.passes", "test.crashes", "test.exits", "test.raises", "test.guest-hangs", "test.passes")
    assert results["test.passes"].verdict is Verdict.PASS
    assert results["test.crashes"].verdict is Verdict.ERROR
    assert "SIGSEGV" in results["test.crashes"].reason
    assert results["test.exits"].verdict is Verdict.ERROR
    assert "status 7" in results["test.exits"].reason
    assert "last words" in results["test.exits"].trace
    assert results["test.raises"].verdict is Verdict.ERROR
    assert "ZeroDivisionError" in results["test.raises"].reason
    assert results["test.guest-hangs"].verdict is Verdict.TIMEOUT
    assert "Deadline" in results["test.guest-hangs"].reason


def test_a_clause_that_hangs_is_killed_with_its_own_children() -> None:
    result = _run("test.hangs", time_scale=1.0)["test.hangs"]
    assert result.verdict is Verdict.TIMEOUT
    assert eventually(lambda: not _left_behind())


def test_no_clause_inherits_another_ones_frozen_permission() -> None:
    """A vCPU in one clause must not freeze the permission of the next: the server never makes one."""
    results = _run("test.passes", "perm.guest-supp-independent-of-perm", "test.passes", "perm.req-errors")
    assert {r.verdict for r in results.values()} <= {Verdict.PASS, Verdict.SKIP}


def _driver(pristine: bool) -> tuple[subprocess.Popen[str], int, list[int]]:
    """Start a process that runs a clause of 30 s; return it, its server's pid and the clauses' pids."""
    program = _DRIVER.replace("PRISTINE", str(pristine))
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    server = int(process.stdout.readline())
    assert eventually(lambda: len(_children(server)) == 1)
    return process, server, _children(server)


_PRISTINE = pytest.mark.parametrize("pristine", [False, True], ids=["exec", "fork"])


@_PRISTINE
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_is_left_when_the_client_dies(number: signal.Signals, pristine: bool) -> None:
    process, server, clauses = _driver(pristine)
    process.send_signal(number)
    process.communicate(timeout=LIMIT)
    assert eventually(lambda: all(map(gone, [server, *clauses])))


@_PRISTINE
def test_no_clause_is_left_when_the_server_dies(pristine: bool) -> None:
    process, server, clauses = _driver(pristine)
    os.kill(server, signal.SIGKILL)
    _, stderr = process.communicate(timeout=LIMIT)
    assert "the clause server ended with status -9" in stderr
    assert eventually(lambda: all(map(gone, clauses)))


def test_a_forked_server_that_cannot_start_says_why() -> None:
    program = (
        "from vmm.conformance.runner import Runner\n"
        "with Runner(preload=['tests.no_such_module'], pristine=True) as runner:\n"
        "    runner.clauses\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT)
    assert "No module named 'tests.no_such_module'" in done.stderr
    assert "RuntimeError: the clause server ended with status 1" in done.stderr


def test_ctrl_c_ends_the_command_with_130_and_leaves_nothing() -> None:
    command = [sys.executable, "-m", "vmm", "check", "--exhaustive", "mig.order-matrix"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)
    assert eventually(lambda: any(_children(server) for server in _children(process.pid)))
    servers = _children(process.pid)
    clauses = [clause for server in servers for clause in _children(server)]
    os.killpg(process.pid, signal.SIGINT)  # what the terminal does
    _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert stderr.decode().strip() == "vmm: interrupted"
    assert eventually(lambda: all(map(gone, [*servers, *clauses])))


def test_a_process_that_cannot_be_started_is_an_error_with_its_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "lib", SimpleNamespace(vmm_fork=lambda: -errno.EAGAIN))
    with pytest.raises(OSError) as caught:
        server._fork_quickly()
    assert (caught.value.errno, caught.value.strerror) == (errno.EAGAIN, os.strerror(errno.EAGAIN))
