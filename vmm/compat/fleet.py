# SPDX-License-Identifier: Apache-2.0
"""Many hosts: who may send a guest to whom, what a guest must do without to go anywhere, and who costs what.

Hosts that offer the same are one kind: a fleet has many hosts and few kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmm.compat.offer import Mask, Offer, Verdict
from vmm.compat.report import Report, compare

__all__ = ["Baseline", "Fleet", "compare_all"]

# Masks only take away, so a few passes end it; the limit is for a rule that would break that.
_PASSES = 10


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a guest that starts on one host has to do without to run on all others that it can run on at all.

    ``places`` are those hosts' places in the fleet, ``verdict`` what is left of their verdicts when the guest is
    masked: MASK if nothing is, but there was something to mask.
    """

    masks: tuple[Mask, ...]
    places: tuple[int, ...]
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Return the baseline as JSON values."""
        masks = [mask.to_json() for mask in self.masks]
        return {"verdict": self.verdict.value, "destinations": list(self.places), "masks": masks}


@dataclass(frozen=True, slots=True)
class Fleet:
    """Kinds of hosts, in the order of the first host of each; ``reports[i][j]`` is about a guest of kind i on kind j.

    ``offers`` are those first hosts, ``hosts`` what is known about each host of a kind. Hosts are of one kind if
    their guests are offered the same by the same back end and vendor, whatever the kernel's release.
    """

    offers: tuple[Offer, ...]
    hosts: tuple[tuple[Mapping[str, str], ...], ...]
    reports: tuple[tuple[Report, ...], ...]
    baselines: tuple[Baseline, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of all pairs."""
        return Verdict.worst(report.verdict for row in self.reports for report in row)

    def costs(self) -> list[dict[str, list[int]]]:
        """Return for each host what it costs the others: the name of each mask, and whose guests have to wear it.

        A guest that cannot run there anyway costs nothing.
        """
        found: list[dict[str, list[int]]] = [{} for _ in self.offers]
        for source, row in enumerate(self.reports):
            for destination, report in enumerate(row):
                masks = report.masks if report.verdict is not Verdict.NO else ()
                for name in dict.fromkeys(mask.name for mask in masks):
                    found[destination].setdefault(name, []).append(source)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return matrix, costs and baselines as JSON values; kinds of hosts by their place."""
        kinds = [{**first, "labels": [about["label"] for about in (first, *more)]} for first, *more in self.hosts]
        return {
            "hosts": kinds,
            "matrix": [[report.verdict.value for report in row] for row in self.reports],
            "costs": self.costs(),
            "baselines": [baseline.to_json() for baseline in self.baselines],
        }


def compare_all(offers: Iterable[Offer]) -> Fleet:
    """Compare every kind of host with every other, and find what guests of each need to go wherever they can."""
    kinds: dict[object, list[Offer]] = {}
    for offer in offers:
        kinds.setdefault(_kind(offer), []).append(offer)
    first = tuple(hosts[0] for hosts in kinds.values())
    about = tuple(tuple(host.about for host in hosts) for hosts in kinds.values())
    reports = tuple(tuple(compare(source, destination) for destination in first) for source in first)
    return Fleet(first, about, reports, tuple(_baseline(place, row) for place, row in enumerate(reports)))


def _kind(offer: Offer) -> object:
    """Return what two hosts of one kind have in common."""
    about = tuple(offer.about[key] for key in ("architecture", "backend", "vendor"))
    return about, frozenset(offer.values.items())


def _baseline(place: int, row: Sequence[Report]) -> Baseline:
    possible = [n for n, report in enumerate(row) if n != place and report.verdict is not Verdict.NO]
    guest = row[place].source
    masks: dict[Mask, None] = {}
    for _ in range(_PASSES):
        before = guest
        for number in possible:
            needed = compare(guest, row[number].destination).masks
            guest = guest.masked(needed)
            masks.update(dict.fromkeys(needed))
        if guest == before:
            break
    left = Verdict.worst(compare(guest, row[number].destination).verdict for number in possible)
    verdict = Verdict.MASK if left is Verdict.OK and masks else left
    return Baseline(_last_words(masks), tuple(possible), verdict)


def _last_words(masks: dict[Mask, None]) -> tuple[Mask, ...]:
    """Leave out masks whose bits a later one sets again: a lower limit, a smaller set."""
    kept: list[Mask] = []
    covered: dict[str, int] = {}
    for mask in reversed(masks):
        if mask.bits & ~covered.get(mask.key, 0):
            kept.append(mask)
            covered[mask.key] = covered.get(mask.key, 0) | mask.bits
    return tuple(reversed(kept))
