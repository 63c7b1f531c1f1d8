# SPDX-License-Identifier: Apache-2.0
"""A guest of 1 GiB that is migrated over loopback, and a plain socket copy of the same bytes: one program for both.

    python -m vmm.bench.migration_subject FOLDER

It prints a line with 0, then answers ``migrate 1`` with the nanoseconds until a receiver had all memory of the
guest, which may run, ``still 1`` with those for which the guest was paused in that migration, ``copy 1`` with those
of the socket copy, and ``talk 1`` with those that the line itself takes for what is said while a guest is paused.
Both receivers are processes of their own, and both have their memory before the clock starts.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import NoReturn

from vmm._kvm import ffi, lib
from vmm.arch import ARCHITECTURE
from vmm.bench.answer import answer, serve
from vmm.guest.architecture import guest_type
from vmm.kvm.memory import GuestMemory
from vmm.kvm.system import Kvm
from vmm.migration.convergence import Limits
from vmm.migration.handover import At
from vmm.migration.keeper import Keeper
from vmm.migration.line import tune
from vmm.migration.runner import Runner
from vmm.migration.source import Options, Report, Source
from vmm.migration.target import Options as TargetOptions
from vmm.migration.target import Target
from vmm.migration.transport import Connector, Listener, parse

__all__ = ["SIZE", "main"]

SIZE = 1 << 30
_CHUNK = 1 << 20
_ANY = "127.0.0.1:0"
_DOWNTIME, _SILENCE = 0.02, 5.0  # seconds
# What goes over the line while a guest is paused: state and digests, state, HANDOVER, RUNNING.
_TALK = (12 << 10, 12 << 10, 80, 48)
# A guest that waits: HLT, where that leaves the guest, else a loop.
_IDLE = ("hello", "halt", ()) if ARCHITECTURE == "x86" else ("dirty", "idle", (2000, 0))
_READY, _COPY = b"r", b"c"


def _child(run: Callable[[], object]) -> None:
    """Run in a process of its own, which ends when this one does."""
    parent = os.getpid()
    if os.fork():
        return
    status = 1
    try:
        if lib.vmm_die_with_parent(parent) == 0:
            run()
        status = 0
    finally:
        os._exit(status)


# --- receivers ------------------------------------------------------------------------------------


def _receive_guests(listener: Listener) -> None:
    # A guest that has arrived is no longer needed.
    options = TargetOptions(memory=SIZE, populate=True, idle_on_halt=True, limit=0.01)
    Keeper(
        lambda channel, hello, link: Target(channel, hello, link, options, _say).serve(), listener=listener, say=_say
    ).serve()


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _receive_bytes(listening: socket.socket) -> NoReturn:
    while True:
        connected, _ = listening.accept()
        with connected:
            tune(connected, _SILENCE)
            if connected.recv(1) == _COPY:
                _receive_copy(connected)
            else:
                _answer(connected)


def _receive_copy(connected: socket.socket) -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        memory = vm.add_memory(SIZE)  # as a guest's: the same mapping, with the same huge pages
        lib.vmm_populate(ffi.cast("void *", memory.address), SIZE)
        connected.sendall(_READY)
        done = 0
        while done < SIZE:
            done += connected.recv_into(memory.view[done : done + _CHUNK], 0, socket.MSG_WAITALL)
        connected.sendall(_READY)


def _answer(connected: socket.socket) -> None:
    _take(connected, _TALK[0])
    connected.sendall(bytes(_TALK[1]))
    _take(connected, _TALK[2])
    connected.sendall(bytes(_TALK[3]))


def _take(connected: socket.socket, size: int) -> None:
    left = size
    while left:
        got = len(connected.recv(left))
        if not got:
            raise ConnectionError("the other side of the benchmark is gone")
        left -= got


# --- the sender -----------------------------------------------------------------------------------


class _Subject:
    """The guest and what is measured of it; each operation returns nanoseconds."""

    def __init__(self, runner: Runner, guests: str, plain: int) -> None:
        self._runner, self._guests, self._plain = runner, guests, plain
        self._memory: GuestMemory = runner.guest.memory
        self._last: Report | None = None

    def migrate(self) -> int:
        """A migration; how long until the receiver had all memory, page digests included."""
        self._runner.go()
        options = Options(limits=Limits(downtime=_DOWNTIME))
        report = self._last = Source(self._runner, Connector(parse(self._guests)), options).migrate()
        if report.at is not At.MOVED:
            raise RuntimeError(f"the guest was not migrated: {report.reason}")
        return int(report.traffic.seconds * 1e9)

    def still(self) -> int:
        """How long the guest was paused in the last migration."""
        assert self._last and self._last.downtime
        return int(self._last.downtime * 1e9)

    def copy(self) -> int:
        """The guest's memory over a plain socket, until the receiver has it."""
        with socket.create_connection(("127.0.0.1", self._plain)) as connected:
            tune(connected, _SILENCE)
            connected.sendall(_COPY)
            _take(connected, len(_READY))
            begin = perf_counter_ns()
            for at in range(0, SIZE, _CHUNK):
                connected.sendall(self._memory.view[at : at + _CHUNK])
            _take(connected, len(_READY))
            return perf_counter_ns() - begin

    def talk(self) -> int:
        """As many bytes there and back as while a guest is paused."""
        with socket.create_connection(("127.0.0.1", self._plain)) as connected:
            tune(connected, _SILENCE)
            connected.sendall(b"t")
            begin = perf_counter_ns()
            connected.sendall(bytes(_TALK[0]))
            _take(connected, _TALK[1])
            connected.sendall(bytes(_TALK[2]))
            _take(connected, _TALK[3])
            return perf_counter_ns() - begin


def _fill(memory: GuestMemory, start: int) -> None:
    """Put something that is not zero into every page, beyond what the payload uses."""
    piece = os.urandom(1 << 20)
    for at in range(start, memory.size, len(piece)):
        memory.view[at : at + len(piece)] = piece


def _once(run: Callable[[], int]) -> Callable[[int], int]:
    """An operation that is done once, however often it was asked for."""
    return lambda count: run()


def _serve(folder: Path) -> None:
    # The receivers first: who forks has no threads yet.
    listener = Listener(parse(_ANY))
    _child(lambda: _receive_guests(listener))
    listening = socket.create_server(("127.0.0.1", 0))
    _child(lambda: _receive_bytes(listening))
    listener.close_copy()
    port = listening.getsockname()[1]
    listening.close()
    payload, entry, parameters = _IDLE
    with Kvm() as kvm, guest_type()(kvm, payload, memory_size=SIZE) as guest:
        _fill(guest.memory, 4 << 20)
        guest.prepare(entry, *parameters)
        runner = Runner(guest, idle_on_halt=True)
        subject = _Subject(runner, listener.text, port)
        operations = {"migrate": subject.migrate, "still": subject.still, "copy": subject.copy, "talk": subject.talk}
        answer((0,), {name: _once(run) for name, run in operations.items()})
        runner.close()


def main() -> int:
    """Serve whoever started this program until its end of the pipe is closed."""
    return serve(_serve)


if __name__ == "__main__":
    sys.exit(main())
