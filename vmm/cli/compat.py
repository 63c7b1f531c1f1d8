# SPDX-License-Identifier: Apache-2.0
"""``vmm compat``: may a guest of one host move to another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import click

from vmm.compat.fleet import Fleet, compare_all
from vmm.compat.offer import Offer, Verdict
from vmm.compat.report import Report, compare, load
from vmm.compat.text import fleet_lines, host_line, report_lines

__all__ = ["command"]

# What `vmm compat --json` writes: "reports" are Report.to_json, "fleet" is Fleet.to_json of more than two hosts.
_HEADER: dict[str, Any] = {"schema": "vmm-compat", "version": 1}


@click.command("compat")
@click.argument("files", nargs=-1, required=True, metavar="A.json B.json [MORE.json ...]")
@click.option("--guest", metavar="STATE", help="Ask for the guest in this file of `vmm save`, on each of the hosts.")
@click.option("--both", is_flag=True, help="Also judge the way back.")
@click.option("--strict", is_flag=True, help="A guest that needs masking may not run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with every finding and mask.")
def command(files: tuple[str, ...], guest: str | None, both: bool, strict: bool, as_json: bool) -> int:
    """Judge from files of `vmm probe --json` whether a guest of host A may run on host B.

    The guest is one that got all that A's KVM offers. Each dimension is ok, ok after masking (what to take from the
    guest when it is started on A, by name), no (what blocks it, with both values), or unknown (a probe lacks it).
    With more than two files: which hosts are of one kind, the matrix of all pairs of kinds, what each kind costs the
    others, and what guests have to do without to run everywhere. No KVM is needed, and the hosts may be of any
    architecture.

    With --guest STATE the guest is the one in a file, with what it was started with, and any number of hosts is
    asked. Nothing can be taken from it; "to do" is then for its stream or for the destination.

    Exits with 0 if the guest may run, as it is or after masking; 1 if not, or if that is unknown; 2 for a file that
    is not a usable probe. With --both, or with more than two files, every pair counts.
    """
    if guest is not None and both:
        raise click.UsageError("--both asks for the way back, which a saved guest does not have: leave it out")
    if guest is None and len(files) < 2:
        raise click.UsageError("two probes are compared, or more: write them with `vmm probe --json > HOST.json`")
    offers = [load(path) for path in files]
    fleet = compare_all(offers) if len(offers) > 2 and guest is None else None
    if guest is None:
        reports = _reports(offers, both, fleet)
    else:
        offers = [_saved(guest), *offers]
        reports = [compare(offers[0], destination, started=True) for destination in offers[1:]]
    if as_json:
        document = _HEADER | {"reports": [report.to_json() for report in reports]}
        print(json.dumps(document | ({"fleet": fleet.to_json()} if fleet else {}), indent=2))
    else:
        for line in fleet_lines(fleet) if fleet else _pair_lines(offers, reports):
            print(line)
    worst = Verdict.worst(report.verdict for report in reports)
    return int(worst.rank > (Verdict.OK if strict else Verdict.MASK).rank)


def _saved(path: str) -> Offer:
    from vmm.compat.saved import load_guest  # not above: two probes can be compared without the bindings

    return load_guest(path)


def _reports(offers: Sequence[Offer], both: bool, fleet: Fleet | None) -> list[Report]:
    if fleet is not None:
        return [
            report
            for source, row in enumerate(fleet.reports)
            for destination, report in enumerate(row)
            if source != destination or len(fleet.hosts[source]) > 1
        ]
    first, second = offers
    return [compare(first, second), *([compare(second, first)] if both else [])]


def _pair_lines(offers: Sequence[Offer], reports: Sequence[Report]) -> Iterator[str]:
    yield from (host_line(offer) for offer in offers)
    for report in reports:
        yield ""
        yield from report_lines(report)
