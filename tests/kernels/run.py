# SPDX-License-Identifier: Apache-2.0
"""Runs clauses in a machine whose KVM has one fault after the other, and judges whether they notice.

Every fault of one boot is turned on for one `vmm check` and off again; what acts when KVM is loaded has a boot of its
own. A fault that ends the machine, or leaves it without a word for too long, is the last of its boot; the rest begins
in another.
"""

from __future__ import annotations

import json
import select
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.kernels.table import Fault

__all__ = ["SILENCE", "Boot", "Outcome", "Verdicts", "boots", "judge", "reports", "run", "script", "start"]

#: the verdicts of a run: clause -> verdict
Verdicts = dict[str, str]

#: for how many seconds a machine may say nothing
SILENCE = 240.0
_MOST = 20
_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
_CHECK = "vmm check --format json --time-scale 20 --jobs 1"
_PARAMETER = "/sys/module/kvm/parameters/fault"
#: verdicts that tell of a broken kernel, but not what is broken
_DISTURBED = ("TIMEOUT", "ERROR")


@dataclass
class Outcome:
    """What became of a fault in a machine: noticed, disturbed, unnoticed or cannot run."""

    fault: Fault
    machine: str
    outcome: str
    by: Verdicts = field(default_factory=dict)  # the clauses whose verdict is a worse one, with it
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the outcome as a record."""
        return {
            "record": "fault",
            "fault": self.fault.name,
            "does": self.fault.does,
            "machine": self.machine,
            "outcome": self.outcome,
            "by": self.by,
            **({"reason": self.reason} if self.reason else {}),
        }


@dataclass(frozen=True)
class Boot:
    """The faults that are tried in one boot of a machine, with the clauses of each."""

    faults: Sequence[Fault]
    clauses: Mapping[int, Sequence[str]]  # by the fault's number; 0: those to run without a fault
    parameter: int = 0  # at load

    @property
    def order(self) -> list[int]:
        """The faults' numbers in the order in which they are turned on."""
        return [*([0] if self.clauses.get(0) else []), *(fault.number for fault in self.faults)]


def boots(faults: Sequence[Fault], clauses: Mapping[int, Sequence[str]], known: Verdicts) -> Iterator[Boot]:
    """Yield the boots for faults; clauses whose verdict without a fault is not `known` run first."""
    at_load = [fault for fault in faults if fault.at_load]
    others = [fault for fault in faults if not fault.at_load]
    groups = [others[start : start + _MOST] for start in range(0, len(others), _MOST)]
    for group in groups:
        yield Boot(group, {**_of(group, clauses), 0: _unknown(group, clauses, known)})
    for fault in at_load:
        unknown = _unknown([fault], clauses, known)
        if unknown:
            yield Boot([], {0: unknown})
        yield Boot([fault], _of([fault], clauses), fault.number)


def _of(faults: Sequence[Fault], clauses: Mapping[int, Sequence[str]]) -> dict[int, Sequence[str]]:
    return {fault.number: clauses[fault.number] for fault in faults}


def _unknown(faults: Sequence[Fault], clauses: Mapping[int, Sequence[str]], known: Verdicts) -> list[str]:
    wanted = dict.fromkeys(clause for fault in faults for clause in clauses[fault.number])
    return [clause for clause in wanted if clause not in known]


def script(boot: Boot) -> str:
    """Return what the machine's shell runs: for each fault a line that names it, and the report of its clauses."""
    lines = ["#!/bin/sh"]
    for number in boot.order:
        marker = json.dumps({"record": "begin", "number": number})
        lines.append(f"echo {shlex.quote(marker)}")
        if not boot.parameter:
            lines.append(f"echo {number} > {_PARAMETER} || exit 3")
        lines.append(f"{_CHECK} {shlex.join(boot.clauses[number])}")
        if not boot.parameter:
            lines.append(f"echo 0 > {_PARAMETER}")
    return "\n".join([*lines, "exit 0", ""])


def reports(lines: Iterable[str]) -> Iterator[tuple[int, Verdicts, bool]]:
    """Yield each number with its verdicts as soon as its report ends, and whether it is whole."""
    number: int | None = None
    verdicts: Verdicts = {}
    for line in lines:
        if not line.startswith("{"):
            continue
        record = json.loads(line)
        if record["record"] == "begin":
            number, verdicts = record["number"], {}
        elif record["record"] == "clause":
            verdicts[record["id"]] = record["verdict"]
        elif record["record"] == "totals" and number is not None:
            yield number, verdicts, True
            number = None
    if number is not None:
        yield number, verdicts, False


def judge(fault: Fault, machine: str, without: Verdicts, verdicts: Verdicts, *, ended: bool = False) -> Outcome:
    """Return what the verdicts of a fault's clauses say, compared with those without it.

    Noticed is a FAIL of a clause that does not FAIL without the fault; a clause that has passed and ends as TIMEOUT
    or ERROR is disturbed, which shows that something is wrong but not what.
    """
    worse = {
        clause: verdict
        for clause, verdict in verdicts.items()
        if verdict != without.get(clause) and verdict in ("FAIL", *_DISTURBED)
    }
    if "FAIL" in worse.values():
        return Outcome(fault, machine, "noticed", worse)
    if ended:
        return Outcome(fault, machine, "cannot run", worse, "the machine ended, or said nothing any more")
    if worse:
        return Outcome(fault, machine, "disturbed", worse)
    if not any(without.get(clause) in ("PASS", "KNOWN") for clause in verdicts):
        return Outcome(fault, machine, "cannot run", reason="none of its clauses passes here without the fault")
    return Outcome(fault, machine, "unnoticed")


def run(
    machine: str, options: Sequence[str], faults: Sequence[Fault], clauses: Mapping[int, Sequence[str]]
) -> Iterator[Outcome]:
    """Yield the outcome of each fault in a machine, whose ``options`` of scripts/lab give it the faulty kernel.

    ``clauses`` are the ids for each fault's number.
    """
    without: Verdicts = {}
    for fault in faults:
        if not clauses[fault.number]:
            yield Outcome(fault, machine, "cannot run", reason="no clause has one of its names")
    left = [fault for fault in faults if clauses[fault.number]]
    while left:
        boot = next(boots(left, clauses, without))
        before = len(left) + len(without)
        for number, verdicts, whole in reports(_start(machine, options, boot)):
            if number == 0:
                without |= verdicts if whole else {}
                continue
            (fault,) = (fault for fault in boot.faults if fault.number == number)
            left.remove(fault)
            yield judge(fault, machine, without, verdicts, ended=not whole)
        if len(left) + len(without) == before:
            for fault in left:
                yield Outcome(fault, machine, "cannot run", reason="the machine does not run its clauses at all")
            return


def _start(machine: str, options: Sequence[str], boot: Boot) -> Iterator[str]:
    """Boot a machine with the faulty kernel, run a boot's script and yield the lines that it prints."""
    words = ("--append", f"kvm.fault={boot.parameter}", "--fresh") if boot.parameter else ()
    files = {"faults": script(boot).encode()}
    return start(machine, [*options, *words], files, SILENCE * (2 + len(boot.order)))


def start(machine: str, options: Sequence[str], files: Mapping[str, bytes], longest: float) -> Iterator[str]:
    """Boot a machine with the faulty kernel and files, run that which is `faults`, and yield the lines it prints."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        command = [
            *(sys.executable, str(_SCRIPTS / "lab"), machine, *options),
            *("--in", name, "--pool", "faults", "--timeout", f"{longest:g}"),
            *("--", "sh", "/in/faults"),
        ]
        lab = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert lab.stdout is not None
        try:
            yield from _lines(lab)
        finally:
            lab.terminate()
            lab.wait()


def _lines(lab: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield the whole lines of a process until it has ended, or has said nothing for too long."""
    assert lab.stdout is not None
    rest = b""
    while select.select([lab.stdout], [], [], SILENCE)[0]:
        data = lab.stdout.read1(1 << 16)  # type: ignore[attr-defined]
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
