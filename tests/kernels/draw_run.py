# SPDX-License-Identifier: Apache-2.0
"""Weighs drawn faults: which have an effect that a plain program sees, and which of those a clause notices.

Two judges that know nothing of each other look at each fault in one boot of a machine: the program of
``tests.kernels.plain``, which compares what it sees with what it saw without a fault, and `vmm check`.
"""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.kernels.run import SILENCE, Verdicts, start
from tests.kernels.table import Fault

__all__ = ["OUTCOMES", "Weighed", "packed", "script", "seen", "verdict", "weigh"]

OUTCOMES = {
    "noticed": "a clause FAILs that does not without the fault",
    "disturbed": "a clause ends as TIMEOUT or ERROR, none FAILs, and the plain program sees an effect",
    "unnoticed": "the plain program sees an effect, and no clause does",
    "no effect": "nobody sees anything",
    "ended": "the machine ended or said nothing any more",
}
_MOST = 25
_PARAMETER = "/sys/module/kvm/parameters/fault"
_CHECK = "vmm check --format json --time-scale 20 --jobs 1"
_PLAIN = Path(__file__).parent / "plain"
_RUNS = "PASS", "KNOWN"


@dataclass
class Weighed:
    """What became of a drawn fault."""

    fault: Fault
    machine: str
    outcome: str
    by: Verdicts = field(default_factory=dict)
    effects: int = 0
    differences: Mapping[str, str] = field(default_factory=dict)  # some of what the plain program saw

    def to_json(self) -> dict[str, object]:
        """Return the outcome as a record."""
        return {
            "record": "drawn",
            "fault": self.fault.name,
            "does": self.fault.does,
            "machine": self.machine,
            "outcome": self.outcome,
            "by": self.by,
            "effects": self.effects,
            "differences": dict(self.differences),
        }


@dataclass
class Seen:
    """What both judges saw of the fault with a number."""

    number: int
    verdicts: Verdicts = field(default_factory=dict)
    effects: int = 0
    differences: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False


def packed() -> bytes:
    """Return the plain program as one file that Python runs."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for package in ("tests", "tests/kernels"):
            archive.writestr(f"{package}/__init__.py", "")
        for path in sorted(_PLAIN.glob("*.py")):
            archive.write(path, f"tests/kernels/plain/{path.name}")
        main = "import sys\nfrom tests.kernels.plain.__main__ import main\nsys.exit(main(sys.argv[1:]))\n"
        archive.writestr("__main__.py", main)
    return data.getvalue()


def script(numbers: Iterable[int], ids: Sequence[str], sections: Sequence[str] = ()) -> str:
    """Return what the machine's shell runs: both judges without a fault, then with one after the other."""
    plain, check = "python3 /in/plain.pyz", f"{_CHECK} {shlex.join(ids)}"
    lines = ["#!/bin/sh"]
    for number in [0, *numbers]:
        lines += [
            f"echo {shlex.quote(json.dumps({'record': 'begin', 'number': number}))}",
            f"echo {number} > {_PARAMETER} || exit 3",
        ]
        if number == 0:
            # A second time, for what is never the same.
            lines += [f"{plain} /tmp/{name} {shlex.join(sections)}".rstrip() for name in ("first", "second")]
        else:
            lines.append(f"{plain} --against /tmp/first /tmp/second")
        lines += [check, f"echo 0 > {_PARAMETER}"]
    return "\n".join([*lines, "exit 0", ""])


def seen(lines: Iterable[str]) -> Iterator[Seen]:
    """Yield what was seen of one fault after the other."""
    current: Seen | None = None
    for line in lines:
        if not line.startswith("{"):
            continue
        record = json.loads(line)
        if record["record"] == "begin":
            if current is not None:
                yield current
            current = Seen(record["number"])
        elif current is None:
            continue
        elif record["record"] == "plain":
            current.effects, current.differences = record["count"], record["differences"]
        elif record["record"] == "clause":
            current.verdicts[record["id"]] = record["verdict"]
        elif record["record"] == "totals":
            current.whole = True
            yield current
            current = None
    if current is not None:
        yield current


def verdict(fault: Fault, machine: str, without: Verdicts, found: Seen) -> Weighed:
    """Return what both judges say of a fault."""
    worse = {
        name: verdict
        for name, verdict in found.verdicts.items()
        if without.get(name) in _RUNS and verdict in ("FAIL", "TIMEOUT", "ERROR")
    }
    if "FAIL" in worse.values():
        outcome = "noticed"
    elif not found.whole:
        outcome = "ended"
    elif not found.effects:
        outcome = "no effect"
    else:
        outcome = "disturbed" if worse else "unnoticed"
    return Weighed(fault, machine, outcome, worse, found.effects, found.differences)


def weigh(
    machine: str,
    options: Sequence[str],
    faults: Sequence[Fault],
    ids: Sequence[str],
    sections: Sequence[str] = (),
) -> Iterator[Weighed]:
    """Yield the outcome of each fault in a machine, whose ``options`` of scripts/lab give it the faulty kernel.

    ``ids`` are the clauses that may notice.
    """
    left = list(faults)
    without: Verdicts = {}
    while left:
        now = left[:_MOST]
        # What does not run here without a fault need not be tried with one.
        asked = [name for name in ids if without.get(name, "PASS") in _RUNS]
        files = {
            "faults": script([fault.number for fault in now], asked, sections).encode(),
            "plain.pyz": packed(),
        }
        before = len(left)
        for found in seen(start(machine, options, files, 3 * SILENCE * (2 + len(now)))):
            if found.number == 0:
                without |= found.verdicts
                continue
            (fault,) = (fault for fault in now if fault.number == found.number)
            left.remove(fault)
            yield verdict(fault, machine, without, found)
        if len(left) == before:
            raise RuntimeError(f"The machine {machine} does not come as far as its first fault.")
