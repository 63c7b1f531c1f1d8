# SPDX-License-Identifier: Apache-2.0
"""Weighs drawn faults: which have an effect that a plain program sees, and which of those a clause notices.

Two judges that know nothing of each other look at each fault in one boot of a machine: the program of
``tests.kernels.plain``, which compares what it sees with what it saw without a fault, and `vmm check`, a few clauses
at a time until one FAILs. Clauses are not asked about what the plain program has not seen: that would take most of
the time, and could only make the part that they notice look greater.
"""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labs.errors import LabError

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
#: How many clauses are asked at a time; a start of vmm takes as long as some ten of them.
_FEW = 50
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
    effects: int = 0  # how many in the first section that has any
    differences: Mapping[str, str] = field(default_factory=dict)  # some of them

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


def script(numbers: Iterable[int], ids: Sequence[str], sections: Sequence[str] = (), *, first: bool = False) -> str:
    """Return what the machine's shell runs: the plain program without a fault, then both judges with each.

    If this is the first such script, the clauses run without a fault too.
    """
    plain = "python3 /in/plain.pyz"
    lines = [
        "#!/bin/sh",
        f"echo 0 > {_PARAMETER} || exit 3",
        # A second time, for what is never the same.
        *(f"{plain} /tmp/{name} {shlex.join(sections)}".rstrip() for name in ("first", "second")),
    ]
    if first:
        lines += [_record("begin", number=0), f"{_CHECK} {shlex.join(ids)}", _record("end")]
    few = [ids[start : start + _FEW] for start in range(0, len(ids), _FEW)]
    # The status is 1 if a clause FAILs, and then there is nothing more to ask.
    checks = [f"{{ {_CHECK} {shlex.join(some)}; [ $? = 1 ]; }}" for some in few]
    for number in numbers:
        lines += [
            _record("begin", number=number),
            f"echo {number} > {_PARAMETER} || exit 3",
            f"if ! {plain} --against /tmp/first /tmp/second; then",
            " ||\n".join(checks),
            "fi",
            f"echo 0 > {_PARAMETER}",
            _record("end"),
        ]
    return "\n".join([*lines, "exit 0", ""])


def _record(kind: str, **more: object) -> str:
    return f"echo {shlex.quote(json.dumps({'record': kind, **more}))}"


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
        elif record["record"] == "end":
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
    without: Verdicts,
    sections: Sequence[str] = (),
) -> Iterator[Weighed]:
    """Yield the outcome of each fault in a machine, whose ``options`` of scripts/lab give it the faulty kernel.

    ``without`` are the clauses that may notice, in the order in which to ask them, with their verdicts without a
    fault; if some have none yet, all get one in the first boot.
    """
    known, left = dict(without), list(faults)
    while left:
        now = left[:_MOST]
        first = not all(known.values())
        # What does not run here without a fault need not be tried with one.
        asked = [name for name, verdict in known.items() if first or verdict in _RUNS]
        files = {
            "faults": script([fault.number for fault in now], asked, sections, first=first).encode(),
            "plain.pyz": packed(),
        }
        before = len(left)
        for found in seen(start(machine, options, files, 3 * SILENCE * (2 + len(now)))):
            if found.number == 0:
                known |= found.verdicts
                continue
            (fault,) = (fault for fault in now if fault.number == found.number)
            left.remove(fault)
            yield verdict(fault, machine, known, found)
        if len(left) == before:
            raise LabError(f"The machine {machine} does not come as far as its first fault; its console says why.")
