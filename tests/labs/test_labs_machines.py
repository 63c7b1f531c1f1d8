# SPDX-License-Identifier: Apache-2.0
"""The machines themselves, booted; the first run builds them, which takes minutes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from labs.config import KERNELS

from tests.machines.machines import run_lab as lab
from tests.patience import MACHINE, patiently

pytestmark = pytest.mark.machine

REPOSITORY = Path(__file__).resolve().parents[2]
ALL = [(name, kernel) for name in ("svm", "sve", "amx") for kernel in KERNELS]


PROBE = """
import os, sys, fcntl, cbor2, click, rich.console, _cffi_backend, vmm, vmm._kvm
version = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE00)
print(os.uname().release, version)
print("to stderr", file=sys.stderr)
open("/out/report", "w").write("x" * 100000)
sys.exit(3)
"""


@pytest.mark.parametrize(("name", "kernel"), ALL)
def test_a_command_runs_with_kvm_and_our_package(name: str, kernel: str, tmp_path: Path) -> None:
    done = lab(name, "--kernel", kernel, "--out", str(tmp_path / "out"), "--", "python3", "-c", PROBE)
    assert (done.returncode, done.stderr) == (3, "to stderr\n")
    release, version = done.stdout.split()
    assert release.startswith(kernel + ".")
    assert version == "12"
    assert (tmp_path / "out" / "report").read_text() == "x" * 100000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("amx", ("amx_tile", "avx512f", "pku", "xsaves", "vmx")),
        ("svm", ("svm", "pku", "avx2")),
        ("sve", ("sve", "sve2")),
    ],
)
def test_the_processor_has_what_the_machine_is_for(name: str, words: tuple[str, ...]) -> None:
    done = lab(name, "--", "cat", "/proc/cpuinfo")
    assert set(words) <= set(done.stdout.split())


CONTINUED = """
date +%s; head -c 8 /dev/urandom | xxd -p; lsmod | sort | tr '\\n' ' '; echo
for mask in 1 2 1 2; do [ $mask -lt $((1 << $(nproc))) ] && taskset $mask sleep 0.1; done; sleep 0.5
cat /in/given
"""


@pytest.mark.parametrize(("name", "mode"), [("svm", "vhe"), ("sve", "vhe"), ("sve", "nvhe")])
def test_a_kept_machine_goes_on_with_its_own_time_timers_and_random_numbers(
    name: str, mode: str, tmp_path: Path
) -> None:
    seen = set()
    for number, words in enumerate((["--fresh"], [], [], [])):
        (tmp_path / "given").write_text(str(number))
        start = time.time()
        done = lab(name, "--mode", mode, *words, "--in", str(tmp_path), "--", "sh", "-c", CONTINUED)
        assert (done.returncode, done.stderr) == (0, "")
        date, random, modules, given = done.stdout.splitlines()
        assert start - 2 < int(date) < time.time() + 2
        assert given == str(number)
        seen.add((random, modules))
    assert len({random for random, _ in seen}) == 4, "the same random numbers"
    assert len({modules for _, modules in seen}) == 1, "a machine that was booted differs"


@pytest.mark.parametrize(("mode", "text"), [("vhe", "VHE mode initialized"), ("nvhe", "nVHE mode initialized")])
def test_sve_runs_kvm_with_and_without_vhe(mode: str, text: str) -> None:
    assert text in lab("sve", "--mode", mode, "--", "dmesg").stdout


def test_sve_has_the_vector_lengths_asked_for() -> None:
    probe = (
        "import ctypes; libc = ctypes.CDLL(None); lengths = set()\n"
        "for vq in range(16, 0, -1): lengths.add((libc.prctl(50, 16 * vq) & 0xFFFF) // 16)\n"
        "print(sorted(lengths))"
    )
    assert lab("sve", "--cpu", "vq=1,2,4,8", "--", "python3", "-c", probe).stdout == "[1, 2, 4, 8]\n"


def test_the_newest_qemu_has_what_the_usual_one_lacks_and_keeps_its_machine_too() -> None:
    for words in (["--fresh"], [], []):
        done = lab("sve", "--emulator", "trixie-backports", "--cpu=+mte", *words, "--", "cat", "/proc/cpuinfo")
        assert (done.returncode, done.stderr) == (0, "")
        assert {"mte", "fpmr"} <= set(done.stdout.split())


@pytest.mark.parametrize("name", ["svm", "sve", "amx"])
def test_a_panic_is_reported_with_the_console(name: str) -> None:
    done = lab(name, "--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert done.returncode == 125
    assert "panicked: sysrq triggered crash" in done.stderr
    assert "Call [Tt]race" in done.stderr.replace("Call trace", "Call [Tt]race").replace(
        "Call Trace", "Call [Tt]race"
    )


def test_a_command_that_never_ends_is_ended() -> None:
    def attempt(scale: float) -> None:
        limit = f"{8 * scale:g}"
        done = lab("svm", "--timeout", limit, "--", "sh", "-c", "echo started; while :; do :; done")
        assert (done.returncode, done.stdout) == (125, "started\n")
        assert f"within {limit} s" in done.stderr

    patiently(attempt)


def test_a_command_that_is_not_there_gives_127() -> None:
    done = lab("svm", "--", "no-such-command")
    assert done.returncode == 127
    assert "cannot run no-such-command" in done.stderr


def test_two_machines_talk_over_their_cable() -> None:
    listen = "echo hello | nc -l -p 5555"
    ask = "while :; do nc a 5555 </dev/null && exit 4; sleep 1; done"
    kernels = ("--kernel", "6.12", "--kernel", "7.2")
    done = lab("sve", "--pair", *kernels, "--", "sh", "-c", listen, "--", "sh", "-c", ask)
    assert done.returncode == 4
    assert "b| hello\n" in done.stdout


@pytest.mark.parametrize("name", ["svm", "sve", "amx"])
def test_a_shell_takes_what_is_typed(name: str) -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "lab"), name, "--shell", "--timeout", f"{MACHINE:g}"]
    shell = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert shell.stdin is not None and shell.stdout is not None
    seen = b""
    while b"# " not in seen:
        piece = shell.stdout.read1(4096)  # type: ignore[attr-defined]
        assert piece, seen
        seen += piece
    shell.stdin.write(b"exit $((6*7))\n")
    shell.stdin.flush()
    assert shell.wait(MACHINE) == 42
