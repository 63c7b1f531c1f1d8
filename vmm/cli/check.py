# SPDX-License-Identifier: Apache-2.0
"""``vmm check``: run the clauses and report."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

import click

from vmm.cli.options import Count, Seconds
from vmm.conformance.context import Options
from vmm.conformance.model import ClauseResult, Totals
from vmm.conformance.registry import matching
from vmm.conformance.runner import Job, Runner
from vmm.report import FORMATS, Reporter, reporter

__all__ = ["command"]


@contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(open(path, "w", encoding="utf-8"))
        except OSError as error:
            raise click.UsageError(f"{path} cannot be written: {error.strerror}") from error
        yield stream


class _Shard(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """K/N: every N-th clause from the K-th on."""

    name = "K/N"

    def convert(self, value: str | tuple[int, int], *_: object) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        part, _slash, whole = value.partition("/")
        if part.isdecimal() and whole.isdecimal() and 1 <= int(part) <= int(whole):
            return int(part), int(whole)
        raise click.UsageError(f"--shard {value} is not K/N with K from 1 to N, such as 2/3")


def _list(globs: tuple[str, ...], style: str) -> None:
    from vmm.conformance.registry import all_clauses, select

    for found in select(globs, all_clauses()):
        if style == "json":
            fields = {"id": found.id, "statement": found.statement, "source": found.source,
                      "needs": [str(need) for need in found.needs], "info": found.info,
                      "dangerous": found.dangerous}  # fmt: skip
            print(json.dumps(fields))
        else:
            needs = f" [needs {', '.join(map(str, found.needs))}]" if found.needs else ""
            print(f"{found.id}\n    {found.statement}{needs}\n    {found.source}")


def _run(runner: Runner, clauses: list[str], options: Options, report: Reporter) -> Totals:
    """Run the clauses; results that come early wait for their turn."""
    totals = Totals()
    started = time.perf_counter()
    report.begin(runner.host, runner.host_lines, clauses)
    early: dict[int, ClauseResult] = {}
    turn = 0
    for number, result in runner.run(Job.of(clause, options) for clause in clauses):
        if result is None:
            report.started(clauses[number])
            continue
        early[number] = result
        while turn in early:
            ended = early.pop(turn)
            totals.add(ended)
            report.result(ended)
            turn += 1
    report.finish(totals, time.perf_counter() - started)
    return totals


def _complete(context: click.Context, argument: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids of clauses that begin like what was typed; of areas, as patterns, as long as it has no dot."""
    from vmm.conformance.registry import all_clauses

    clauses = all_clauses()
    words = [clause.id for clause in clauses] if "." in incomplete else [f"{clause.area}.*" for clause in clauses]
    return [word for word in dict.fromkeys(words) if word.startswith(incomplete)]


@click.command("check")
@click.argument("globs", nargs=-1, metavar="[GLOB]...", shell_complete=_complete)
@click.option("--list", "only_list", is_flag=True, help="Show the clauses and run none.")
@click.option("--jobs", "-j", type=Count(1 << 16), help="Clauses at once (default: one per CPU).")
@click.option("--format", "style", type=click.Choice(FORMATS), default="text", show_default=True, help="Report.")
@click.option("--output", "-o", metavar="FILE", help="Write the report to this file.")
@click.option("--shard", type=_Shard(), metavar="K/N", default="1/1", help="Only every N-th clause, from the K-th.")
@click.option("--exhaustive", is_flag=True, help="Run all of what is otherwise sampled.")
@click.option("--dangerous", is_flag=True, help="Also run what could harm an unfixed host kernel.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the samples.")
@click.option(
    "--time-scale",
    type=Seconds(0.1),
    default=1.0,
    show_default=True,
    help="Multiply all time limits.",
)
@click.option("--coverage", is_flag=True, help="Show which fields of a vCPU's state were judged, and which not.")
@click.option("--kselftest", is_flag=True, help="Exit as kselftests do: 0 pass, 1 fail, 3 xpass, 4 skip.")
def command(
    globs: tuple[str, ...], only_list: bool, jobs: int | None, style: str, output: str | None,
    shard: tuple[int, int], exhaustive: bool, dangerous: bool, seed: int, time_scale: float,
    coverage: bool, kselftest: bool,
) -> int:  # fmt: skip
    """Check this KVM clause by clause; GLOB picks clauses by their ids, such as 'xsave.*'.

    Exits with 0 if nothing failed, 1 if something did, 2 for wrong usage or without a usable KVM, and 4 if
    nothing could run.
    """
    try:
        if only_list:
            _list(globs, style)
            return 0
        options = Options(exhaustive, dangerous, time_scale, seed)
        return _check(globs, shard, jobs, style, output, coverage, kselftest, options)
    except LookupError as error:
        raise click.UsageError(str(error.args[0])) from error


def _check(
    globs: tuple[str, ...], shard: tuple[int, int], jobs: int | None, style: str, output: str | None,
    coverage: bool, kselftest: bool, options: Options,
) -> int:  # fmt: skip
    part, whole = shard
    with Runner(jobs=jobs or os.cpu_count() or 1, pristine=True) as runner:
        # Only the server imports the clauses: this process needs just their names.
        clauses = matching(globs, runner.clauses)[part - 1 :: whole]
        with _output(output) as stream:
            totals = _run(runner, clauses, options, reporter(style, stream))
    if coverage:
        from vmm.report.coverage import lines

        print(*lines(totals), sep="\n", file=sys.stderr if style != "text" and output is None else sys.stdout)
    if kselftest:
        from vmm.report.ktap import kselftest_exit

        return kselftest_exit(totals)
    return totals.exit_status
