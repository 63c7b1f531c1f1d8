# SPDX-License-Identifier: Apache-2.0
"""What the tests in emulated machines share: running a command there, and judging a conformance run.

A series' kernel moves on by itself, from one point release to the next, and so do the emulators. So what is predicted
of a machine comes from a probe of what runs there (``Running``); what was recorded with another release, a probe or a
count, is compared with it, and a difference is a line in the summary of the run and no failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.data.probes import offer, path
from tests.patience import MACHINE
from tests.plugins.summary import remark
from vmm.compat.offer import Offer
from vmm.compat.report import parse

__all__ = ["EVERY_KERNEL", "NEWEST", "Running", "conformance", "judge", "lab", "probe_text", "records", "run_lab"]

# Unless asked for all, the machines run the newest kernel.
EVERY_KERNEL = os.environ.get("VMM_TEST_KERNELS") == "all"
NEWEST = "7.2"
_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# What the numbers in these tests were recorded with: the kernels' releases begin like this, and so does what the
# emulators say of themselves. Where something else runs, a number that is not met is a remark.
_KERNELS = {"6.1": "6.1.0-50-", "6.12": "6.12.107+", "7.2": "7.2.13+"}
_EMULATORS = {
    "amx": "Bochs 3.0+dfsg-1",
    "svm": "QEMU emulator version 7.2.22 ",
    "sve": "QEMU emulator version 7.2.22 ",
}
# The TSC of svm is that of the host below.
_NOT_THE_MACHINES = ("tsc",)


def run_lab(machine: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/lab with a time limit; ``words`` are its options and the command."""
    command = [sys.executable, str(_SCRIPTS / "lab"), machine, "--timeout", f"{MACHINE:g}", *words]
    # The first run of a machine builds it.
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=2 * MACHINE, check=False
    )


def lab(machine: str, *options: str, command: Sequence[str] = ()) -> str:
    """Run a command in a machine (default: scripts/lab's own) and return its output; it has to exit with 0 or 1."""
    done = run_lab(machine, *options, *(["--", *command] if command else []))
    assert done.returncode in (0, 1), done.stderr[-4000:]
    return done.stdout


def records(text: str) -> list[dict[str, Any]]:
    """Return the JSON lines of an output."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@cache
def probe_text(machine: str, kernel: str) -> str:
    """Return what `vmm probe --json` prints in a machine with the kernel that it runs now."""
    return lab(machine, "--kernel", kernel, command=["vmm", "probe", "--json"])


@cache
def _emulator(machine: str) -> str:
    """Return the first line that a machine's emulator says of itself."""
    sys.path.insert(0, str(_SCRIPTS))
    try:
        from labs.cache import Cache
        from labs.config import BOCHS_VERSION, TOOL_SUITE
        from labs.hostroot import HostRoot
        from labs.qemu import Sve, Svm
    finally:
        sys.path.remove(str(_SCRIPTS))
    if machine == "amx":
        return f"Bochs {BOCHS_VERSION}"
    kind = {"svm": Svm, "sve": Sve}[machine]
    words = HostRoot(Cache(), TOOL_SUITE, [kind.package]).command(f"usr/bin/{kind.program}")
    return subprocess.run([*words, "--version"], capture_output=True, text=True, timeout=MACHINE).stdout.splitlines()[
        0
    ]


class Running:
    """The machines as they run today; ``record`` is pytest's fixture record_property, for what has moved on."""

    def __init__(self, record: Any) -> None:
        self._record = record

    def offer(self, machine: str, kernel: str) -> Offer:
        """Return what a machine offers with the kernel that runs; how it differs from the recorded probe is told."""
        found = parse(probe_text(machine, kernel).encode(), f"{machine} with {kernel}")
        name = f"{machine}-{kernel}"
        then, different = offer(name), _differences(offer(name), found)
        releases = then.about["kernel"], found.about["kernel"]
        if different or releases[0] != releases[1]:
            shown = f"{', '.join(different[:8])}{' ...' * (len(different) > 8)}" or "none"
            self.tell(
                f"the recorded probe {Path(path(name)).name} is of {releases[0]}, the machine runs {releases[1]}: "
                f"{len(different)} differences: {shown}"
            )
        return found

    def tell(self, sentence: str) -> None:
        """Have a sentence in the summary of the run."""
        remark(self._record, sentence)

    def expect(self, holds: bool, sentence: str, machine: str, *releases: str) -> None:
        """Fail with a sentence unless it holds; tell it where the machine is not the one that it was recorded of."""
        if holds:
            return
        moved = [release for release in releases if not release.startswith(tuple(_KERNELS.values()))]
        if not _emulator(machine).startswith(_EMULATORS[machine]):
            moved.append(_emulator(machine))
        assert moved, sentence
        self.tell(f"{machine} has moved on ({', '.join(moved)}): {sentence}")


def _differences(then: Offer, now: Offer) -> list[str]:
    keys = [key for key in {**then.values, **now.values} if not key.startswith(_NOT_THE_MACHINES)]
    return [key for key in keys if then.find(key) != now.find(key)]


def conformance(machine: str, *options: str) -> list[dict[str, Any]]:
    """Run all clauses in a machine and return the report's records."""
    return records(lab(machine, *options))


def judge(
    report: list[dict[str, Any]], machine: str, kernel: str, passing: int, running: Running
) -> list[dict[str, Any]]:
    """Assert that a run is whole, that nothing fails and enough passes; return the records of the clauses."""
    assert [report[0]["record"], report[-1]["record"]] == ["host", "totals"], "the run was cut short"
    assert report[0]["kernel"].startswith(f"{kernel}.")
    clauses = [record for record in report if record["record"] == "clause"]
    failed = [c for c in clauses if c["verdict"] in ("FAIL", "ERROR", "TIMEOUT")]
    assert not failed, json.dumps(failed, indent=2)
    known = [c for c in clauses if c["verdict"] == "KNOWN"]
    assert all(c["reason"] and c["reference"] for c in known)
    print("KNOWN:", *(f"{c['id']} ({c['reference']})" for c in known), sep="\n  ")
    assert all(c["reason"] for c in clauses if c["verdict"] == "SKIP"), "a skip without its measured reason"
    passed = sum(c["verdict"] == "PASS" for c in clauses)
    assert passed, "nothing passes"
    sentence = f"{passed} clauses pass with {kernel}, {passing} did when that was recorded"
    running.expect(passed >= passing, sentence, machine, report[0]["kernel"])
    return clauses
