# SPDX-License-Identifier: Apache-2.0
"""Comparisons of hosts as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmm.compat.fleet import Fleet
from vmm.compat.offer import Finding, Offer, Verdict
from vmm.compat.report import Judged, Report

__all__ = ["fleet_lines", "host_line", "report_lines"]

_SHORT = {Verdict.OK: "ok", Verdict.MASK: "mask", Verdict.UNKNOWN: "?", Verdict.NO: "no"}
_WIDTH = 110
_LABELS = 7  # of hosts of one kind; JSON has them all
_NAMES = 12  # of what blocks a pair; only the report of the pair has them all


def host_line(offer: Offer) -> str:
    """Return one line about a host: its probe's name, kernel, back end and CPU."""
    about = offer.about
    return f"{about['label']}: Linux {about['kernel']}, {about['backend']}, {about['model']} ({about['vendor']})"


def report_lines(report: Report) -> Iterator[str]:
    """Yield the verdict, what is ok in one line, and each finding with both values and what to do."""
    source, destination = report.source.about["label"], report.destination.about["label"]
    yield f"{source} -> {destination}: {report.verdict.value}"
    fine = [dimension.name for dimension in report.dimensions if dimension.verdict is Verdict.OK]
    if fine:
        yield from _wrapped("  ok: ", fine, ", ")
    for dimension in report.dimensions:
        if dimension.verdict is not Verdict.OK:
            yield f"  {dimension.name}: {dimension.verdict.value}"
            yield from _findings(dimension)


def _findings(dimension: Judged) -> Iterator[str]:
    for finding in sorted(dimension.findings, key=lambda found: -found.verdict.rank):
        yield f"    {_finding(finding, dimension.verdict)}"
        yield from _wrapped("      to do: ", [mask.action for mask in finding.masks], "; ")


def _finding(finding: Finding, worst: Verdict) -> str:
    mark = "" if finding.verdict is worst else f" [{finding.verdict.value}]"
    values = f": {finding.source}, there {finding.destination}" if finding.source or finding.destination else ""
    note = f" ({finding.note})" if finding.note else ""
    return f"{finding.name}{values}{mark}{note}"


def fleet_lines(fleet: Fleet) -> Iterator[str]:
    """Yield the kinds of hosts, the matrix (rows send, columns receive), what each costs, and what blocks."""
    for number, (offer, hosts) in enumerate(zip(fleet.offers, fleet.hosts, strict=True)):
        yield f"{_number(number)}  {host_line(offer)}"
        if len(hosts) > 1:
            labels = [about["label"] for about in hosts[1:_LABELS]]
            more = [f"and {len(hosts) - _LABELS} more"] if len(hosts) > _LABELS else []
            yield from _wrapped(f"     and {len(hosts) - 1} like it: ", [*labels, *more], ", ")
    yield ""
    yield "from\\to" + "".join(f"{_number(number):>6}" for number in range(len(fleet.offers)))
    for number, row in enumerate(fleet.reports):
        cells = ["-" if number == other else _SHORT[report.verdict] for other, report in enumerate(row)]
        yield f"{_number(number):>7}" + "".join(f"{cell:>6}" for cell in cells)
    yield from _costs(fleet)
    yield from _blockers(fleet)
    yield from _baselines(fleet)


def _costs(fleet: Fleet) -> Iterator[str]:
    for number, costs in enumerate(fleet.costs()):
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, sources in costs.items():
            groups.setdefault(tuple(sources), []).append(name)
        for group, names in groups.items():
            yield ""
            yield f"{_number(number)} costs guests of {' '.join(map(_number, group))}:"
            yield from _wrapped("  ", names, " ")


def _baselines(fleet: Fleet) -> Iterator[str]:
    """Yield what guests of each host have to do without, to run wherever they can."""
    for number, baseline in enumerate(fleet.baselines):
        yield ""
        if not baseline.places:
            yield f"a guest of {_number(number)} runs nowhere else"
            continue
        left = "" if baseline.verdict.rank < Verdict.UNKNOWN.rank else f" ({baseline.verdict.value})"
        names = [mask.name for mask in baseline.masks]
        places = " ".join(map(_number, baseline.places))
        yield f"a guest of {_number(number)} runs on {places}{left} without" + (":" if names else " masking")
        yield from _wrapped("  ", names, " ")


def _blockers(fleet: Fleet) -> Iterator[str]:
    for source, row in enumerate(fleet.reports):
        for destination, report in enumerate(row):
            names = [found.name for found in report.findings if found.verdict.rank >= Verdict.UNKNOWN.rank]
            if names:
                yield ""
                yield f"{_number(source)} -> {_number(destination)} is {report.verdict.value}:"
                more = [f"and {len(names) - _NAMES} more"] if len(names) > _NAMES else []
                yield from _wrapped("  ", [*names[:_NAMES], *more], ", ")


def _number(place: int) -> str:
    return f"[{place + 1}]"


def _wrapped(prefix: str, words: Sequence[str], separator: str) -> Iterator[str]:
    """Yield words in lines of a readable length; the prefix in the first, its width in the others."""
    line = ""
    for word in words:
        if line and len(prefix) + len(line) + len(separator) + len(word) > _WIDTH:
            yield prefix + line + separator.rstrip()
            prefix, line = " " * len(prefix), ""
        line += (separator if line else "") + word
    if line:
        yield prefix + line
