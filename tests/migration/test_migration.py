# SPDX-License-Identifier: Apache-2.0
"""Whole migrations between processes: over every kind of line, refused, not converging, faulty."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.migration.faults import forked
from tests.migration.test_tls import Authority, authority, stranger  # noqa: F401  (fixtures)
from tests.patience import LIMIT, eventually, patiently
from vmm.arch import ARCHITECTURE, module
from vmm.guest.base import BaseGuest
from vmm.kvm.dirty_log import RingKvm
from vmm.kvm.ioctl import Call, Interposer, interpose
from vmm.kvm.system import Kvm
from vmm.migration import target
from vmm.migration.convergence import Limits
from vmm.migration.handover import At
from vmm.migration.keeper import Keeper
from vmm.migration.messages import Hello
from vmm.migration.resolve import NEVER_RAN
from vmm.migration.runner import Lease, Outcome, Runner
from vmm.migration.source import Options, Source
from vmm.migration.target import Target
from vmm.migration.tls import Tls
from vmm.migration.transport import Connector, Listener, parse
from vmm.state.value import PayloadIdentity

pytestmark = pytest.mark.kvm
_LEVEL, _STEPS, _SEED = "sse", 30000, 7


@dataclass
class Pair:
    """One migration: how it is to be made, and what became of it."""

    source: Options = field(default_factory=lambda: Options(limits=Limits(downtime=0.5), patience=LIMIT))
    target: dict[str, Any] = field(default_factory=dict)
    make: Callable[[Kvm], BaseGuest] = lambda kvm: module("chain").make_guest(kvm, _LEVEL, _STEPS, _SEED)
    address: str = "127.0.0.1:0"
    ring: int = 0
    tls: tuple[Tls, Tls] | None = None
    lie: Interposer | None = None
    limit: float = LIMIT
    reached: bool = True  # whether the source gets as far as to make a line

    report: dict[str, Any] = field(default_factory=dict)
    here: str | None = None
    there: str | None = None
    said: list[str] = field(default_factory=list)
    status: int | None = None

    def run(self, folder: Path) -> Pair:
        """Migrate, and return the same with what became of it."""
        address = self.address.replace("FOLDER", str(folder))
        listener = Listener(parse(address), LIMIT, self.tls[0] if self.tls else None)
        keeping = forked(lambda: self._receive(listener, folder))
        listener.close_copy()
        sending = forked(lambda: self._send(listener.text, folder))
        assert os.waitstatus_to_exitcode(os.waitpid(sending, 0)[1]) == 0
        if not self.reached:
            os.kill(keeping, signal.SIGTERM)
        self.status = _status(keeping)
        self.report = json.loads((folder / "report").read_text())
        for name in ("here", "there"):
            if (folder / name).exists():
                setattr(self, name, (folder / name).read_text())
        if (folder / "said").exists():
            self.said = (folder / "said").read_text().splitlines()
        return self

    def _send(self, text: str, folder: Path) -> int:
        with RingKvm(self.ring) if self.ring else Kvm() as kvm, self.make(kvm) as guest:
            runner = Runner(guest, limit=self.limit, lease=Lease(str(folder / "lease")))
            runner.go()
            connector = Connector(parse(text), LIMIT, self.tls[1] if self.tls else None)
            report = Source(runner, connector, self.source).migrate()
            if report.at is At.KEPT:
                outcome = runner.wait()
                assert outcome
                (folder / "here").write_text(_end(guest, outcome))
            (folder / "report").write_text(json.dumps(report.to_json()))
            runner.close()
        return 0

    def _receive(self, listener: Listener, folder: Path) -> int:
        def finished(guest: BaseGuest, outcome: Outcome) -> None:
            (folder / "there").write_text(_end(guest, outcome))

        def say(sentence: str) -> None:
            with (folder / "said").open("a") as file:
                file.write(sentence + "\n")

        given = {"limit": self.limit, "finished": finished, "lease": str(folder / "lease"), **self.target}
        options = target.Options(**given)
        with interpose(self.lie) if self.lie else nullcontext():
            return Keeper(
                lambda channel, hello, link: Target(channel, hello, link, options, say).serve(),
                listener=listener, once=True, say=say,
            ).serve()  # fmt: skip


def _end(guest: BaseGuest, outcome: Outcome) -> str:
    if outcome.well and guest.payload.name == "chain":
        return " ".join(digest.hex() for digest in module("chain").digests(guest))
    return outcome.why


def _status(pid: int) -> int:
    """Wait for a receiver, which ends by itself; `forked` sees to it that it does not outlive the test."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module")
def right() -> str:
    return bytes(module("chain").reference(_LEVEL, _STEPS, _SEED)).hex()


# --- migrations that take place -------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"address": "unix:FOLDER/line"},
        {"source": Options(limits=Limits(downtime=0.5), compress=True, audit=True)},
        {"target": {"reread": True, "populate": True}},
        {"ring": 1024},
        {"source": Options(limits=Limits(downtime=0.5, rate=4 << 20))},
    ],
    ids=["tcp", "unix", "compress-audit", "reread-populate", "ring", "rate"],
)
def test_a_migrated_guest_ends_with_the_right_digest(how: dict[str, Any], right: str, tmp_path: Path) -> None:
    pair = Pair(**how).run(tmp_path)
    assert (pair.report["outcome"], pair.report["reason"]) == ("moved", "")
    assert (pair.here, pair.there, pair.status) == (None, right, 0)
    report = pair.report
    assert report["rounds"] >= 2 and report["pages"] > 0 and report["zero_pages"] > 500
    assert 0 < report["downtime_seconds"] < report["total_seconds"]
    assert report["bytes"] < (report["pages"] + 20) * 4096
    assert not pair.said


def test_a_guest_is_migrated_over_tls(authority: Authority, right: str, tmp_path: Path) -> None:  # noqa: F811
    tls = authority.tls("server", authority), authority.tls("client", authority)
    pair = Pair(tls=tls).run(tmp_path)
    assert (pair.report["outcome"], pair.there) == ("moved", right)


def test_a_stranger_gets_no_guest(authority: Authority, stranger: Authority, right: str, tmp_path: Path) -> None:  # noqa: F811
    tls = stranger.tls("server", authority), authority.tls("client", authority)
    pair = Pair(tls=tls)
    listener = Listener(parse("127.0.0.1:0"), LIMIT, tls[0])
    keeping = forked(lambda: pair._receive(listener, tmp_path))
    listener.close_copy()
    sending = forked(lambda: pair._send(listener.text, tmp_path))
    assert os.waitpid(sending, 0)[1] == 0
    os.kill(keeping, signal.SIGTERM)
    os.waitpid(keeping, 0)
    report = json.loads((tmp_path / "report").read_text())
    assert report["outcome"] == "kept" and "is not trusted" in report["reason"]
    assert (tmp_path / "here").read_text() == right


# --- migrations that are refused ------------------------------------------------------------------


def _kept(pair: Pair, right: str, reason: str) -> None:
    assert pair.report["outcome"] == "kept", pair.report
    assert reason in pair.report["reason"]
    assert (pair.here, pair.there, pair.status) == (right, None, NEVER_RAN)
    assert any(reason in sentence for sentence in pair.said)


def test_a_guest_that_is_too_large_is_refused(right: str, tmp_path: Path) -> None:
    pair = Pair(target={"memory": 1 << 20}).run(tmp_path)
    _kept(pair, right, "the guest has 4 MiB of memory, and vmm receive takes 1 MiB")
    assert pair.report["bytes"] == 0


def test_a_guest_that_the_check_of_hosts_objects_to_is_refused(right: str, tmp_path: Path) -> None:
    def check(hello: Hello) -> list[str]:
        return [f"no {name}" for name in sorted(hello.facts)]

    options = Options(facts={"AVX512F": True, "AMX": True})
    pair = Pair(source=options, target={"check": check}).run(tmp_path)
    _kept(pair, right, "no AMX; no AVX512F")
    assert pair.report["bytes"] == 0


def test_another_build_of_the_payload_is_refused(right: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    original = pair._receive

    def receive(listener: Listener, folder: Path) -> int:
        monkeypatch.setattr(target, "identity", lambda payload: PayloadIdentity(payload.name, bytes(32)))
        return original(listener, folder)

    monkeypatch.setattr(pair, "_receive", receive)
    _kept(pair.run(tmp_path), right, "the payload chain is another build over there")


_SET = {"x86": "KVM_SET_REGS", "arm64": "KVM_SET_ONE_REG"}[ARCHITECTURE]
_GET = {"x86": "KVM_GET_SREGS2", "arm64": "KVM_GET_ONE_REG"}[ARCHITECTURE]


def _refuses(call: Call, proceed: Callable[[], int]) -> int:
    return -22 if call.name == _SET else proceed()


def _forgets(call: Call, proceed: Callable[[], int]) -> int:
    """A kernel that reads a register back as another."""
    result = proceed()
    if call.name == _GET and ARCHITECTURE == "x86":
        call.argument.cr2 ^= 0x1000
    elif call.name == _GET and call.argument.id == 0x6030_0000_0010_0002:  # X1
        _X1(call.argument.addr)[0] ^= 1
    return result


def _X1(address: int) -> Any:
    from vmm._kvm import ffi

    return ffi.cast("uint64_t *", address)


@pytest.mark.parametrize(("lie", "name"), [(_refuses, "REGS"), (_forgets, "")])
def test_registers_are_refused_before_the_guest_is_copied(
    lie: Interposer, name: str, right: str, tmp_path: Path
) -> None:
    pair = Pair(lie=lie).run(tmp_path)
    _kept(pair, right, name)
    assert pair.report["bytes"] == 0, "known before anything is copied"


def test_a_guest_whose_register_is_lost_at_the_last_moment_is_kept(right: str, tmp_path: Path) -> None:
    """The kernel over there is honest until the guest itself is restored."""
    seen = [0]

    def lie(call: Call, proceed: Callable[[], int]) -> int:
        if call.name == "KVM_CREATE_VCPU":
            seen[0] += 1
        return _forgets(call, proceed) if seen[0] > 1 else proceed()

    pair = Pair(lie=lie).run(tmp_path)
    _kept(pair, right, "saved and restored differ")
    assert pair.report["bytes"] > 0


def test_a_guest_that_ends_while_it_is_copied_is_kept(tmp_path: Path) -> None:
    options = Options(limits=Limits(downtime=0.001, rate=1 << 18))
    pair = Pair(source=options, make=lambda kvm: module("chain").make_guest(kvm, _LEVEL, 300, _SEED)).run(tmp_path)
    assert (pair.report["outcome"], pair.there, pair.status) == ("kept", None, NEVER_RAN)
    assert "came to its end before it was handed over" in pair.report["reason"]
    assert pair.here == bytes(module("chain").reference(_LEVEL, 300, _SEED)).hex()


def test_a_guest_that_nobody_receives_is_kept(right: str, tmp_path: Path) -> None:
    pair = Pair()
    sending = forked(lambda: pair._send(f"unix:{tmp_path}/none", tmp_path))
    assert os.waitpid(sending, 0)[1] == 0
    report = json.loads((tmp_path / "report").read_text())
    assert report["outcome"] == "kept" and "there is no such socket" in report["reason"]
    assert (tmp_path / "here").read_text() == right


# --- guests that write fast -----------------------------------------------------------------------


def _writer(kvm: Kvm) -> BaseGuest:
    """A guest that writes 2 MiB again and again, for ever."""
    guest: BaseGuest = module("guest").Guest(kvm, "dirty", memory_size=8 << 20)
    guest.prepare("dirty", 4 << 20, 512, 1, 0, 64, 4096, **({"privilege": 3} if ARCHITECTURE == "x86" else {}))
    return guest


@pytest.mark.parametrize(
    ("stall", "rounds", "seconds", "outcome"),
    [("abort", 3, 1.5, "kept"), ("stop", 3, 1.5, "moved"), ("throttle", 30, 3.0, "moved")],
)
def test_a_guest_that_writes_too_fast_ends_as_asked(
    stall: str, rounds: int, seconds: float, outcome: str, tmp_path: Path
) -> None:
    def attempt(scale: float) -> None:
        # 32 MiB a second: the 2 MiB take 64 ms, and 20 are allowed.
        limits = Limits(downtime=0.02, rounds=rounds, rate=32 << 20, stall=stall)
        folder = tmp_path / f"{scale:g}"
        folder.mkdir()
        pair = Pair(source=Options(limits=limits), make=_writer, limit=seconds * scale).run(folder)
        assert pair.report["outcome"] == outcome, pair.report
        ran = f"the guest ran for {seconds * scale:g} s, which is the limit"
        if stall == "abort":
            assert "the guest writes faster than can be sent: after 3 rounds" in pair.report["reason"]
            assert pair.here == ran
        else:
            assert (pair.there, pair.status) == (ran, 1)
        assert (pair.report["throttle"] > 0) == (stall == "throttle")

    patiently(attempt)


# --- the keeper -----------------------------------------------------------------------------------


def test_a_keeper_takes_one_guest_after_another(right: str, tmp_path: Path) -> None:
    pair = Pair()
    listener = Listener(parse("127.0.0.1:0"), LIMIT)
    ended: list[str] = []

    def serve() -> int:
        def finished(guest: BaseGuest, outcome: Outcome) -> None:
            (tmp_path / f"end-{os.getpid()}").write_text(_end(guest, outcome))

        options = target.Options(finished=finished)
        return Keeper(
            lambda channel, hello, link: Target(channel, hello, link, options, ended.append).serve(),
            listener=listener, say=ended.append,
        ).serve()  # fmt: skip

    keeping = forked(serve)
    listener.close_copy()
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert os.waitpid(forked(lambda f=folder: pair._send(listener.text, f)), 0)[1] == 0  # type: ignore[misc]
        assert json.loads((folder / "report").read_text())["outcome"] == "moved"
    assert eventually(lambda: len([path for path in tmp_path.glob("end-*") if path.stat().st_size]) == 3)
    assert [path.read_text() for path in tmp_path.glob("end-*")] == [right] * 3
    os.kill(keeping, signal.SIGTERM)
    os.waitpid(keeping, 0)


def test_a_receiver_that_is_stopped_says_so(tmp_path: Path) -> None:
    """SIGTERM while memory arrives: the source hears why, and keeps its guest."""

    def attempt(scale: float) -> None:
        folder = tmp_path / f"{scale:g}"
        folder.mkdir()
        listener = Listener(parse("127.0.0.1:0"), LIMIT)
        pair = Pair(source=Options(limits=Limits(rate=1 << 18)), make=_writer, limit=2 * scale)
        keeping = forked(lambda: pair._receive(listener, folder))
        listener.close_copy()
        sending = forked(lambda: pair._send(listener.text, folder))
        time.sleep(0.6 * scale)
        os.kill(keeping, signal.SIGTERM)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (keeping, sending)]
        assert statuses == [NEVER_RAN, 0]
        report = json.loads((folder / "report").read_text())
        assert report["outcome"] == "kept" and "vmm receive was stopped" in report["reason"]
        assert (folder / "here").read_text() == f"the guest ran for {2 * scale:g} s, which is the limit"

    patiently(attempt)
