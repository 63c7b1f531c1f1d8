# SPDX-License-Identifier: Apache-2.0
"""The client of the fork server: hands out clauses, takes back results."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any, NoReturn, Self

from vmm.conformance.context import Options
from vmm.conformance.model import ClauseResult
from vmm.kvm.system import KvmUnavailable

__all__ = ["Job", "Runner"]

_STOP_SECONDS = 5.0


class Job(dict[str, Any]):
    """What to run: ``id``, ``options``, and for tests ``interposer`` ("module:factory") with ``arguments``."""

    @classmethod
    def of(cls, identifier: str, options: Options, interposer: str = "", *arguments: str) -> Job:
        """Return the job of one clause."""
        return cls(id=identifier, options=asdict(options), interposer=interposer, arguments=arguments)


class _Fork:
    """The server as a fork of this process, with as much of subprocess.Popen as a Runner needs."""

    def __init__(self, ours: socket.socket, theirs: socket.socket, preload: Iterable[str]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            self._serve(ours, theirs, preload)
        self._pidfd: int | None = os.pidfd_open(self.pid)
        self._status = 0

    @staticmethod
    def _serve(ours: socket.socket, theirs: socket.socket, preload: Iterable[str]) -> NoReturn:
        """In the child: forget the client, and never return into its frames."""
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's business, in an import too
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            ours.close()  # else the server would keep its own client alive
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            from vmm.conformance.server import run  # the client has no use for what this imports

            run(theirs, preload)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(1)

    def wait(self, timeout: float | None = None) -> int:
        """Wait, ``timeout`` seconds at most, and return the exit status, or the signal's number below zero."""
        if self._pidfd is not None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("the clause server", timeout or 0)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._pidfd)
            self._pidfd = None
        return self._status

    def kill(self) -> None:
        """Kill the process."""
        if self._pidfd is not None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class Runner:
    """Owns a fork server, which starts at once and is waited for at the first use.

    ``jobs`` is how many clauses run at once (default: one a CPU), ``preload`` names modules that the server
    imports. ``pristine`` is the caller's word that this process has one thread, has never created a vCPU or asked
    for a permission, and has no other Runner: then the server is a fork of it, which spares a second start of
    Python. Leaving the ``with`` block ends the server and every child of it.
    """

    def __init__(self, *, jobs: int | None = None, preload: Iterable[str] = (), pristine: bool = False) -> None:
        self._sent = 0
        self._jobs = jobs
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process: _Fork | subprocess.Popen[bytes]
            if pristine:
                self._process = _Fork(self._channel, theirs, preload)
            else:
                command = [sys.executable, "-m", "vmm.conformance.server", str(theirs.fileno()), *preload]
                self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._lines = self._channel.makefile("rb")

    @cached_property
    def _greeting(self) -> dict[str, Any]:
        greeting = self._receive()
        if "unavailable" in greeting:
            raise KvmUnavailable(greeting["unavailable"])
        if self._jobs:
            self._send({"jobs": self._jobs})
        return greeting

    @property
    def host(self) -> dict[str, Any]:
        """The host as JSON values. Raises KvmUnavailable if there is no usable KVM."""
        return dict(self._greeting["host"])

    @property
    def host_lines(self) -> list[tuple[str, str]]:
        """The host as (name, value) pairs for people. Raises KvmUnavailable if there is no usable KVM."""
        return [(name, value) for name, value in self._greeting["lines"]]

    @property
    def clauses(self) -> list[str]:
        """The ids of all clauses, area by area. Raises KvmUnavailable if there is no usable KVM."""
        return list(self._greeting["clauses"])

    def _send(self, message: dict[str, Any]) -> None:
        self._channel.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            status = self._process.wait(_STOP_SECONDS)
            raise RuntimeError(f"the clause server ended with status {status}: its message is on standard error")
        return dict(json.loads(line))

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[int, ClauseResult | None]]:
        """Run jobs in parallel; yield (number, None) when a job starts and (number, result) when it has ended.

        Numbers count the jobs from 0 in the order given.
        """
        assert self._greeting
        waiting = list(jobs)
        base = self._sent
        self._sent += len(waiting)
        for job in waiting:
            self._send(job)
        left = len(waiting)
        while left:
            message = self._receive()
            if "started" in message:
                yield message["started"] - base, None
            else:
                left -= 1
                yield message["finished"] - base, ClauseResult.from_json(message["result"])

    def results(self, jobs: Iterable[Job]) -> list[ClauseResult]:
        """Run jobs and return their results in the jobs' order."""
        found = {number: result for number, result in self.run(jobs) if result is not None}
        return [found[number] for number in sorted(found)]

    def close(self) -> None:
        """End the server, which ends its children first."""
        self._lines.close()
        self._channel.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
