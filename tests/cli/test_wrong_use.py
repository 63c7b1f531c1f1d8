# SPDX-License-Identifier: Apache-2.0
"""Whatever stands on the command line, or is missing around the process, ends in one sentence and its status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command_line import Command
from tests.patience import LIMIT
from tests.state.state_samples import x86_state
from vmm.arch import ARCHITECTURE
from vmm.kvm.system import Kvm
from vmm.state.compare import memory_differences
from vmm.state.stream.files import save
from vmm.state.value import PAGE, Extent, MemoryState

_VMM = [sys.executable, "-m", "vmm"]
_MANY = "9" * 20


def _run(*arguments: str, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_VMM, *arguments], capture_output=True, text=True, timeout=LIMIT, **how)  # type: ignore[call-overload,no-any-return]


@pytest.mark.kvm
@pytest.mark.parametrize(
    "arguments",
    [
        ("save", "chain", "-o", ""),
        ("save", "chain", "-o", "/"),
        ("save", "chain", "-o", "/no/such/folder/x"),
        ("save", "chain", "-o", "x", "--ticks", _MANY),
        ("send", "unix:/no/such", "chain", "--hold", "/"),
        ("send", "unix:/no/such", "chain", "--hold", ""),
        ("send", "unix:/no/such", "chain", "--hold", "/dev/null"),
        ("send", "unix:/no/such", "chain", "--rate", ""),
        ("send", "unix:/no/such", "chain", "--rate", _MANY + _MANY),
        ("send", "unix:/no/such", "chain", "--ring", _MANY),
        ("send", "unix:/no/such", "chain", "--rounds", _MANY),
        ("send", "unix:/no/such", "chain", "--journal", "/"),
        ("save", "chain", "-o", "x", "--vcpus", "5000"),
        ("save", "chain", "-o", "x", "--vcpus", "0"),
        ("save", "chain", "-o", "x", "--memory", "1K"),
        ("save", "chain", "-o", "x", "--memory", "5000000"),
        ("save", "chain", "-o", "x", "--memory", "15T"),
        ("save", "chain", "-o", "x", "--memory", "8M,8M"),
        ("save", "chain", "-o", "x", "--memory", "8M,8M@4M"),
        ("save", "chain", "-o", "x", "--memory", "8M,8M@"),
        ("save", "chain", "-o", "x", "--memory", "4M", "--vcpus", "50"),
        ("save", "hello", "ticks", "99", "-o", "x", "--vcpus", "2"),
        ("save", "writer", "-o", "x", "--memory", "14T"),
        ("save", "writer", "write", "0", "-o", "x"),
        ("save", "writer", "write", "1", "101", "-o", "x"),
        ("run", "hello", "--vcpus", "2"),
        ("roundtrip", "--vcpus", "5000"),
        ("roundtrip", "--memory", ""),
        ("send", "unix:/no/such", "chain", "--vcpus", "5000"),
        ("send", "unix:/no/such", "chain", "--deadline", "0"),
        ("send", "unix:/no/such", "chain", "--deadline", "nan"),
        ("send", "unix:/no/such", "chain", "--deadline", "1", "--on-deadline", "hope"),
        ("receive", "127.0.0.1:0", "--memory", ""),
        ("receive", "127.0.0.1:0", "--lease", "/"),
        ("receive", "127.0.0.1:0", "--journal", "/no/such/folder/x"),
        ("run", "hello", "ticks", "0x1" + "0" * 16),
        ("run", "hello", "ticks", _MANY),
        ("check", "--jobs", _MANY),
        ("check", "-o", ""),
        ("check", "-o", "/"),
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_a_wrong_argument_is_one_sentence_and_status_2(
    command: Command, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, errors = command(*arguments)
    assert status == 2, errors
    assert "Traceback" not in errors
    assert errors.count("rror") + errors.count("vmm: ") >= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.kvm
@pytest.mark.parametrize("where", ["-", "fd:0"])
def test_tls_on_a_line_that_cannot_have_it_is_refused_and_not_ignored(kvm: Kvm, where: str) -> None:
    done = _run("receive", where, "--tls-cert", "x", "--tls-key", "x", "--tls-ca", "x", stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and "TLS needs TCP or a Unix socket" in done.stderr


@pytest.mark.kvm
@pytest.mark.parametrize(("address", "warned"), [("0.0.0.0:0", True), ("127.0.0.1:0", False), ("localhost:0", False)])
def test_a_receiver_in_clear_on_an_open_address_says_so(kvm: Kvm, address: str, warned: bool) -> None:
    process = subprocess.Popen([*_VMM, "receive", address], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    first = process.stderr.readline()
    process.terminate()
    process.communicate(timeout=LIMIT)
    assert ("without TLS whoever can connect" in first) is warned


def _closed(*descriptors: int) -> Callable[[], None]:
    def close() -> None:
        for number in descriptors:
            os.close(number)

    return close


@pytest.mark.kvm
@pytest.mark.parametrize("descriptors", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_standard_descriptors_change_no_status(kvm: Kvm, descriptors: tuple[int, ...]) -> None:
    for arguments, status in ((("check", "xcrs.fresh"), {0, 4}), (("check", "no.such"), {2})):
        done = subprocess.run([*_VMM, *arguments], preexec_fn=_closed(*descriptors), timeout=LIMIT)
        assert done.returncode in status


def test_an_ascii_terminal_shows_what_it_cannot_print_as_escapes(tmp_path: Path) -> None:
    path = tmp_path / "s\u00fc\u00df.vm"
    save(path, x86_state())
    done = _run("inspect", str(path), env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    missing = _run("inspect", str(path) + "?", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert missing.returncode == 2 and "Traceback" not in missing.stderr


def test_ctrl_c_while_the_command_is_still_being_imported_is_130_and_one_line() -> None:
    statuses = set()
    for wait in (0.0, 0.03, 0.06, 0.09, 0.12):
        process = subprocess.Popen(
            [sys.executable, "-c", "import os; os.write(1, b'x'); from vmm.__main__ import main; main()", "--help"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout and process.stdout.read(1) == "x"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT)
        if process.returncode == -signal.SIGINT or "KeyboardInterrupt" in errors:
            # Before main() of the package had been called: Python's own beginning, which nobody can guard.
            assert "vmm.__main__" not in errors or "import" in errors
            continue
        statuses.add(process.returncode)
        assert errors in ("vmm: interrupted\n", "")
    assert statuses <= {0, 130}


@pytest.mark.skipif(ARCHITECTURE != "x86", reason="the state is one of x86")
def test_a_restore_opens_no_file_that_the_stream_names(tmp_path: Path) -> None:
    from dataclasses import replace

    from vmm.state.value import PayloadIdentity

    for name in ("/etc/shadow", "../../etc/passwd", "hello.elf"):
        path = tmp_path / "state.vm"
        save(path, replace(x86_state(), payload=PayloadIdentity(name, bytes(32))))
        done = _run("restore", str(path))
        assert done.returncode == 2
        assert "did not come with this package" in done.stderr or "/dev/kvm" in done.stderr, done.stderr


def test_memory_that_is_only_cut_into_other_pieces_is_the_same_memory() -> None:
    page = bytes([1]) * PAGE
    whole = MemoryState(0, 4 * PAGE, (Extent(0, page + page),))
    pieces = MemoryState(0, 4 * PAGE, (Extent(0, page), Extent(PAGE, page), Extent(2 * PAGE, bytes(PAGE))))
    assert memory_differences((whole,), (pieces,)) == []
    other = MemoryState(0, 4 * PAGE, (Extent(0, page),))
    assert len(memory_differences((whole,), (other,))) == 1
