# SPDX-License-Identifier: Apache-2.0
"""Faulty kernels: ``python -m tests.kernels --help``."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from labs.config import DEFAULT_KERNEL
from labs.errors import LabError

from tests.kernels import draw_cli
from tests.kernels.built import Built, build, place, those_of
from tests.kernels.run import Outcome, run
from tests.kernels.table import FOLDER, MACHINES, Fault, choose, load
from vmm.conformance.registry import all_clauses

_SHOWN = 4
_DESCRIPTION = """\
Build KVM for the kernel of an emulated machine with the faults of the table in it, turn one after the other on there,
and see whether the clauses that should notice do.

  list    the faults, and which clauses are to notice each
  place   whether each fault has its place in the kernel's source
  build   build for --machine (default amx) and print where: the folder of the modules for
          `scripts/lab NAME --modules DIR --append kvm.fault=N`, or for sve, where KVM is no module, the image for
          `scripts/lab sve --kernel PATH --append kvm.fault=N`
  run     all of it; exit status 1 if a fault is not noticed
  draw    faults at random, into a table: `draw --help`
  weigh   which of those have an effect, and which are noticed: `weigh --help`
"""


def _ids(fault: Fault, override: Sequence[str], machine: str) -> list[str]:
    """Return the clauses that are to notice a fault in a machine."""
    ids = [clause.id for clause in all_clauses(MACHINES[machine]) if not clause.info]
    globs = override or fault.clauses
    return [name for name in ids if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]


def _list(faults: Sequence[Fault]) -> int:
    for fault in faults:
        print(f"{fault.number:3} {fault.name} ({', '.join(fault.machines)})\n    {fault.does}")
        print(f"    {', '.join(fault.clauses)}: {len(_ids(fault, (), fault.machines[0]))} clauses")
    return 0


def _place(kernel: str, faults: Sequence[Fault]) -> int:
    missing = 0
    for architecture in dict.fromkeys(MACHINES.values()):
        found = those_of(architecture, faults)
        if not found:
            continue
        release, unplaced = place(architecture, kernel, found)
        missing += len(unplaced)
        for name, reason in unplaced.items():
            print(f"{name}: {reason}")
        print(f"{len(found) - len(unplaced)} of {len(found)} faults have a place in {release} of {architecture}")
    return int(missing > 0)


def _build(machine: str, kernel: str, table: Sequence[Fault]) -> int:
    built = build(MACHINES[machine], kernel, table)
    for name, reason in built.unplaced.items():
        print(f"{name}: left out: {reason}", file=sys.stderr)
    print(built.path)
    return 0


def _run(options: argparse.Namespace, table: Sequence[Fault], faults: Sequence[Fault]) -> int:
    counts: Counter[str] = Counter()
    with open(options.output or os.devnull, "w") as report:
        for outcome in _outcomes(options, table, faults):
            counts[outcome.outcome] += 1
            print(json.dumps(outcome.to_json()), file=report, flush=True)
            print(json.dumps(outcome.to_json()) if options.json else _text(outcome), flush=True)
        totals = {"record": "totals", "total": counts.total(), **counts}
        print(json.dumps(totals), file=report)
    print(json.dumps(totals) if options.json else f"{counts.total()} faults: {_sum(counts)}")
    return int(counts["unnoticed"] + counts["disturbed"] > 0)


def _outcomes(options: argparse.Namespace, table: Sequence[Fault], faults: Sequence[Fault]) -> Iterator[Outcome]:
    """Yield the outcome of each fault in each machine."""
    builds: dict[str, Built] = {}
    for machine in [options.machine] if options.machine else MACHINES:
        there = [fault for fault in faults if machine in fault.machines]
        if not there:
            continue
        architecture = MACHINES[machine]
        if architecture not in builds:
            # All are built, whichever are to run: one build serves every run.
            builds[architecture] = build(architecture, options.kernel, table)
        unplaced = builds[architecture].unplaced
        for fault in there:
            if fault.name in unplaced:
                yield Outcome(fault, machine, "cannot run", reason=unplaced[fault.name])
        placed = [fault for fault in there if fault.name not in unplaced]
        clauses = {fault.number: _ids(fault, options.clauses, machine) for fault in placed}
        yield from run(machine, builds[architecture].options, placed, clauses)


def _text(outcome: Outcome) -> str:
    """Return an outcome for people: the first few clauses that noticed, or what was to notice."""
    by = [f"{name} ({verdict})" if verdict != "FAIL" else name for name, verdict in outcome.by.items()]
    more = f" and {len(by) - _SHOWN} more" if len(by) > _SHOWN else ""
    detail = ", ".join(by[:_SHOWN]) + more or outcome.reason
    line = f"{outcome.outcome:11} {outcome.machine} {outcome.fault.name}{': ' * bool(detail)}{detail}"
    if outcome.outcome not in ("unnoticed", "disturbed"):
        return line
    return f"{line}\n            {outcome.fault.does}; to be noticed by {', '.join(outcome.fault.clauses)}"


def _sum(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()) or "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        return draw_cli.main(words) if words and words[0] in draw_cli.COMMANDS else _main(words)
    except LabError as error:
        print(f"tests.kernels: {error}", file=sys.stderr)
        return 2


def _main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("list", "place", "build", "run"), help="or draw, weigh")
    parser.add_argument("faults", nargs="*", metavar="GLOB", help="names of faults (default all)")
    parser.add_argument("--machine", choices=MACHINES, help="only in this machine (default: where each can be seen)")
    parser.add_argument(
        "--kernel", default=DEFAULT_KERNEL, help=f"as scripts/lab takes it (default {DEFAULT_KERNEL})"
    )
    parser.add_argument(
        "--table", type=Path, default=FOLDER, metavar="DIR", help="faults of one's own instead of the project's"
    )
    parser.add_argument(
        "--clauses", action="append", default=[], metavar="GLOB", help="these clauses instead of the table's"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON lines to a file too")
    options = parser.parse_intermixed_args(arguments)
    try:
        table = load(options.table)
    except (OSError, ValueError) as error:
        parser.error(f"--table {options.table}: {error}")
    faults = choose(table, options.faults)
    if not faults:
        parser.error(f"no fault has the name {' '.join(options.faults)}")
    if options.what == "list":
        return _list(faults)
    if options.what == "place":
        return _place(options.kernel, faults)
    if options.what == "build":
        return _build(options.machine or "amx", options.kernel, table)
    return _run(options, table, faults)


if __name__ == "__main__":
    sys.exit(main())
