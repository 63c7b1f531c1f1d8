# SPDX-License-Identifier: Apache-2.0
"""The commands for faults at random: ``python -m tests.kernels draw --help``, ``... weigh --help``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from labs.config import DEFAULT_KERNEL
from labs.errors import LabError

from tests.kernels.built import build, find
from tests.kernels.draw import FOLDER, draw, load_targets, write
from tests.kernels.draw_build import compilable
from tests.kernels.draw_places import OPERATORS
from tests.kernels.draw_run import OUTCOMES, Weighed, weigh
from tests.kernels.table import MACHINES, choose, load
from vmm.conformance.registry import all_clauses

__all__ = ["COMMANDS", "main"]

#: what is drawn from unless a machine is named
_ARCHITECTURE = "x86"
_TABLE = "drawn.toml"


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands and return the exit status."""
    return COMMANDS[arguments[0]](arguments[1:])


def _lines(table: dict[str, str]) -> str:
    return "\n".join(f"  {name:10} {what}" for name, what in table.items())


def _draw(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels draw",
        description="Draw faults from the kernel's source, leave out what does not compile, and write a table that\n"
        f"build, run and weigh take.\n\n{_lines(OPERATORS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, required=True, help="the same seed and source make the same table")
    parser.add_argument("--count", type=int, default=60, metavar="N", help="how many are drawn (default 60)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the table's folder")
    parser.add_argument("--machine", choices=MACHINES, help="only what runs in this machine")
    parser.add_argument(
        "--kernel", default=DEFAULT_KERNEL, help=f"as scripts/lab takes it (default {DEFAULT_KERNEL})"
    )
    options = parser.parse_args(arguments)
    architecture = MACHINES.get(options.machine, _ARCHITECTURE)
    targets = [t for t in load_targets(architecture) if options.machine is None or options.machine in t.machines]
    source = find(architecture, options.kernel)
    there = {target.file for target in targets if (source.folder / target.file).is_file()}
    drawn = draw({file: (source.folder / file).read_text() for file in there}, targets, options.seed, options.count)
    if not drawn:
        raise LabError(f"{source.release} has none of the functions of {FOLDER.name}/{architecture}.toml.")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / _TABLE
    path.write_text(write(drawn, f"seed-{options.seed}", ["*"]))
    faults, refused = compilable(source, load(options.output))
    left = {fault.name for fault in faults}
    names = [fault.name for fault in load(options.output)]
    for name, reason in refused.items():
        print(f"{name}: left out: {reason}", file=sys.stderr)
    keep = [fault for fault, name in zip(drawn, names, strict=True) if name in left]
    path.write_text(write(keep, f"seed-{options.seed}", ["*"]))
    kinds = Counter(fault.operator for fault in keep)
    print(f"{len(drawn)} drawn, {len(refused)} do not compile, {len(keep)} in {path}: {_counts(kinds)}")
    return 0


def _weigh(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels weigh",
        description="Turn drawn faults on, one after the other: which have an effect that a plain program sees, and\n"
        "which of those does a clause notice? Exit status 1 if one with an effect is not noticed.\n\n"
        f"{_lines(OUTCOMES)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("faults", nargs="*", metavar="GLOB", help="names of faults (default all)")
    parser.add_argument("--table", type=Path, required=True, metavar="DIR", help="what draw has written")
    parser.add_argument("--machine", choices=MACHINES, required=True)
    parser.add_argument(
        "--kernel", default=DEFAULT_KERNEL, help=f"as scripts/lab takes it (default {DEFAULT_KERNEL})"
    )
    parser.add_argument(
        "--sections", nargs="+", default=[], metavar="NAME", help="only these sections of the plain program"
    )
    parser.add_argument(
        "--known",
        type=Path,
        metavar="FILE",
        help="a JSON report of this machine without a fault: saves time",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON lines to a file too")
    options = parser.parse_intermixed_args(arguments)
    try:
        table = load(options.table)
    except (OSError, ValueError) as error:
        parser.error(f"--table {options.table}: {error}")
    faults = [fault for fault in choose(table, options.faults) if options.machine in fault.machines]
    if not faults:
        parser.error(f"no fault of the table is for {options.machine} and has the name {' '.join(options.faults)}")
    built = build(MACHINES[options.machine], options.kernel, table)
    if built.unplaced:
        raise LabError(f"The table is not of this kernel: {next(iter(built.unplaced.values()))}; draw one from it.")
    without = _without(options.known, MACHINES[options.machine])
    counts: Counter[str] = Counter()
    with open(options.output or os.devnull, "w") as report:
        for one in weigh(options.machine, built.options, faults, without, options.sections):
            counts[one.outcome] += 1
            print(json.dumps(one.to_json()), file=report, flush=True)
            print(_text(one), flush=True)
    visible = sum(counts[name] for name in ("noticed", "disturbed", "unnoticed"))
    print(f"{counts.total()} faults: {_counts(counts)}; of {visible} with an effect {counts['noticed']} are noticed")
    return int(counts["noticed"] < visible)


def _without(report: Path | None, architecture: str) -> dict[str, str]:
    """Return the clauses and their verdicts without a fault, where a report has them; the quickest are first."""
    wanted = {clause.id: "" for clause in all_clauses(architecture) if not clause.info}
    if report is None:
        return wanted
    lines = [json.loads(line) for line in report.read_text().splitlines() if line.startswith("{")]
    clauses = [line for line in lines if line["record"] == "clause" and line["id"] in wanted]
    return {line["id"]: line["verdict"] for line in sorted(clauses, key=lambda line: float(line["seconds"]))}


def _text(one: Weighed) -> str:
    line = f"{one.outcome:10} {one.machine} {one.fault.name}: {one.fault.does}"
    if one.outcome == "noticed":
        return f"{line}\n           {', '.join(list(one.by)[:4])}; {len(one.by)} clauses, {one.effects} effects"
    return "\n           ".join([line, *(f"{key}: {value}" for key, value in list(one.differences.items())[:3])])


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"


COMMANDS = {"draw": _draw, "weigh": _weigh}
