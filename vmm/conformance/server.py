# SPDX-License-Identifier: Apache-2.0
"""The fork server: a pristine process that has never created a vCPU, and forks one child per clause.

The guest permission and its lock belong to a process, are inherited by fork and outlive every KVM fd, so
no clause may run where another has run. Forking a process that has everything imported costs a
millisecond or two; an exec of Python would cost a hundred. It runs as ``python -m vmm.conformance.server FD``,
or as a fork of a client that is as pristine, and speaks JSON lines over that socket: one job a line in
({"id": ..., ...}), and out first the host (or {"unavailable": ...}), then for every job {"started": n} and
{"finished": n, "result": ...}.

multiprocessing's fork server would run the caller's main module in every child and hides how a child
died; this one reports the signal, kills the child's whole process group, and dies with its client.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from vmm._kvm import lib
from vmm.conformance import expectations
from vmm.conformance.context import Options
from vmm.conformance.execute import execute, skip
from vmm.conformance.model import ClauseResult, Verdict
from vmm.conformance.registry import Clause, all_clauses
from vmm.conformance.world.generate import tables
from vmm.guest.payload import load, names
from vmm.kvm import signals
from vmm.kvm.ioctl import errno_name, request_name
from vmm.kvm.system import Kvm, KvmUnavailable
from vmm.probe import host as host_module
from vmm.probe.host import Host

__all__ = ["main", "run", "serve"]

_OUTPUT_KEPT = 4000
_KILL_AGAIN = 1.0  # seconds; a process inside a system call may need a moment to die


@dataclass(slots=True)
class _Child:
    """A running clause: two pipes, its process and its deadline."""

    number: int
    clause: Clause
    pid: int
    pidfd: int
    results: int
    output: int
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    printed: bytearray = field(default_factory=bytearray)
    timed_out: bool = False

    def drain(self) -> None:
        """Read what the pipes hold now."""
        for fd, buffer in ((self.results, self.received), (self.output, self.printed)):
            with suppress(BlockingIOError):
                while data := os.read(fd, 65536):
                    buffer += data

    def kill(self) -> None:
        """End the child's whole process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the descriptors of a child that has been waited for."""
        for fd in (self.pidfd, self.results, self.output):
            os.close(fd)

    def result(self, status: int) -> ClauseResult:
        """Return the result, made up from the wait status if the child wrote none."""
        if self.received.endswith(b"\n") and not self.timed_out:
            return ClauseResult.from_json(json.loads(self.received))
        result = ClauseResult(self.clause.id, Verdict.ERROR, self.clause.statement, source=self.clause.source)
        if self.timed_out:
            result.verdict = Verdict.TIMEOUT
            result.reason = f"the clause did not end in time and was killed after {self.clause.timeout:g} s or more"
        elif os.WIFSIGNALED(status):
            result.reason = f"the clause's process died of {signal.Signals(os.WTERMSIG(status)).name}"
        else:
            result.reason = (
                f"the clause's process exited with status {os.waitstatus_to_exitcode(status)} and no result"
            )
        result.trace = self.printed.decode("utf-8", "replace")[-_OUTPUT_KEPT:].splitlines()
        return result


def _interposer(job: dict[str, Any]) -> Any:
    """Make the interposer a job asks for: ``interposer`` names a factory, ``arguments`` are its own."""
    if not job.get("interposer"):
        return None
    module, _, attribute = job["interposer"].partition(":")
    return getattr(importlib.import_module(module), attribute)(*job.get("arguments", ()))


def _run_child(clause: Clause, host: Host, job: dict[str, Any], results: int, output: int, parent: int) -> None:
    """In the child: run the clause, write its result, leave without any of the server's clean-up."""
    status = 1
    try:
        if lib.vmm_die_with_parent(parent) < 0:
            return
        os.setpgid(0, 0)
        gc.disable()  # the child ends soon, and a collection would copy the pages it shares with the server
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        result = execute(clause, host, Options(**job.get("options", {})), interposer=_interposer(job))
        data = json.dumps(result.to_json()).encode() + b"\n"
        os.set_blocking(results, True)
        while data:
            data = data[os.write(results, data) :]
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    """Return a pipe's ends, the first to be closed by ``ours``, the second by ``theirs``."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    ours.callback(os.close, reading)
    theirs.callback(os.close, writing)
    return reading, writing


class _Server:
    def __init__(self, channel: socket.socket, host: Host, clauses: dict[str, Clause]) -> None:
        self._channel, self._host, self._clauses = channel, host, clauses
        self._known = expectations.load(host)
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque()
        self._running: dict[int, _Child] = {}
        self._input = bytearray()
        self._count = 0
        self._jobs = os.cpu_count() or 1
        self._open = True

    def loop(self) -> None:
        """Serve until the client closes its end."""
        try:
            while self._open or self._running:
                while self._waiting and len(self._running) < self._jobs:
                    self._start(*self._waiting.popleft())
                self._wait()
        finally:
            for child in self._running.values():
                child.kill()
                os.waitpid(child.pid, 0)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        for child in self._running.values():
            for fd in (child.pidfd, child.results, child.output):
                poll.register(fd, select.POLLIN)
        now = time.monotonic()
        nearest = min((child.deadline for child in self._running.values()), default=None)
        ready = {fd for fd, _ in poll.poll(None if nearest is None else max(0.0, nearest - now) * 1000)}
        if self._channel.fileno() in ready:
            self._receive()
        for child in list(self._running.values()):
            self._look_after(child, ready)

    def _look_after(self, child: _Child, ready: set[int]) -> None:
        if child.deadline <= time.monotonic():
            child.timed_out = True
            child.deadline = time.monotonic() + _KILL_AGAIN
            child.kill()
        ended = child.pidfd in ready
        status = os.waitpid(child.pid, 0)[1] if ended else 0
        with suppress(OSError):
            child.drain()
        if ended:
            child.kill()  # what may remain in its process group
            self._finish(child, status)

    def _receive(self) -> None:
        data = self._channel.recv(1 << 16)
        if not data:
            raise EOFError("the client is gone")
        self._input += data
        *lines, rest = self._input.split(b"\n")
        self._input = bytearray(rest)
        for line in lines:
            job = json.loads(line)
            if "jobs" in job:
                self._jobs = max(1, job["jobs"])
            elif job.get("end"):
                self._open = False
            else:
                self._waiting.append((self._count, job))
                self._count += 1

    def _start(self, number: int, job: dict[str, Any]) -> None:
        clause = self._clauses[job["id"]]
        skipped = skip(clause, self._host, Options(**job.get("options", {})))
        if skipped and not job.get("interposer"):
            # Nothing would run in a child: its precondition was measured before.
            self._send({"finished": number, "result": skipped.to_json()})
            return
        try:
            self._fork(number, clause, job)
        except OSError as error:
            why = f"the clause's process could not be started: {errno_name(error.errno or 0)}: {error.strerror}"
            result = ClauseResult(clause.id, Verdict.ERROR, clause.statement, reason=f"{why} (see ulimit -n, -u)")
            self._send({"finished": number, "result": result.to_json()})
            return
        self._send({"started": number})

    def _fork(self, number: int, clause: Clause, job: dict[str, Any]) -> None:
        """Start the clause's process; OSError, with nothing left, if this one lacks descriptors or processes."""
        with ExitStack() as undo, ExitStack() as theirs:
            results, results_end = _pipe(undo, theirs)
            output, output_end = _pipe(undo, theirs)
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                self._channel.close()
                _run_child(clause, self._host, job, results_end, output_end, parent)
            undo.callback(os.waitpid, pid, 0)
            undo.callback(os.kill, pid, signal.SIGKILL)
            with suppress(OSError):
                os.setpgid(pid, pid)  # both sides do it: whoever comes first
            pidfd = os.pidfd_open(pid)
            undo.pop_all()
        limit = clause.timeout * float(job.get("options", {}).get("time_scale", 1.0))
        self._running[pid] = _Child(number, clause, pid, pidfd, results, output, time.monotonic() + limit)

    def _finish(self, child: _Child, status: int) -> None:
        del self._running[child.pid]
        child.close()
        result = expectations.apply(child.result(status), self._known)
        self._send({"finished": child.number, "result": result.to_json()})

    def _send(self, message: dict[str, Any]) -> None:
        self._channel.sendall(json.dumps(message).encode() + b"\n")


def serve(channel: socket.socket, preload: Iterable[str]) -> None:
    """Import everything a clause needs, measure the host, and serve jobs until the client is gone."""
    gc.disable()  # what is imported stays: looking for garbage among it would be in vain
    for module in preload:
        importlib.import_module(module)
    clauses = {clause.id: clause for clause in all_clauses()}
    for name in names():
        load(name)
    for table in tables():
        table.prepare()
    request_name(0)  # the names of the requests are looked for once
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the client has had enough
        try:
            with Kvm() as kvm:
                host = host_module.measure(kvm)
        except KvmUnavailable as error:
            channel.sendall(json.dumps({"unavailable": str(error)}).encode() + b"\n")
            return
        greeting = {"host": host.to_json(), "lines": host.lines(), "clauses": list(clauses)}
        channel.sendall(json.dumps(greeting).encode() + b"\n")
        gc.enable()
        gc.freeze()  # children must not copy pages just because their collector looks at them
        _Server(channel, host, clauses).loop()


def run(channel: socket.socket, preload: Iterable[str]) -> NoReturn:
    """Be the server process, in which SIGINT is ignored: serve until the client is gone, then leave."""
    with channel:
        serve(channel, preload)
    sys.stderr.flush()
    os._exit(0)  # all children have been waited for; taking the modules apart would cost a sixth of loading them


def main() -> None:
    """Serve on the socket whose descriptor is the first argument; further ones are modules to import."""
    signals.reset()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's business
    run(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])


if __name__ == "__main__":
    main()
