# SPDX-License-Identifier: Apache-2.0
"""scripts/check and scripts/test on hosts without a usable /dev/kvm, and when they are ended."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command_line import BARE_DEV, hidden
from tests.patience import LIMIT, eventually
from tests.processes import descendants, gone

_SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
# The scripts set up .venv where it is not up to date, which is no business of a test's.
_IN_VENV = Path(sys.prefix) == _SCRIPTS.parent / ".venv"
pytestmark = pytest.mark.skipif(not _IN_VENV, reason="this Python is not the one that scripts/test sets up")
_NOT_KVM = f"{BARE_DEV} && touch /dev/kvm && mount --bind /dev/null /dev/kvm"
_MACHINE = {"x86_64": "amx", "aarch64": "sve"}[os.uname().machine]
# A clause of the machine.
_CLAUSE = {"amx": "xcrs.fresh", "sve": "core.bad-offset"}[_MACHINE]


def _check(setup: str, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*hidden(setup=setup), str(_SCRIPTS / "check"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, cwd=folder, check=False)


def _offered(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The words of the command that a check printed for want of a KVM."""
    found = re.findall(r"^scripts/check: an emulated machine has a KVM of its own: (.*)$", done.stderr, re.MULTILINE)
    assert done.returncode == 2 and len(found) == 1, done
    return shlex.split(found[0])


@pytest.mark.parametrize(
    ("setup", "sentence"),
    [(BARE_DEV, "/dev/kvm does not exist: "), (_NOT_KVM, "it is not a KVM device")],
    ids=["no-device", "another-device"],
)
def test_a_check_without_a_kvm_prints_the_command_that_checks_in_a_machine(setup: str, sentence: str) -> None:
    done = _check(setup, "xcrs.*", "it's", "--jobs=1", "--time-scale", "3")
    assert sentence in done.stderr
    lab = [str(_SCRIPTS / "lab"), _MACHINE]
    assert _offered(done) == [*lab, "--", "vmm", "check", "--time-scale", "20", "xcrs.*", "it's", "--jobs=1"]


@pytest.mark.parametrize(
    "option", [("-o", "here/a b.txt"), ("-ohere/a b.txt",), ("--output", "here/a b.txt"), ("--output=here/a b.txt",)]
)
def test_the_report_of_the_printed_command_comes_back_to_its_file(option: tuple[str, ...]) -> None:
    words = _offered(_check(BARE_DEV, "--format", "json", *option, "--", "xcrs.fresh"))
    assert words[2:6] == ["--out", "here", "--", "vmm"]
    assert words[6:] == ["check", "--time-scale", "20", "--format", "json", "-o", "/out/a b.txt", "xcrs.fresh"]


def test_a_check_without_arguments_offers_the_machine_where_the_device_is_not_kvm() -> None:
    assert _offered(_check(_NOT_KVM))[2:] == ["--", "vmm", "check", "--time-scale", "20"]


@pytest.mark.parametrize("arguments", [("--nonesuch",), ("--jobs", "0")])
def test_wrong_usage_does_not_offer_a_machine(arguments: tuple[str, ...]) -> None:
    done = _check(BARE_DEV, *arguments)
    assert done.returncode == 2 and "emulated machine" not in done.stderr


def test_what_needs_no_kvm_works_without_one() -> None:
    done = _check(BARE_DEV, "--list")
    assert done.returncode == 0 and not done.stderr and len(done.stdout.splitlines()) > 100


@pytest.mark.machine
def test_the_printed_command_works(tmp_path: Path) -> None:
    words = _offered(_check(BARE_DEV, _CLAUSE, "--format", "json", "-o", "report.json"))
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=10 * LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    assert '"verdict": "PASS"' in (tmp_path / "report.json").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_scripts_test_ends_all_that_it_started(tmp_path: Path, number: signal.Signals) -> None:
    """Tools that only wait stand in for ruff, mypy and pytest: what is looked at is who ends them."""
    slow = tmp_path / "ruff"
    slow.write_text("#!/bin/sh\nsetsid sleep 3600 &\nexec sleep 3600\n")
    slow.chmod(0o755)
    environment = tmp_path / "scripts" / "environment"
    environment.parent.mkdir()
    environment.write_text(f"prepare_environment() {{ root=$PWD; PATH={tmp_path}:$PATH; }}\n")
    (tmp_path / "scripts" / "test").write_text((_SCRIPTS / "test").read_text())
    (tmp_path / "tests").symlink_to(_SCRIPTS.parent / "tests")
    process = subprocess.Popen(["bash", "scripts/test", "--fast"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert eventually(lambda: len(descendants(process.pid)) >= 3)
    started = descendants(process.pid)
    process.send_signal(number)
    assert process.wait(LIMIT) == 128 + number
    assert all(gone(pid) for pid in started)
