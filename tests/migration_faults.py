# SPDX-License-Identifier: Apache-2.0
"""Faults in migrations, at many points of them: lines are cut, stall, or damage a byte, and processes are killed.

    python -m tests.migration_faults [N] [SEED]

Each case is a real migration of a running guest between real processes, over a relay that knows the messages and
does its worst at one byte of one of them. Afterwards nobody may have run the guest twice, the side that had it and
survived must have gone on to the right digest, and the survivors must have said what happened. A lease (a lock on a
file that the kernel gives back) makes the first of these exact: whoever runs the guest while another does fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmm.arch import module
from vmm.guest import BaseGuest
from vmm.migration import keeper, target
from vmm.migration.convergence import Limits
from vmm.migration.keeper import Keeper
from vmm.migration.messages import MEMORY_HEAD, Welcome
from vmm.migration.runner import Journal, Lease, Outcome, Runner
from vmm.migration.source import Options, Source
from vmm.migration.target import Target
from vmm.migration.transport import Connector, Listener, parse
from vmm.migration.wire import Kind
from vmm.state.capture import restore
from vmm.state.files import load
from vmm.system import Kvm

__all__ = ["FAULTS", "Case", "Point", "every_point", "faults_of", "forked", "points", "reference", "run"]

LEVEL, STEPS, SEED = "sse", 6000, 7
_HEAD = struct.Struct("<IHHQ")
_PREAMBLE, _DIGEST = 16, 32
_SILENCE, _PATIENCE, _MARGIN = 1.5, 4.0, 1.0
_CASE_TIMEOUT = 60.0
_FILLED = 1 << 20  # bytes of guest memory with contents, so that copying takes a while
FAULTS = ("cut", "refuse", "silence", "flip", "kill-source", "kill-target", "kill-all", "cut-for-good")
# After these nobody can reach the other side any more, or only after a while.
_FROM_SOURCE = (Kind.HELLO, Kind.CONFIG, Kind.MEMORY, Kind.ROUND, Kind.FINAL, Kind.HANDOVER, Kind.SETTLED)
_FROM_TARGET = (Kind.WELCOME, Kind.PREPARED, Kind.ROUND_DONE, Kind.READY, Kind.RUNNING)
_KINDS = (*_FROM_SOURCE, *_FROM_TARGET)
# Where in a message: before its first byte, inside, before its last byte, after it.
_PLACES = (0.0, 0.5, 0.999, 1.0)


@dataclass(frozen=True)
class Point:
    """A fault at a place of a message of a kind; ``which`` counts the messages of that kind."""

    fault: str
    kind: Kind
    place: float
    which: int = 0

    def __str__(self) -> str:
        return f"{self.fault} at {self.place:g} of {self.kind.name} {self.which}"


@dataclass
class Case:
    """What became of one migration: what each process said, wrote and ended with."""

    point: Point | None
    digests: dict[str, str] = field(default_factory=dict)
    source_status: int = 0
    keeper_status: int = 0
    report: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    journal: list[dict[str, Any]] = field(default_factory=list)
    restored: str | None = None
    hit: bool = False

    @property
    def target_pid(self) -> int | None:
        return next((line["pid"] for line in self.journal if line["event"] == "ready"), None)

    def ran(self, pid: int | None) -> bool:
        return any(line["event"] == "run" and line["pid"] == pid for line in self.journal)


# --- the two sides --------------------------------------------------------------------------------


def _make_guest(kvm: Kvm) -> BaseGuest:
    guest: BaseGuest = module("chain").make_guest(kvm, LEVEL, STEPS, SEED)
    start = guest.memory.size - _FILLED
    guest.memory.view[start:] = random.Random(1).randbytes(_FILLED)
    return guest


def _digest(guest: BaseGuest) -> str:
    return bytes(module("chain").digest(guest)).hex()


def reference() -> str:
    """Return the digest that the guest has to reach."""
    return bytes(module("chain").reference(LEVEL, STEPS, SEED)).hex()


def forked(run: Callable[[], int]) -> int:
    """Run in a child, which never comes back, and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        # A process that hangs is a failure, and must not outlive the test.
        signal.alarm(int(_CASE_TIMEOUT))
        status = run()
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _source(folder: Path, port: int, close: Callable[[], None]) -> int:
    close()
    with Kvm() as kvm, _make_guest(kvm) as guest:
        journal = Journal(str(folder / "journal"))
        runner = Runner(guest, limit=30, lease=Lease(str(folder / "lease")), journal=journal)
        runner.go()
        options = Options(limits=Limits(downtime=0.5), patience=_PATIENCE, hold=str(folder / "held"))
        connector = Connector(parse(f"127.0.0.1:{port}"), _SILENCE)
        report = Source(runner, connector, options, journal=journal).migrate()
        (folder / "report").write_text(json.dumps(report.to_json()))
        if report.at.name == "KEPT":
            outcome = runner.wait(30)
            assert outcome and outcome.well, outcome
            (folder / "digest-source").write_text(_digest(guest))
        runner.close()
    return 0


def _target(folder: Path, listener: Listener, close: Callable[[], None]) -> int:
    close()
    keeper.MARGIN = target.MARGIN = _MARGIN

    def finished(guest: BaseGuest, outcome: Outcome) -> None:
        (folder / "digest-target").write_text(_digest(guest) if outcome.well else outcome.why)

    def say(sentence: str) -> None:
        with (folder / "said").open("a") as file:
            file.write(sentence + "\n")

    options = target.Options(
        limit=30, finished=finished, lease=str(folder / "lease"), journal=str(folder / "journal")
    )  # fmt: skip
    return Keeper(
        lambda channel, hello, link: Target(channel, hello, link, options, say).serve(),
        listener=listener, once=True, say=say,
    ).serve()  # fmt: skip


# --- the relay ------------------------------------------------------------------------------------


class _Messages:
    """Follows the messages of one direction, to say which byte of the stream is which byte of what."""

    def __init__(self) -> None:
        self.counts: dict[Kind, int] = {}
        self.on_message: Callable[[Kind, bytes], None] = lambda kind, body: None
        self._preamble = _PREAMBLE
        self._head, self._body = bytearray(), bytearray()
        self._kind: Kind | None = None
        self._length = self._total = self._seen = 0

    def until(self, point: Point | None, data: bytes) -> int | None:
        """Take data and return how much of it lies before the point; None if the point is not in it."""
        at = 0
        while at < len(data):
            at += self._step(point, data[at:])
            if self._reached(point):
                return at
        return None

    def _step(self, point: Point | None, data: bytes) -> int:
        """Take as much as belongs together, up to the point at most."""
        if self._preamble:
            taken = min(self._preamble, len(data))
            self._preamble -= taken
            return taken
        if self._kind is None:
            taken = min(_HEAD.size - len(self._head), len(data))
            self._head += data[:taken]
            if len(self._head) == _HEAD.size:
                _, kind, _, self._length = _HEAD.unpack(self._head)
                self._kind, self._seen, self._total = Kind(kind), _HEAD.size, _HEAD.size + self._length + _DIGEST
                self._head.clear()
            return taken
        # Of a MEMORY message its own head comes first: it says how many pages follow.
        announced = self._kind is not Kind.MEMORY or len(self._body) >= MEMORY_HEAD.size
        end = self._total if announced else _HEAD.size + MEMORY_HEAD.size
        if self._is_meant(point):
            end = min(end, max(self._seen + 1, self._target(point)))
        taken = min(end - self._seen, len(data))
        self._body += data[: max(0, min(taken, _HEAD.size + self._length - self._seen))]
        self._seen += taken
        if not announced and len(self._body) == MEMORY_HEAD.size:
            self._total += MEMORY_HEAD.unpack(self._body)[2]
        return taken

    def _is_meant(self, point: Point | None) -> bool:
        return point is not None and self._kind is point.kind and self.counts.get(point.kind, 0) == point.which

    def _target(self, point: Point | None) -> int:
        # The head has to be seen before the kind is known: place 0 is right behind it.
        return max(_HEAD.size, int(point.place * self._total)) if point else 0

    def _reached(self, point: Point | None) -> bool:
        if self._kind is None:
            return False
        reached = self._is_meant(point) and self._seen >= self._target(point)
        if self._seen == self._total:
            self.on_message(self._kind, bytes(self._body))
            self.counts[self._kind] = self.counts.get(self._kind, 0) + 1
            self._body.clear()
            self._kind = None
        return reached


class _Relay:
    """Between source and receiver; at its point it does the fault, once."""

    def __init__(self, point: Point | None, target_port: int) -> None:
        self.point, self._target_port = point, target_port
        self.hit = False
        self.pids: dict[str, int] = {}
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._messages: dict[socket.socket, _Messages] = {}
        self._reopen = 0.0
        self._silent = False

    def serve(self, alive: Callable[[], bool]) -> None:
        """Relay until nobody is alive."""
        while alive():
            if self._listener is None and self._reopen and time.monotonic() >= self._reopen:
                with contextlib.suppress(OSError):  # somebody has the port for a moment
                    self._listener = socket.create_server(("127.0.0.1", self.port))
            sockets = [*self._pairs, *filter(None, [self._listener])]
            for ready in select.select(sockets, [], [], 0.02)[0]:
                if ready is self._listener:
                    self._accept()
                elif ready in self._pairs:
                    self._forward(ready)
        for one in [*self._pairs, *filter(None, [self._listener])]:
            one.close()

    def close_copy(self) -> None:
        """Close this process's copy after a fork."""
        assert self._listener
        self._listener.close()

    def _accept(self) -> None:
        assert self._listener
        source, _ = self._listener.accept()
        try:
            to_target = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            source.close()
            return
        for one, other in ((source, to_target), (to_target, source)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[one] = other
            self._messages[one] = _Messages()
            self._messages[one].on_message = self._watch

    def _watch(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.WELCOME:
            with contextlib.suppress(Exception):
                self.pids["target"] = int(Welcome.unpack(body).process.text.split()[2])

    def _forward(self, one: socket.socket) -> None:
        try:
            data = one.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._drop(one)
            return
        if self._silent:
            return
        before = None if self.hit else self._messages[one].until(self.point, data)
        if before is None:
            self._pass(one, data)
            return
        self.hit = True
        self._fault(one, data, before)

    def _fault(self, one: socket.socket, data: bytes, before: int) -> None:
        assert self.point
        fault = self.point.fault
        if fault == "flip":
            at = min(before, len(data) - 1)
            self._pass(one, data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
            return
        self._pass(one, data[:before])
        if fault.startswith("kill"):
            # Time for what arrived to be acted on, sometimes.
            if self.point.place >= 1 and self.point.which % 2:
                time.sleep(0.01)
            victim = {"kill-source": "source", "kill-target": "target", "kill-all": "keeper"}[fault]
            if victim in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pids[victim], signal.SIGKILL)
            self._pass(one, data[before:])
            return
        if fault == "silence":
            self._silent = True
            self._reopen = 0.0
            return
        self._drop(one)
        if fault in ("refuse", "cut-for-good") and self._listener:
            self._listener.close()
            self._listener = None
            self._reopen = time.monotonic() + 1.0 if fault == "refuse" else 0.0

    def _pass(self, one: socket.socket, data: bytes) -> None:
        try:
            self._pairs[one].sendall(data)
        except OSError:
            self._drop(one)

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        if other is not None:
            self._pairs.pop(other, None)
            # A new line after the silence is a line like any other.
            self._silent = False
            for each in (one, other):
                self._messages.pop(each, None)
                each.close()


# --- one case -------------------------------------------------------------------------------------


def run(point: Point | None) -> Case:
    """Migrate a guest with a fault at ``point`` and return what became of it."""
    with tempfile.TemporaryDirectory(prefix="vmm-faults-") as name:
        return _run(point, Path(name))


def _run(point: Point | None, folder: Path) -> Case:
    listener = Listener(parse("127.0.0.1:0"), _SILENCE)
    relay = _Relay(point, listener.address.port or int(listener.text.rpartition(":")[2]))
    keeping = forked(lambda: _target(folder, listener, relay.close_copy))
    listener.close_copy()
    sending = forked(lambda: _source(folder, relay.port, relay.close_copy))
    relay.pids.update(source=sending, keeper=keeping)
    statuses: dict[int, int] = {}

    def alive() -> bool:
        for pid in (keeping, sending):
            if pid not in statuses and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                statuses[pid] = os.waitstatus_to_exitcode(ended[1])
        if sending in statuses and keeping not in statuses and not _announced(folder):
            # No guest ever reached it, so it waits for the first.
            os.kill(keeping, signal.SIGTERM)
        return len(statuses) < 2

    relay.serve(alive)
    case = Case(point, source_status=statuses[sending], keeper_status=statuses[keeping], hit=relay.hit)
    for who in ("source", "target"):
        path = folder / f"digest-{who}"
        if path.exists():
            case.digests[who] = path.read_text()
    if (folder / "report").exists():
        case.report = json.loads((folder / "report").read_text())
    if (folder / "said").exists():
        case.said = (folder / "said").read_text().splitlines()
    case.journal = [json.loads(line) for line in (folder / "journal").read_text().splitlines()]
    if (folder / "held").exists():
        case.restored = _restored(folder)
    return case


def _announced(folder: Path) -> bool:
    return "welcome" in (folder / "journal").read_text()


def _restored(folder: Path) -> str:
    """Run the guest on from the file that the source wrote, as its sentence says."""

    def go_on() -> int:
        with Kvm() as kvm, restore(kvm, load(folder / "held")) as guest:
            guest.finish(guest.resume(30))
            (folder / "digest-restored").write_text(_digest(guest))
        return 0

    os.waitpid(forked(go_on), 0)
    return (folder / "digest-restored").read_text()


# --- the verdict ----------------------------------------------------------------------------------


def faults_of(case: Case, right: str) -> list[str]:
    """Return what was wrong with a case, nothing if all was as it has to be."""
    return [*_twice(case), *_wrong_end(case, right), *_silent_end(case)]


def _twice(case: Case) -> Iterator[str]:
    if len(case.digests) > 1:
        yield f"the guest came to its end on both sides: {case.digests}"
    intervals = _intervals(case)
    for pid, begin, end in intervals:
        for other, other_begin, other_end in intervals:
            if pid < other and begin < other_end and other_begin < end:
                yield f"the guest ran in {pid} and {other} at the same time"
    said = [*case.said, str(case.report.get("reason", ""))]
    if any("lease" in sentence for sentence in said):
        yield f"somebody wanted to run the guest while another did: {said}"


def _intervals(case: Case) -> list[tuple[int, int, int]]:
    """When the guest ran, by process, where that process lived to write it down."""
    found, begun = [], {}
    for line in case.journal:
        if line["event"] == "run":
            begun[line["pid"]] = line["ns"]
        elif line["event"] == "stop" and line["pid"] in begun:
            found.append((line["pid"], begun.pop(line["pid"]), line["ns"]))
    return found


def _wrong_end(case: Case, right: str) -> Iterator[str]:
    if wrong := {who: digest for who, digest in case.digests.items() if digest != right}:
        yield f"wrong digests: {wrong}, {right} is right"
    fault = case.point.fault if case.point else ""
    at_target = case.ran(case.target_pid)
    source_died, target_died = fault == "kill-source", fault in ("kill-target", "kill-all")
    outcome = case.report.get("outcome")
    if case.source_status not in ((0, -signal.SIGKILL) if source_died else (0,)):
        yield f"the source ended with {case.source_status}"
    if at_target and not target_died and "target" not in case.digests:
        yield "the receiver had the guest and lived, and the guest did not come to its end"
    if not at_target and not (source_died and case.hit) and "source" not in case.digests and case.restored != right:
        yield f"the source had the guest and lived, and the guest did not come to its end ({outcome})"
    if outcome in ("held", "lost") and case.restored != right:
        yield f"the state of a guest that was {outcome} does not go on to the right digest: {case.restored}"
    if outcome == "held" and fault not in ("cut-for-good",):
        yield f"the source did not find out where the guest is: {case.report['reason']}"
    if outcome == "lost" and not target_died:
        yield "the guest is said to be lost, and nobody was killed"
    if outcome == "moved" and not at_target:
        yield "the guest is said to have moved, and it did not"


def _silent_end(case: Case) -> Iterator[str]:
    outcome = case.report.get("outcome")
    if outcome in ("kept", "held", "lost") and not case.report["reason"]:
        yield f"the guest was {outcome} and nobody says why"
    fault = case.point.fault if case.point else ""
    if case.target_pid and not case.ran(case.target_pid) and fault not in ("kill-all",) and not case.said:
        yield "the receiver dropped a guest and says nothing about it"


# --- all of them ----------------------------------------------------------------------------------


def every_point() -> list[Point]:
    """Return all faults at all places of all messages, and memory in more detail."""
    found = [Point(fault, kind, place) for fault in FAULTS for kind in _KINDS for place in _PLACES]
    found += [
        Point(fault, Kind.MEMORY, place / 10, which) for fault in FAULTS for which in (0, 1) for place in (1, 3, 7, 9)
    ]
    return found


def points(count: int, seed: int = 0) -> list[Point]:
    """Return so many of them, spread over all; more than there are begin anew."""
    every = every_point()
    shuffled = random.Random(seed).sample(every, len(every))
    return [shuffled[index % len(shuffled)] for index in range(count)]


def main(arguments: list[str]) -> int:
    """Run faults and print what became of each; 1 if one was wrong."""
    count = int(arguments[0]) if arguments else 200
    seed = int(arguments[1]) if len(arguments) > 1 else 0
    right, wrong, ends = reference(), 0, dict[str, int]()
    for index, point in enumerate(points(count, seed)):
        case = run(point)
        found = faults_of(case, right)
        end = case.report.get("outcome", "the source died")
        if case.ran(case.target_pid):
            end += ", ran there"
        ends[end] = ends.get(end, 0) + 1
        wrong += bool(found)
        print(
            f"{index + 1:4} {point}{'' if case.hit else ' (not reached)'}: {end}: {case.report.get('reason')}",
            flush=True,
        )
        for sentence in found:
            print(f"     WRONG: {sentence}\n     {case}", flush=True)
    print(f"{count} faults, {wrong} wrong; " + ", ".join(f"{n} {end}" for end, n in sorted(ends.items())))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
