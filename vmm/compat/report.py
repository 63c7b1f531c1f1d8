# SPDX-License-Identifier: Apache-2.0
"""May a guest of one host run on another: from two files that ``vmm probe --json`` wrote, and nothing else.

>>> report = compare(load("a.json"), load("b.json"))
>>> report.verdict, [mask.action for mask in report.masks]

The source's guest was given all that its KVM offers. Each dimension (vmm.compat.x86.dimensions,
vmm.compat.arm64.dimensions) says ok, ok after masking (what the guest has to do without from its start), no (what
blocks it, with both values), or unknown (a probe lacks what is needed to tell).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from vmm.arch import module
from vmm.compat.offer import Dimension, Finding, Mask, Offer, Verdict
from vmm.probe.document import SCHEMA, VERSION, ProbeError, Section

__all__ = ["ARCHITECTURES", "Architecture", "Judged", "Report", "compare", "load", "parse"]

# What `vmm probe` writes is 20 to 50 KiB.
_LARGEST = 1 << 20
ARCHITECTURES = ("arm64", "x86")


@dataclass(frozen=True, slots=True)
class Judged:
    """One dimension's name and findings."""

    name: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings."""
        return Verdict.worst(finding.verdict for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the dimension as JSON values."""
        findings = [finding.to_json() for finding in self.findings]
        return {"name": self.name, "verdict": self.verdict.value, "findings": findings}


@dataclass(frozen=True, slots=True)
class Report:
    """Source and destination (their ``about``), and every dimension in which they were compared."""

    source: Offer
    destination: Offer
    dimensions: tuple[Judged, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the dimensions."""
        return Verdict.worst(dimension.verdict for dimension in self.dimensions)

    @property
    def masks(self) -> tuple[Mask, ...]:
        """All masks, each once."""
        return tuple(dict.fromkeys(mask for found in self.findings for mask in found.masks))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all dimensions."""
        return tuple(finding for dimension in self.dimensions for finding in dimension.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        ends = {"source": dict(self.source.about), "destination": dict(self.destination.about)}
        return {
            **ends,
            "verdict": self.verdict.value,
            "dimensions": [dimension.to_json() for dimension in self.dimensions],
            "masks": [mask.to_json() for mask in self.masks],
        }


def compare(source: Offer, destination: Offer, *, started: bool = False) -> Report:
    """Judge whether a guest with all of ``source``'s offer may run on ``destination``.

    From a guest that was ``started`` nothing can be taken: what it would have to do without is a no.
    """
    ours, theirs = source.about["architecture"], destination.about["architecture"]
    if ours != theirs:
        different = Finding(Verdict.NO, "architecture", ours, theirs)
        return Report(source, destination, (Judged("architecture", (different,)),))
    guest, judged = source, []
    for dimension in _of(ours).DIMENSIONS:
        findings = tuple(dimension.judge(guest, destination))
        if started:
            findings = tuple(map(_too_late, findings))
        guest = guest.masked(mask for finding in findings for mask in finding.masks)
        judged.append(Judged(dimension.name, findings))
    return Report(source, destination, tuple(judged))


def _too_late(finding: Finding) -> Finding:
    if finding.verdict is not Verdict.MASK or all(mask.late for mask in finding.masks):
        return finding
    note = "; ".join(filter(None, [finding.note, "the guest was started with it"]))
    return replace(finding, verdict=Verdict.NO, masks=(), note=note)


class Architecture(Protocol):
    """A module ``vmm.compat.ARCHITECTURE.dimensions``: what is compared, and what of a probe counts for it."""

    DIMENSIONS: tuple[Dimension, ...]

    def values(self, document: Section) -> dict[str, int]: ...


def _of(architecture: str) -> Architecture:
    return cast(Architecture, module("dimensions", "compat", architecture))


def load(path: str, label: str | None = None) -> Offer:
    """Read a probe; ProbeError if the file cannot be read or used. ``label`` is its name in reports."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise ProbeError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise ProbeError(f"{path} is larger than {_LARGEST >> 20} MiB: not a probe written by `vmm probe --json`")
    try:
        return parse(data, label or path)
    except ProbeError as error:
        raise ProbeError(f"{path} is not a usable probe file: {error}") from error


def parse(data: bytes, label: str) -> Offer:
    """Return the offer that a probe's bytes describe; ProbeError says what is wrong with them."""
    try:
        value = json.loads(data, object_pairs_hook=_object)
    except RecursionError:
        raise ProbeError("it is nested too deep") from None
    except ValueError as error:  # bad JSON, bad UTF-8, a number with too many digits
        raise ProbeError(f"not valid JSON: {error}") from None
    document = Section(value, "the document")
    if not document.has("schema") or document.text("schema") != SCHEMA:
        raise ProbeError("not written by `vmm probe --json`")
    if document.number("version") != VERSION:
        found = document.number("version")
        raise ProbeError(
            f"probe version {found} is not supported (expected {VERSION}): "
            "re-run `vmm probe --json` with this release"
        )
    architecture = document.text("architecture")
    if architecture not in ARCHITECTURES:
        raise ProbeError(f"its architecture is {architecture}, none of {', '.join(ARCHITECTURES)}")
    cpu = document.section("cpu")
    about = {
        "label": label,
        "architecture": architecture,
        **{key: document.text(key) for key in ("kernel", "backend")},
        **{key: cpu.text(key) for key in ("vendor", "model")},
    }
    return Offer(about, _of(architecture).values(document))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProbeError("a key is in it twice")
    return found
