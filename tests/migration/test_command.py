# SPDX-License-Identifier: Apache-2.0
"""``vmm send`` and ``vmm receive`` as they are typed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command_line import Command
from tests.migration.test_tls import Authority, authority, stranger  # noqa: F401  (fixtures)
from tests.patience import LIMIT
from vmm.arch import module
from vmm.migration.transport import Listener, parse

pytestmark = pytest.mark.kvm
_LEVEL, _STEPS, _SEED = "sse", 20000, 7


@pytest.fixture(scope="module")
def right() -> str:
    return bytes(module("chain").reference(_LEVEL, _STEPS, _SEED)).hex()


def _vmm(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False, **how)


def test_send_moves_a_guest_to_receive(tmp_path: Path, right: str) -> None:
    command = [sys.executable, "-m", "vmm", "receive", "--once", "--timeout", str(LIMIT), "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout and receiver.stderr
        address = receiver.stderr.readline().split()[-1]
        sent = _vmm("send", address, "chain", _LEVEL, str(_STEPS), str(_SEED), "--downtime", "0.5")
        printed = receiver.stdout.read()
        assert receiver.wait(LIMIT) == 0, receiver.stderr.read()
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout == ""
    assert re.match(r"vmm: the guest runs there after \d+ rounds.* ms of downtime", sent.stderr)
    low, high = (int.from_bytes(bytes.fromhex(right)[at : at + 8], "little") for at in (0, 8))
    assert printed.startswith(f"done: {low:#x} {high:#x} {_STEPS:#x}")


def test_send_moves_a_guest_with_two_vcpus_and_regions_that_writes_its_memory(tmp_path: Path) -> None:
    receive = shlex.join([sys.executable, "-m", "vmm", "receive", "-", "--reread"])
    sent = _vmm(
        "send", f"exec:sh -c {shlex.quote('cd / && exec ' + receive)}", "writer", "write", "20000", "50", "4",
        "--vcpus", "2", "--memory", "16M,32M@4G", "--downtime", "2", "--deadline", str(LIMIT), "--audit", "--json",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout)["outcome"] == "moved"
    assert "done: " in sent.stderr, "no page was stale or torn there"


def test_a_migration_that_is_over_its_deadline_leaves_the_guest_here(tmp_path: Path) -> None:
    receive = shlex.join([sys.executable, "-m", "vmm", "receive", "-"])
    sent = _vmm(
        "send", f"exec:sh -c {shlex.quote('cd / && exec ' + receive)}", "writer", "write", "20000", "50", "4",
        "--vcpus", "2", "--rate", "1M", "--deadline", "1", "--json",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert sent.returncode == 1, sent.stderr
    report = json.loads(sent.stdout)
    assert report["outcome"] == "kept" and "its deadline" in report["reason"] and report["guest"]["well"]


def test_send_moves_a_guest_through_another_program(tmp_path: Path) -> None:
    receive = shlex.join([sys.executable, "-m", "vmm", "receive", "-"])
    sent = _vmm(
        "send", f"exec:sh -c {shlex.quote('cd / && exec ' + receive)}", "chain", _LEVEL, "60000", "--json",
        "--downtime", "0.5", env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    report = json.loads(sent.stdout)
    assert (report["outcome"], report["guest"]) == ("moved", None)


def test_send_to_nobody_runs_the_guest_here(tmp_path: Path) -> None:
    sent = _vmm("send", f"unix:{tmp_path}/none", "chain", _LEVEL, "50", "--json")
    assert sent.returncode == 1
    report = json.loads(sent.stdout)
    assert report["outcome"] == "kept" and report["guest"]["well"]
    assert "continues here" in sent.stderr and "start vmm receive there first" in sent.stderr
    sent = _vmm("send", "exec:false", "chain", _LEVEL, "50")
    assert sent.returncode == 1
    assert "closed the line" in sent.stderr and sent.stdout.startswith("done: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("send", "nowhere", "chain"), "is not an address"),
        (("send", "a:1", "chain", "--tls-cert", "x"), "TLS needs --tls-cert, --tls-key and --tls-ca"),
        (("send", "a:1", "chain", "--rate", "fast"), "is not a size"),
        (("send", "exec:x", "chain", "--tls-cert", "x", "--tls-key", "x", "--tls-ca", "x"), "TLS needs TCP"),
        (("receive", "exec:x"), "cannot listen on"),
        (("receive", "[::1"), "is"),
        (("receive", "a:1", "--memory", "0"), "is not a size"),
    ],
)
def test_wrong_usage_is_a_sentence_with_status_2(
    command: Command, arguments: tuple[str, ...], sentence: str
) -> None:  # fmt: skip
    status, _, errors = command(*arguments)
    assert status == 2
    assert sentence in errors and "Traceback" not in errors


def test_receive_on_an_address_in_use_is_refused(tmp_path: Path) -> None:
    listener = Listener(parse("127.0.0.1:0"))
    done = _vmm("receive", listener.text)
    listener.close()
    assert done.returncode == 2 and "it is in use" in done.stderr
