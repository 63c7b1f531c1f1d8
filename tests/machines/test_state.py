# SPDX-License-Identifier: Apache-2.0
"""States between machines: from one kernel to the next and back, from one set of vector lengths to another."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.machines.machines import NEWEST, Running
from tests.machines.machines import run_lab as lab
from tests.patience import MACHINE
from vmm.compat.offer import Verdict
from vmm.compat.report import compare
from vmm.compat.saved import load_guest

pytestmark = pytest.mark.machine
_STEPS, _SEED = 24, 7
_LIMIT = ("--timeout", f"{MACHINE:g}")


def save(machine: str, kernel: str, level: str, folder: Path, *options: str) -> None:
    """Save a guest a third of its way into ``folder``/a.vm."""
    words = ["vmm", "save", "chain", level, str(_STEPS), str(_SEED), "--ticks", "8", "-o", "/out/a.vm"]
    done = lab(machine, "--kernel", kernel, *options, "--out", str(folder), "--", *words, *_LIMIT)
    assert done.returncode == 0, done.stderr


def go_on(machine: str, kernel: str, folder: Path, *words: str, options: tuple[str, ...] = ()) -> str:
    """Restore ``folder``/a.vm, run it 8 ticks on and save it there again; return what was said."""
    command = ["vmm", "restore", "/in/a.vm", "--ticks", "8", "--save", "/out/a.vm", *_LIMIT, *words]
    done = lab(machine, "--kernel", kernel, *options, "--in", str(folder), "--out", str(folder), "--", *command)
    assert done.returncode == 0, done.stderr
    return done.stderr


def end(machine: str, kernel: str, folder: Path, *words: str, options: tuple[str, ...] = ()) -> bytes:
    """Restore ``folder``/a.vm, run it to its end and return its digest."""
    command = ["vmm", "restore", "/in/a.vm", *_LIMIT, *words]
    done = lab(machine, "--kernel", kernel, *options, "--in", str(folder), "--", *command)
    assert done.returncode == 0, done.stderr
    first = next(line for line in done.stdout.splitlines() if line.startswith("done: "))
    return b"".join(int(word, 16).to_bytes(8, "little") for word in first.split()[1:3])


def reference(machine: str, level: str) -> bytes:
    """What a guest that never moved computes: in Python, on this host if it can, else in the machine."""
    arch = "arm64" if machine == "sve" else "x86"
    code = f"from vmm.{arch}.chain import reference; print(reference('{level}', {_STEPS}, {_SEED}).hex())"
    done = lab(machine, "--", "python3", "-c", code)
    assert done.returncode == 0, done.stderr
    return bytes.fromhex(done.stdout.strip())


@pytest.mark.parametrize("machine", ["svm", "sve", "amx"])
def test_a_guest_is_the_same_after_many_migrations(machine: str) -> None:
    done = lab(machine, "--", "vmm", "roundtrip", "--rounds", "20", "--hostile", *_LIMIT, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert records[0]["good"] and records[0]["digest"] == records[0]["expected"] and len(records) > 60
    best = {"svm": "pku", "sve": "sve512", "amx": "amx+pku+cet+xfd"}[machine]
    assert best in records[0]["level"]


@pytest.mark.parametrize("machine", ["svm", "sve", "amx"])
def test_a_kernel_enforces_the_known_order_of_restore(machine: str, running: Running) -> None:
    done = lab(machine, "--", "vmm", "order", "--samples", "10", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {(edge["first"], edge["then"]) for edge in json.loads(done.stdout)["enforced"]}
    expected = {
        "svm": {("CPUID", "XCRS"), ("REGS", "EVENTS")},
        "amx": {("CPUID", "XCRS"), ("CPUID", "XSAVE"), ("CPUID", "SREGS"), ("REGS", "EVENTS")},
        "sve": {("INIT", "VLS"), ("VLS", "FINALIZE"), ("FINALIZE", "VECTORS")},
    }
    assert found
    missing = expected[machine] - found
    running.expect(
        not missing, f"enforces {missing} no more", machine, running.offer(machine, NEWEST).about["kernel"]
    )


def refused_msrs(said: str) -> int:
    """How many MSRs a restore named as refused; it names six of a kind and counts the others."""
    return said.count("MSRS.") + sum(int(more) for more in re.findall(r" and (\d+) more", said))


# An older kernel has no CET for guests, so a guest that is to go there and back must have none.
def test_amx_state_survives_a_newer_kernel_and_back(tmp_path: Path, running: Running) -> None:
    level = "amx+pku+xfd"
    save("amx", "6.12", level, tmp_path)
    notes = go_on("amx", "7.2", tmp_path)
    assert "MSRS.U_CET: not in the saved state" in notes
    refused = lab("amx", "--kernel", "6.12", "--in", str(tmp_path), "--", "vmm", "restore", "/in/a.vm")
    assert refused.returncode == 2 and "MSRS." in refused.stderr and "KVM refused" in refused.stderr
    predicted = compare(load_guest(str(tmp_path / "a.vm")), running.offer("amx", "6.12"), started=True)
    assert predicted.verdict is Verdict.MASK and refused_msrs(refused.stderr) == len(predicted.masks) > 0
    assert end("amx", "6.12", tmp_path, "--tolerate", "MSRS.*", "--tolerate", "ONE_REGS*") == reference("amx", level)


def test_sve_state_survives_a_newer_kernel_and_back(tmp_path: Path, running: Running) -> None:
    save("sve", "6.12", "sve512", tmp_path)
    options = [word for glob in ("LIST.*", "SYSREGS.*", "FIRMWARE.*") for word in ("--tolerate", glob)]
    predicted = compare(load_guest(str(tmp_path / "a.vm")), running.offer("sve", NEWEST), started=True)
    notes = go_on("sve", "7.2", tmp_path, *options)
    lost = set(re.findall(r"LIST\.([A-Z0-9_]+): this KVM has no such register", notes))
    assert {mask.name for mask in predicted.masks} == lost
    assert predicted.verdict is (Verdict.MASK if lost else Verdict.OK)
    releases = [running.offer("sve", kernel).about["kernel"] for kernel in ("6.12", NEWEST)]
    running.expect("TCR2_EL1" in lost, f"a guest of 6.12 loses {lost} with {NEWEST}", "sve", *releases)
    assert end("sve", "6.12", tmp_path, *options) == reference("sve", "sve512")


def test_a_guest_with_longer_vectors_than_the_host_is_refused(tmp_path: Path) -> None:
    save("sve", "7.2", "sve512", tmp_path)
    words = ("--cpu", "vq=1,2", "--in", str(tmp_path), "--", "vmm", "restore", "/in/a.vm")
    done = lab("sve", *words)
    assert done.returncode == 2 and "VLS" in done.stderr and "{1,2,3,4}" in done.stderr and "{1,2}" in done.stderr


def test_a_guest_with_short_vectors_is_restored_on_a_host_with_short_vectors(tmp_path: Path) -> None:
    save("sve", "7.2", "sve256", tmp_path)
    assert end("sve", "7.2", tmp_path, options=("--cpu", "vq=1,2")) == reference("sve", "sve256")


@pytest.mark.parametrize("kernels", [("6.12", "7.2"), ("7.2", "6.12")], ids="-".join)
def test_a_live_migration_between_kernels_does_not_change_the_guest(kernels: tuple[str, str]) -> None:
    run = "chain sve512 20000 7"
    tolerated = " ".join(f"--tolerate {glob}.*" for glob in ("LIST", "SYSREGS", "FIRMWARE"))
    # A sender that finds nobody keeps its guest, so the receiver says when it listens.
    limit = " ".join(_LIMIT)
    send = f"nc -l -p 5556 </dev/null; exec vmm send b:5555 {run} {tolerated} {limit}"
    receive = (
        f"vmm receive 0.0.0.0:5555 --once {limit} {tolerated} 2>/tmp/said & "
        "until [ -s /tmp/said ]; do sleep 1; done; until echo | nc a 5556; do sleep 1; done; "
        "wait $!; status=$?; cat /tmp/said >&2; exit $status"
    )
    machines = ("--pair", "--kernel", kernels[0], "--kernel", kernels[1])
    done = lab("sve", *machines, "--", "sh", "-c", send, "--", "sh", "-c", receive)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a| vmm: the guest runs there" in done.stderr + done.stdout
    assert "LIST.TCR2_EL1" in done.stderr + done.stdout  # what only one of the kernels has is named
    alone = lab("sve", "--", "sh", "-c", f"vmm run {run} {limit}").stdout
    expected = next(line for line in alone.splitlines() if line.startswith("done: "))
    assert f"b| {expected}" in done.stdout
