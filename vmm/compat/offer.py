# SPDX-License-Identifier: Apache-2.0
"""What a host offers its guests, as a value: read from a probe, compared with another host's, masked.

An offer is a flat mapping from keys such as ``cpuid.00000007.0.ebx`` or ``id.ID_AA64ZFR0_EL1`` to numbers, so
that one kind of mask serves all of it. The architectures (vmm.compat.x86.dimensions, vmm.compat.arm64.dimensions)
make the keys and judge them; vmm.compat.report asks them. Nothing here needs a KVM, or a host of the probe's
architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Any

__all__ = ["Capabilities", "Dimension", "Finding", "Mask", "Offer", "Verdict"]

_ALL = (1 << 64) - 1


class Verdict(Enum):
    """What a comparison found, from best to worst."""

    OK = "ok"
    MASK = "ok after masking"
    UNKNOWN = "unknown"
    NO = "no"

    @property
    def rank(self) -> int:
        """0 for the best, 3 for the worst."""
        return list(Verdict).index(self)

    @classmethod
    def worst(cls, verdicts: Iterable[Verdict]) -> Verdict:
        """Return the worst of some verdicts, OK if there is none."""
        return max(verdicts, key=lambda verdict: verdict.rank, default=cls.OK)


@dataclass(frozen=True, slots=True)
class Mask:
    """What a guest has to do without: of the number at ``key``, ``bits`` become ``value``.

    ``name`` is the feature, register or field, ``action`` what to do about it, in a few words. ``late``: that can be
    done to a guest that has been started already.
    """

    key: str
    bits: int
    value: int
    name: str
    action: str
    late: bool = False

    def to_json(self) -> dict[str, str]:
        """Return the mask as JSON values; the numbers as hexadecimal strings."""
        numbers = {"bits": f"{self.bits:#x}", "value": f"{self.value:#x}"}
        return {"name": self.name, "action": self.action, "key": self.key, **numbers}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not simply the same: ``name`` with its value on the source and on the destination."""

    verdict: Verdict
    name: str
    source: str
    destination: str
    masks: tuple[Mask, ...] = ()
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        value = {"name": self.name, "verdict": self.verdict.value}
        values = {"source": self.source, "destination": self.destination, "note": self.note}
        return {**value, **values, "masks": [mask.to_json() for mask in self.masks]}


@dataclass(frozen=True, slots=True)
class Offer:
    """A host as its guests see it: strings about it in ``about``, and ``values``, the numbers by key.

    ``about`` has label, architecture, kernel, backend, vendor and model.
    """

    about: Mapping[str, str]
    values: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "about", MappingProxyType(dict(self.about)))
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    def get(self, key: str) -> int:
        """Return a number, 0 where there is none: an absent CPUID leaf or ID register reads as zero."""
        return self.values.get(key, 0)

    def find(self, key: str) -> int | None:
        """Return a number, or None where the probe does not have it."""
        return self.values.get(key)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that start like this, in the probe's order."""
        return [key for key in self.values if key.startswith(prefix)]

    def masked(self, masks: Iterable[Mask]) -> Offer:
        """Return the offer that is left when the masks are applied, in their order."""
        values = dict(self.values)
        for mask in masks:
            values[mask.key] = values.get(mask.key, 0) & ~mask.bits | mask.value & mask.bits
        return replace(self, values=values)


@dataclass(frozen=True, slots=True)
class Dimension:
    """One aspect in which two hosts are compared.

    ``judge(guest, destination)`` returns the findings: ``guest`` is the source's offer, masked by the
    dimensions before. No finding means OK.
    """

    name: str
    judge: Callable[[Offer, Offer], list[Finding]]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """How the answers of KVM_CHECK_EXTENSION compare: keys are ``cap.NAME``.

    No state moves without the ``needed`` ones; a VMM can do without the ``optional`` ones; the value of the ``sets``
    is a set of bits, that of the ``limits`` a number to stay within. All others do not matter.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    sets: tuple[str, ...]
    limits: tuple[str, ...]

    def judge(self, guest: Offer, destination: Offer) -> list[Finding]:
        """Return what the destination lacks of the source's capabilities."""
        names = (*self.needed, *self.optional, *self.sets, *self.limits)
        return [found for name in names if (found := self._judge(name, guest, destination))]

    def _judge(self, name: str, guest: Offer, destination: Offer) -> Finding | None:
        key = f"cap.{name}"
        ours, theirs = guest.find(key), destination.find(key)
        if not ours:
            return None
        if theirs is None:
            note = "the destination's probe does not have it"
            return Finding(Verdict.UNKNOWN, name, f"{ours:#x}", "unknown", note=note)
        wanted = ours & theirs if name in self.sets else min(ours, theirs) if name in self.limits else ours
        if name in (*self.needed, *self.optional) and not theirs:
            wanted = 0
        if wanted == ours:
            return None
        if name in self.needed:
            return Finding(Verdict.NO, name, f"{ours:#x}", f"{theirs:#x}", note="no state moves without it")
        action = f"use no more of {name} than {wanted:#x}" if wanted else f"do without {name}"
        mask = Mask(key, _ALL, wanted, f"{name}={wanted:#x}" if wanted else name, action)
        return Finding(Verdict.MASK, name, f"{ours:#x}", f"{theirs:#x}", (mask,))
