# SPDX-License-Identifier: Apache-2.0
"""Over pipes both ends end together: whose other end is gone has nobody who could ask any more.

All time-outs here are far longer than the tests wait: what ends, ends because it has seen the other end go.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.migration.mortal import LEVEL, SEED, STEPS
from tests.patience import HANGS, LIMIT, eventually
from tests.processes import descendants, end, gone
from vmm.arch import module
from vmm.migration.handover import At
from vmm.migration.resolve import NEVER_RAN
from vmm.migration.runner import Outcome
from vmm.migration.target import Options, Target

_RECEIVE = [sys.executable, "-m", "vmm", "receive", "--any-host", "--timeout", str(HANGS)]
_MORTAL = [sys.executable, "-m", "tests.migration.mortal"]
_ROOT = Path(__file__).resolve().parents[2]
# Where the sender still has the guest, and the receiver discards it; and where the receiver has it, and runs it.
_BEFORE = [
    *((kind, when) for kind in ("HELLO", "CONFIG", "MEMORY", "ROUND", "FINAL") for when in ("before", "after")),
    ("HANDOVER", "before"),
]
_AFTERWARDS = [("HANDOVER", "after"), ("SETTLED", "before"), ("SETTLED", "after")]


def _done(steps: int = STEPS) -> str:
    digest = bytes(module("chain").reference(LEVEL, steps, SEED))
    low, high = (int.from_bytes(digest[at : at + 8], "little") for at in (0, 8))
    return f"done: {low:#x} {high:#x} {steps:#x}"


def _settled(pid: int) -> bool:
    """Has a guest's process been told to outlive its keeper? It ignores Ctrl-C then."""
    ignored = Path(f"/proc/{pid}/status").read_text().partition("SigIgn:")[2].split()[0]
    return bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)


@pytest.mark.kvm
@pytest.mark.parametrize(("kind", "when"), [*_BEFORE, *_AFTERWARDS])
def test_a_receiver_that_was_started_by_its_sender_ends_with_it(kind: str, when: str, tmp_path: Path) -> None:
    pids, said = tmp_path / "pids", tmp_path / "said"
    with said.open("w") as file:
        sent = subprocess.run(
            [*_MORTAL, f"exec:{shlex.join([*_RECEIVE, '-'])}", kind, when, str(pids)],
            stderr=file, timeout=HANGS, cwd=_ROOT, check=False,
        )  # fmt: skip
    assert sent.returncode == -signal.SIGKILL
    receivers = list(map(int, pids.read_text().split()))
    try:
        assert receivers and eventually(lambda: all(map(gone, receivers))), said.read_text()
    finally:
        end(receivers)
    assert (_done() in said.read_text()) == ((kind, when) in _AFTERWARDS)


@contextmanager
def _pipeline(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """A sender and a receiver that a third process has connected, as a shell does."""
    there, back = os.pipe(), os.pipe()
    receiver = subprocess.Popen(
        [*_RECEIVE, "-"], stdin=there[0], stdout=back[1], stderr=subprocess.PIPE, text=True, cwd=_ROOT
    )
    command = [*_MORTAL, f"fd:{back[0]},{there[1]}", *arguments]
    sender = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(back[0], there[1]), text=True, cwd=_ROOT)
    for descriptor in (*there, *back):
        os.close(descriptor)
    try:
        yield sender, receiver
    finally:
        end([*descendants(receiver.pid), receiver.pid, sender.pid])
        for process in (sender, receiver):
            process.communicate()


@pytest.mark.kvm
@pytest.mark.parametrize(("kind", "when"), [("CONFIG", "after"), ("FINAL", "after"), *_AFTERWARDS])
def test_a_pipeline_ends_when_its_sender_is_killed(kind: str, when: str, tmp_path: Path) -> None:
    with _pipeline(kind, when, str(tmp_path / "pids")) as (sender, receiver):
        assert sender.wait(HANGS) == -signal.SIGKILL
        _, said = receiver.communicate(timeout=LIMIT)
        ran = (kind, when) in _AFTERWARDS
        assert receiver.returncode == (0 if ran else NEVER_RAN)
        assert (_done() in said) == ran


@pytest.mark.kvm
def test_a_sender_in_a_pipeline_ends_when_its_receiver_is_killed(tmp_path: Path) -> None:
    waiting = tmp_path / "pids"
    with _pipeline("CONFIG", "held", str(waiting)) as (sender, receiver):
        assert eventually(waiting.exists)
        end([*descendants(receiver.pid), receiver.pid])
        waiting.unlink()
        said, _ = sender.communicate(timeout=LIMIT)
        assert sender.returncode == 0
        assert said.startswith("KEPT ")


@pytest.mark.kvm
def test_a_pipeline_whose_guest_has_moved_ends_with_it(tmp_path: Path) -> None:
    with _pipeline("", "", "") as (sender, receiver):
        assert sender.communicate(timeout=LIMIT)[0].startswith("MOVED")
        assert _done() in receiver.communicate(timeout=LIMIT)[1]
        assert receiver.returncode == 0


@pytest.mark.kvm
def test_a_settled_guest_whose_keeper_is_gone_says_how_it_ended(tmp_path: Path) -> None:
    steps = 100_000
    with _pipeline("", "", "", str(steps)) as (sender, receiver):
        assert sender.communicate(timeout=LIMIT)[0].startswith("MOVED")
        (guest,) = descendants(receiver.pid)
        assert eventually(lambda: _settled(guest))
        receiver.kill()
        said = receiver.communicate(timeout=LIMIT)[1]  # to the end of the guest's process
        assert eventually(lambda: gone(guest))
        assert _done(steps) in said and "Traceback" not in said


def test_a_guest_whose_pipe_has_ended_is_waited_for_and_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome(None, 1, True, "done")
    link: Any = SimpleNamespace(again=False, keeper=None, ended=lambda: None)
    channel: Any = SimpleNamespace(line=SimpleNamespace(timeout=1.0))
    target = Target(channel, SimpleNamespace(patience=1), link, Options(), print)  # type: ignore[arg-type]
    target._machine.at, target._channel = At.RUNNING, None
    target._guest = SimpleNamespace()  # type: ignore[assignment]
    target._runner = SimpleNamespace(wait=lambda seconds=None: outcome if seconds is None else None)  # type: ignore[assignment]

    def asked(deadline: float) -> None:
        pytest.fail("it asks again and again, and takes the time of the guest's thread")

    monkeypatch.setattr(target, "_next", asked)
    assert target._run() == 0
