# SPDX-License-Identifier: Apache-2.0
"""Save, restore, round trip: as a user runs them, and with a VMM that loses something on the way."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.command_line import Command
from tests.patience import LIMIT
from vmm.arch import ARCHITECTURE, module
from vmm.kvm.exits import Budget
from vmm.kvm.system import Kvm
from vmm.state import capture as states
from vmm.state import hostile, roundtrip
from vmm.state.capture import capture
from vmm.state.compare import compare
from vmm.state.errors import StreamError
from vmm.state.roundtrip import HOPS, RoundTripFailed, from_stream, to_stream
from vmm.state.value import VmState
from vmm.state.vcpu import steps

pytestmark = pytest.mark.kvm
chain = module("chain")


def vmm(*words: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "vmm", *words], input=data, capture_output=True, timeout=LIMIT)


@pytest.fixture
def saved(kvm: Kvm) -> VmState:
    """A guest of the best level, saved in the middle."""
    with chain.make_guest(kvm, chain.best(kvm), 20, 3) as guest:
        assert isinstance(guest.resume(LIMIT, ticks=10), Budget)
        return capture(guest)


@pytest.mark.parametrize("hop", sorted(HOPS))
def test_a_migrated_guest_ends_with_the_same_digest(kvm: Kvm, hop: str) -> None:
    chain.permit(kvm)
    for level in chain.available(kvm) if hop == "vm" else [chain.best(kvm)]:
        report = roundtrip.roundtrip(kvm, level, rounds=3, steps=9, seed=5, hop=hop)
        assert report.good, report
        assert report.digest == report.expected == report.unmoved


def _lose(monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """Restore without one piece."""
    [piece] = [piece for piece in steps() if piece.name == lost]
    monkeypatch.setattr(piece, "write", lambda part: [])


@pytest.mark.parametrize("lost", [step.name for step in steps() if step.name in ("XSAVE", "REGS", "VECTORS", "CORE")])
def test_a_vmm_that_loses_registers_is_caught(kvm: Kvm, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    _lose(monkeypatch, lost)
    with pytest.raises(RoundTripFailed, match=f"round 1: {lost}"):
        roundtrip.roundtrip(kvm, chain.best(kvm), rounds=2, steps=4, seed=5)


@pytest.mark.parametrize("lost", [step.name for step in steps() if step.name in ("XSAVE", "VECTORS")])
def test_a_loss_that_nobody_compares_changes_the_digest(kvm: Kvm, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    _lose(monkeypatch, lost)
    monkeypatch.setattr(states, "verify_vcpu", lambda *arguments: None)
    report = roundtrip.roundtrip(kvm, chain.best(kvm), rounds=2, steps=4, seed=5)
    assert report.expected == report.unmoved != report.digest and not report.good


def test_more_rounds_than_steps_are_refused(kvm: Kvm) -> None:
    with pytest.raises(ValueError, match="a tick of its own"):
        roundtrip.roundtrip(kvm, chain.best(kvm), rounds=5, steps=4, seed=1)


@pytest.mark.parametrize("rounds", range(1, 12))
def test_no_two_migrations_are_at_one_tick(rounds: int) -> None:
    for total in range(rounds, 40):
        ticks = [roundtrip._at(number, rounds, total) for number in range(rounds + 1)]
        assert all(b > a for a, b in pairwise(ticks)) and ticks[0] == 0 and ticks[-1] <= total


def test_a_stream_gives_the_same_state(saved: VmState) -> None:
    assert from_stream(to_stream(saved)) == saved


def test_no_hostile_stream_is_taken(kvm: Kvm, saved: VmState) -> None:
    outcomes = list(hostile.run(kvm, saved))
    assert [str(outcome) for outcome in outcomes if not outcome.good] == []
    assert len(outcomes) > 80


def test_a_hostile_variant_can_fail(kvm: Kvm, saved: VmState) -> None:
    good = hostile._refused("nothing wrong", "", lambda: hostile._take_state(kvm, saved))
    assert not good.good and good.observed == "accepted"
    wrong = hostile._refused("no part", "another reason", lambda: hostile._take(kvm, b""))
    assert not wrong.good

    def late() -> None:
        kvm.create_vm().close()
        raise StreamError("a part", "no good")

    outcome = hostile._refused("a stream that KVM was shown", "", late)
    assert not outcome.good and "after KVM_CREATE_VM" in outcome.observed


def test_a_saved_guest_survives_its_way_through_files(kvm: Kvm, tmp_path: Path) -> None:
    level = chain.best(kvm)
    file, later = tmp_path / "a.vm", tmp_path / "b.vm"
    done = vmm("save", "chain", level, "30", "7", "--ticks", "4", "-o", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert vmm("restore", str(file), "--ticks", "10", "--save", str(later)).returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["a.vm", "b.vm"]
    end = vmm("restore", str(later))
    words = [int(word, 16) for word in end.stdout.split()[1:3]]
    assert end.returncode == 0, end.stderr
    assert b"".join(word.to_bytes(8, "little") for word in words) == chain.reference(level, 30, 7)
    shown = vmm("diff", str(file), str(later))
    assert shown.returncode == 1 and b"memory" in shown.stdout
    assert vmm("diff", str(file), str(file)).returncode == 0


def test_a_pipe_of_vmms_works(kvm: Kvm) -> None:
    first = vmm("save", "chain", chain.best(kvm), "12", "7", "--ticks", "4", "-o", "-")
    assert first.returncode == 0, first.stderr
    second = vmm("restore", "-", "--ticks", "4", "--save", "-", data=first.stdout)
    assert second.returncode == 0, second.stderr
    assert vmm("restore", "-", data=second.stdout).returncode == 0


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"", b"cut off inside the header"), (b"not a state at all" * 10, b"not a VM state stream")],
)
def test_a_stream_that_is_none_is_refused_in_a_sentence(data: bytes, sentence: bytes) -> None:
    done = vmm("restore", "-", data=data)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr and sentence in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("restore", "-", "--ticks", "3"), "--ticks and --save go together"),
        (("save", "chain", "no-such-level", "-o", "-"), "this host's levels"),
        (("save", "chain", "-o", "-", "--ticks", "2000"), "ask for fewer"),
        (("save", "hello", "-o", "/nowhere/file", "--ticks", "1"), ""),
        (("roundtrip", "--level", "no-such-level"), "this host's levels"),
        (("roundtrip", "--rounds", "10", "--steps", "5"), "a tick of its own"),
        (("order", "--dot", "/nowhere/file"), ""),
    ],
)
def test_wrong_use_is_a_sentence_with_status_2(command: Command, words: tuple[str, ...], sentence: str) -> None:
    status, _, errors = command(*words)
    assert status == 2
    assert "Traceback" not in errors and sentence in errors, errors


def test_a_round_trip_reports_what_it_did(kvm: Kvm) -> None:
    done = vmm("roundtrip", "--rounds", "3", "--level", chain.LEVELS[0], "--hostile", "--json")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert records[0]["record"] == "roundtrip" and records[0]["good"] and records[0]["rounds"] == 3
    expected = chain.reference(chain.LEVELS[0], records[0]["steps"], 1).hex()
    assert records[0]["digest"] == expected
    assert {record["record"] for record in records[1:]} == {"hostile"} and all(r["good"] for r in records[1:])


def test_a_restored_guest_shows_the_same_registers(kvm: Kvm, saved: VmState) -> None:
    with states.restore(kvm, saved) as guest:
        assert guest.registers() and compare(saved, capture(guest)) == []
        if ARCHITECTURE == "arm64":
            assert guest.features  # type: ignore[attr-defined]
