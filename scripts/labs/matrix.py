# SPDX-License-Identifier: Apache-2.0
"""The command `scripts/matrix`: one conformance run on the host and in every machine, as one table.

Rows are clauses, columns are machines with their kernels, cells are verdicts.  With `--hosts`, the host profiles.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .config import DEFAULT_KERNEL, KERNELS
from .errors import LabError
from .hosts import ALARMS, load_profiles, matching, sample
from .progress import note
from .recording import record
from .session import MACHINES
from .support import support
from .zoo import Outcome, as_json, as_text, failed, records, run_profiles

__all__ = ["Column", "main", "parse_results", "render"]

_REPOSITORY = Path(__file__).resolve().parents[2]
_LAB = _REPOSITORY / "scripts" / "lab"
_HOSTS = Path(__file__).resolve().parent / "hosts.toml"

#: How a verdict is written in a cell; the words themselves make wide columns.
_CELLS = {"PASS": "ok", "SKIP": "-", "KNOWN": "known", "INFO": "info"}


@dataclass
class Column:
    """The results of one run: a verdict for each clause, or the reason why there is none."""

    name: str
    command: Sequence[str]
    verdicts: dict[str, str] = field(default_factory=dict)
    status: int | None = None
    error: str = ""


def parse_results(text: str) -> dict[str, str]:
    """Return the verdict of each clause in the JSON lines of `vmm check`; other lines are passed over."""
    return {str(each["id"]): str(each["verdict"]) for each in records(text) if "id" in each and "verdict" in each}


def render(columns: Sequence[Column]) -> str:
    """Return the table as text: a legend, the clauses, the totals of each column."""
    clauses = list(dict.fromkeys(clause for column in columns for clause in column.verdicts))
    rows = [["clause", *(column.name for column in columns)]]
    for clause in sorted(clauses):
        cells = (column.verdicts.get(clause, "") for column in columns)
        rows.append([clause, *(_CELLS.get(cell, cell) for cell in cells)])
    rows.append(["passed", *(_count(column, ("PASS",)) for column in columns)])
    rows.append(["failed", *(_count(column, ALARMS) for column in columns)])
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(-2, "-" * len(lines[0]))
    lines += [f"{column.name}: {column.error}" for column in columns if column.error]
    return "\n".join(lines) + "\n"


def _count(column: Column, kinds: Iterable[str]) -> str:
    if not column.verdicts:
        return "none"
    return str(sum(verdict in kinds for verdict in column.verdicts.values()))


def _columns(options: argparse.Namespace) -> list[Column]:
    check = ["check", "--format", "json", *options.clauses]
    kernels = list(KERNELS) if options.all_kernels else [DEFAULT_KERNEL]
    columns = []
    if "host" in options.machines:
        columns.append(Column("host", [*_host_command(), *check]))
    for machine in MACHINES:
        if machine not in options.machines:
            continue
        for kernel in kernels:
            words = [sys.executable, str(_LAB), machine, "--kernel", kernel, "--", "vmm", *check]
            columns.append(Column(f"{machine}/{kernel}", words))
    return columns


def _host_command() -> list[str]:
    """Return how to run vmm from the working tree: with the repository's environment when there is one."""
    python = _REPOSITORY / ".venv/bin/python"
    return [str(python) if python.exists() else sys.executable, "-m", "vmm"]


def _run(column: Column) -> None:
    note(f"{column.name}: started")
    environment = {**os.environ, "PYTHONPATH": str(_REPOSITORY)}
    done = subprocess.run(
        column.command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
    )
    column.status = done.returncode
    column.verdicts = parse_results(done.stdout)
    if not column.verdicts:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        column.error = f"no results (status {done.returncode}): {lines[-1]}"
    note(f"{column.name}: {len(column.verdicts)} clauses, status {done.returncode}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/matrix",
        description="Run the clauses on the host and in the emulated machines and print one table: "
        "rows are clauses, columns machines, cells verdicts (ok: passed, -: skipped). Or run host profiles, "
        "and compare the count of each verdict with what was recorded.",
        epilog="The exit status is 1 when a clause failed somewhere, unless a finding of the profile explains it, or "
        "a machine gave no results.",
    )
    parser.add_argument("clauses", nargs="*", metavar="CLAUSE", help="only these clauses (globs)")
    parser.add_argument(
        "--machines",
        type=lambda text: text.split(","),
        default=["host", *MACHINES],
        metavar="LIST",
        help="of host, svm, amx, sve (default all)",
    )
    parser.add_argument("--all-kernels", action="store_true", help=f"every kernel: {', '.join(KERNELS)}")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="machines that run at the same time (2)")
    parser.add_argument(
        "--json", action="store_true", help="print JSON (see scripts/labs/zoo.py for that of --hosts)"
    )
    group = parser.add_argument_group("host profiles")
    group.add_argument("--hosts", nargs="*", metavar="GLOB", help="run these profiles (default all)")
    group.add_argument("--hosts-file", type=Path, default=_HOSTS, metavar="F", help="of this file of the same form")
    group.add_argument("--list-hosts", action="store_true", help="show the profiles and run none")
    group.add_argument("--support", action="store_true", help="print SUPPORT.md: what is recorded of them, as tables")
    group.add_argument("--sample", type=int, metavar="N", help="only N of them, which change from day to day")
    group.add_argument(
        "--day", type=datetime.date.fromisoformat, metavar="DATE", help="the sample of that day (default today's)"
    )
    group.add_argument("--record", action="store_true", help="write the totals into the file")
    options = parser.parse_args(arguments)
    unknown = set(options.machines) - {"host", *MACHINES}
    if unknown:
        parser.error(f"no such machine: {', '.join(sorted(unknown))}")
    if options.hosts is None and (options.sample is not None or options.record):
        parser.error("--sample and --record go with --hosts")
    if options.sample is not None and options.sample < 1:
        parser.error("--sample needs a number of profiles")
    if options.record and options.clauses:
        parser.error("--record is about all clauses; name none")
    return options


def _hosts(options: argparse.Namespace) -> int:
    """Show or run host profiles and return the exit status."""
    profiles = matching(load_profiles(options.hosts_file), options.hosts or ())
    if options.sample is not None:
        today = datetime.datetime.now(datetime.UTC).date()
        profiles = sample(profiles, options.sample, options.day or today)
    if options.support:
        sys.stdout.write(support(profiles))
        return 0
    if options.list_hosts:
        width = max(len(profile.name) for profile in profiles)
        sys.stdout.write("".join(f"{profile.name:{width}}  {profile.why}\n" for profile in profiles))
        return 0

    def keep(outcome: Outcome) -> None:
        if options.record and outcome.state not in ("no results", "not served"):
            record(options.hosts_file, {outcome.profile.name: (outcome.release, outcome.totals)})

    outcomes = run_profiles(profiles, options.clauses, options.jobs, keep)
    sys.stdout.write(as_json(outcomes) if options.json else as_text(outcomes))
    return int(failed(outcomes))


def _as_json(columns: Sequence[Column]) -> str:
    listing: list[Mapping[str, object]] = [asdict(column) for column in columns]
    return json.dumps({"columns": listing}, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `scripts/matrix` and return its exit status."""
    options = _parse(arguments)
    if options.hosts is not None or options.list_hosts or options.support:
        try:
            return _hosts(options)
        except LabError as error:
            print(f"scripts/matrix: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("scripts/matrix: interrupted; the machines were ended", file=sys.stderr)
            return 130
    columns = _columns(options)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(_run, columns))
    sys.stdout.write(_as_json(columns) if options.json else render(columns))
    bad = any(verdict in ALARMS for column in columns for verdict in column.verdicts.values())
    # A host without a usable KVM is not a failure: that is what the machines are for.
    return int(bad or any(column.error for column in columns if column.name != "host"))
