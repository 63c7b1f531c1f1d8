# SPDX-License-Identifier: Apache-2.0
"""Faults in migrations, at many points of them: lines are cut, stall, or damage a byte, processes are killed, stopped
for a while, terminated and interrupted, and disks are full.

    python -m tests.migration.faults [N] [SEED] [VCPUS]

Each case is a real migration of a running guest between real processes, over a relay that knows the messages and
does its worst at one byte of one of them. Afterwards nobody may have run the guest twice, the side that had it and
survived must have gone on to the right digest, and the survivors must have said what happened. A lease (a lock on a
file that the kernel gives back) makes the first of these exact: whoever runs the guest while another does fails.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.migration.relay import Point, Relay
from tests.patience import HANGS, LIMIT, patiently
from vmm.arch import module
from vmm.guest.base import BaseGuest
from vmm.kvm.system import Kvm
from vmm.migration import keeper, target
from vmm.migration.convergence import Limits
from vmm.migration.keeper import Keeper
from vmm.migration.runner import Journal, Lease, Outcome, Runner
from vmm.migration.source import Options, Source
from vmm.migration.target import Target
from vmm.migration.transport import Connector, Listener, parse
from vmm.migration.wire import Kind
from vmm.state.capture import restore
from vmm.state.stream.files import load

__all__ = [
    "FAULTS",
    "Case",
    "Point",
    "every_point",
    "faults_of",
    "forked",
    "points",
    "reference",
    "run",
    "survives",
    "unsafe",
]

LEVEL, STEPS, SEED = "sse", 12000, 7
_SILENCE, _PATIENCE, _MARGIN = 1.5, 4.0, 1.0  # seconds, on a machine that has nothing else to do
_FILLED = 1 << 20  # bytes of guest memory with contents, so that copying takes a while
# One second region where there are several vCPUs, with as much in it.
_REGIONS = ((0, 4 << 20), (4 << 30, 2 << 20))
FAULTS = (
    "cut", "refuse", "silence", "flip", "kill-source", "kill-target", "kill-all", "cut-for-good", "stop-source",
    "stop-target", "stop-all", "term-source", "term-target", "int-source", "full-source", "full-target",
)  # fmt: skip
_ENDED_BY_HAND = 99  # the status of a source that was terminated or interrupted
# After these nobody can reach the other side any more, or only after a while.
_FROM_SOURCE = (Kind.HELLO, Kind.CONFIG, Kind.MEMORY, Kind.ROUND, Kind.FINAL, Kind.HANDOVER, Kind.SETTLED)
_FROM_TARGET = (Kind.WELCOME, Kind.PREPARED, Kind.ROUND_DONE, Kind.READY, Kind.RUNNING)
_KINDS = (*_FROM_SOURCE, *_FROM_TARGET)
# Where in a message: before its first byte, inside, before its last byte, after it.
_PLACES = (0.0, 0.5, 0.999, 1.0)


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


def _make_guest(kvm: Kvm, vcpus: int) -> BaseGuest:
    regions = _REGIONS if vcpus > 1 else _REGIONS[:1]
    guest: BaseGuest = module("chain").make_guest(kvm, LEVEL, STEPS, SEED, vcpus=vcpus, regions=regions)
    for memory in guest.vm.memories:
        memory.view[memory.size - _FILLED :] = random.Random(memory.gpa + 1).randbytes(_FILLED)
    return guest


def _digest(guest: BaseGuest) -> str:
    return " ".join(digest.hex() for digest in module("chain").digests(guest))


def reference(vcpus: int = 1) -> str:
    """Return the digests that the guest's vCPUs have to reach."""
    chain = module("chain")
    return " ".join(chain.reference(LEVEL, STEPS, seed).hex() for seed in chain.seeds(SEED, vcpus))


def _write(path: Path, text: str) -> None:
    """Write what the test wants to know, whatever became of the disk."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    path.write_text(text)


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def forked(run: Callable[[], int]) -> int:
    """Run in a child, which never comes back, and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        # A process that hangs is a failure, and must not outlive the test.
        signal.alarm(int(HANGS))
        status = run()
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _source(folder: Path, port: int, close: Callable[[], None], scale: float, vcpus: int) -> int:
    close()
    signal.signal(signal.SIGTERM, _terminate)  # as vmm does
    with Kvm() as kvm, _make_guest(kvm, vcpus) as guest:
        journal = Journal(str(folder / "journal"))
        runner = Runner(guest, limit=LIMIT, lease=Lease(str(folder / "lease")), journal=journal)
        try:
            return _migrate(folder, port, scale, runner, journal)
        finally:
            runner.close()


def _migrate(folder: Path, port: int, scale: float, runner: Runner, journal: Journal) -> int:
    runner.go()
    options = Options(limits=Limits(downtime=0.5), patience=_PATIENCE * scale, hold=str(folder / "held"))
    connector = Connector(parse(f"127.0.0.1:{port}"), _SILENCE * scale)
    report = Source(runner, connector, options, journal=journal).migrate()
    _write(folder / "report", json.dumps(report.to_json()))
    if report.at.name == "KEPT":
        outcome = runner.wait(LIMIT)
        assert outcome and outcome.well, outcome
        _write(folder / "digest-source", _digest(runner.guest))
    return 0


def _target(folder: Path, listener: Listener, close: Callable[[], None], scale: float) -> int:
    close()
    for waiting in (keeper, target):
        vars(waiting)["MARGIN"] = _MARGIN * scale

    def finished(guest: BaseGuest, outcome: Outcome) -> None:
        _write(folder / "digest-target", _digest(guest) if outcome.well else outcome.why)

    def say(sentence: str) -> None:
        with (folder / "said").open("a") as file:
            file.write(sentence + "\n")

    options = target.Options(
        limit=LIMIT, finished=finished, lease=str(folder / "lease"), journal=str(folder / "journal")
    )  # fmt: skip
    return Keeper(
        lambda channel, hello, link: Target(channel, hello, link, options, say).serve(),
        listener=listener, once=True, say=say,
    ).serve()  # fmt: skip


# --- one case -------------------------------------------------------------------------------------


def run(point: Point | None, scale: float = 1.0, vcpus: int = 1) -> Case:
    """Migrate a guest with a fault at ``point`` and return what became of it; waits are ``scale`` times as long."""
    with tempfile.TemporaryDirectory(prefix="vmm-faults-") as name:
        return _run(point, Path(name), scale, vcpus)


def _run(point: Point | None, folder: Path, scale: float, vcpus: int) -> Case:
    listener = Listener(parse("127.0.0.1:0"), _SILENCE * scale)
    # Every other process that is stopped is so for longer than the other side waits for a word.
    stop_for = _SILENCE * scale * (1.3 if point and point.place in _PLACES[::2] else 0.2)
    relay = Relay(point, listener.address.port or int(listener.text.rpartition(":")[2]), stop_for)
    keeping = forked(lambda: _target(folder, listener, relay.close_copy, scale))
    listener.close_copy()
    sending = forked(lambda: _source(folder, relay.port, relay.close_copy, scale, vcpus))
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
    journal = (folder / "journal").read_text()
    return "welcome" in journal or "ready" in journal  # one of them has a full disk, perhaps


def _restored(folder: Path) -> str:
    """Run the guest on from the file that the source wrote, as its sentence says."""

    def go_on() -> int:
        with Kvm() as kvm, restore(kvm, load(folder / "held")) as guest:
            guest.finish(guest.resume(LIMIT))
            (folder / "digest-restored").write_text(_digest(guest))
        return 0

    os.waitpid(forked(go_on), 0)
    return (folder / "digest-restored").read_text()


# --- the verdict ----------------------------------------------------------------------------------


def faults_of(case: Case, right: str) -> list[str]:
    """Return what was wrong with a case, nothing if all was as it has to be."""
    return [*unsafe(case, right), *_wrong_end(case, right), *_silent_end(case)]


def unsafe(case: Case, right: str) -> list[str]:
    """Return those of the faults for which no slow machine is an excuse."""
    wrong = {who: digest for who, digest in case.digests.items() if digest != right}
    return [*_twice(case), *([f"wrong digests: {wrong}, {right} is right"] if wrong else [])]


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
    fault = case.point.fault if case.point else ""
    at_target = _ran_there(case)
    source_died = fault in ("kill-source", "term-source", "int-source")
    target_died = fault in ("kill-target", "kill-all", "term-target")
    outcome = case.report.get("outcome")
    if case.source_status not in ((0, -signal.SIGKILL, _ENDED_BY_HAND) if source_died else (0,)):
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


def _ran_there(case: Case) -> bool:
    """Whether the receiver had the guest; a journal on a full disk does not tell."""
    full = case.point is not None and case.point.fault == "full-target"
    return case.ran(case.target_pid) or (full and "target" in case.digests)


def _silent_end(case: Case) -> Iterator[str]:
    outcome = case.report.get("outcome")
    if outcome in ("kept", "held", "lost") and not case.report["reason"]:
        yield f"the guest was {outcome} and nobody says why"
    fault = case.point.fault if case.point else ""
    if case.target_pid and not _ran_there(case) and fault not in ("kill-all",) and not case.said:
        yield "the receiver dropped a guest and says nothing about it"


def survives(point: Point, vcpus: int) -> None:
    """Fail unless all is as it has to be after a fault, on a slow machine too."""
    right = reference(vcpus)

    def attempt(scale: float) -> None:
        case = run(point, scale, vcpus)
        if never := unsafe(case, right):
            pytest.fail("\n".join(never))
        assert faults_of(case, right) == []
        assert case.hit

    patiently(attempt)


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
    count, seed, vcpus = [*map(int, arguments), *(200, 0, 1)[len(arguments) :]]
    right, wrong, ends = reference(vcpus), 0, dict[str, int]()
    for index, point in enumerate(points(count, seed)):
        case = run(point, vcpus=vcpus)
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
