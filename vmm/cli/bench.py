# SPDX-License-Identifier: Apache-2.0
"""``vmm bench``: this VMM against a C program that does the same."""

from __future__ import annotations

import json
import sys

import click

from vmm.bench import ROUNDS, BenchResult, BenchUnavailable, run

__all__ = ["command", "table"]

_COLUMNS = ("", "vmm", "{}", "ratio", "difference", "limit", "")


def _row(result: BenchResult) -> tuple[str, ...]:
    def spread(median: float, quartiles: tuple[float, float]) -> str:
        return f"{median:.3f} ({quartiles[0]:.3f}-{quartiles[1]:.3f})"

    limit = ""
    if result.limit is not None:
        limit = f"{result.limit:.2f}x" if result.limited == "ratio" else f"{result.limit:+.3f}"
    verdict = "" if result.limit is None else "ok" if result.within else "TOO SLOW"
    return (
        result.name,
        spread(result.ours, result.ours_quartiles),
        spread(result.baseline, result.baseline_quartiles),
        f"{result.ratio:.3f}x",
        f"{result.difference:+.3f}",
        limit,
        verdict,
    )


def table(results: list[BenchResult], baseline: str = "C") -> str:
    """Return the results as a table for people: microseconds, the quartiles in brackets."""
    rows = [tuple(title.format(baseline) for title in _COLUMNS), *map(_row, results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers, verdict in rows:
        cells = [f"{number:>{width}}" for number, width in zip(numbers, widths[1:-1], strict=True)]
        lines.append("  ".join([f"{name:{widths[0]}}", *cells, verdict]).rstrip())
    return "\n".join(lines)


def _progress(done: int, wanted: int) -> None:
    print(f"\rround {done} of {wanted}", end="" if done < wanted else "\r", file=sys.stderr, flush=True)


def _measured(migration: bool, rounds: int) -> list[BenchResult]:
    progress = _progress if sys.stderr.isatty() else None
    if not migration:
        return run(rounds, progress=progress)
    from vmm.bench import migration as bench  # not above: the others need nothing of vmm.migration

    return bench.compare_migration(min(rounds, bench.ROUNDS), progress)


@click.command("bench")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; see vmm.bench for its fields.")
@click.option("--migration", is_flag=True, help="Migrate a guest of 1 GiB over loopback instead.")
@click.option("--rounds", type=click.IntRange(2), default=ROUNDS, show_default=True, help="At most this many.")
def command(as_json: bool, migration: bool, rounds: int) -> int:
    """Compare this VMM's speed with a C program that does the same.

    The C program is compiled with $CC (else cc or gcc) and drives the same guest, in turns with this one. The
    times are medians, in microseconds per operation, with their quartiles. Exits with 0 if every one is within
    its limit, 1 if not, 2 without a C compiler or a usable KVM.

    With --migration a guest's memory is compared with a plain socket copy of the same bytes, and the time for
    which an idle guest is paused with what the line itself takes.
    """
    try:
        results = _measured(migration, rounds)
    except BenchUnavailable as error:
        print(f"vmm: {error}", file=sys.stderr)
        return 2
    within = all(result.within for result in results)
    if as_json:
        print(json.dumps({"within": within, "results": [result.to_json() for result in results]}, indent=2))
    else:
        baseline = "plain sockets" if migration else "C"
        print(table(results, baseline))
        medians = f"medians (quartiles) of {results[0].rounds} rounds in turns with {baseline}"
        print(f"\nmicroseconds per operation, {medians}")
    return 0 if within else 1
