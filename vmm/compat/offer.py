# SPDX-License-Identifier: Apache-2.0
"""What a host offers its guests, as a value: read from a probe, compared with another host's, masked.

An offer is a flat mapping from keys such as ``cpuid.00000007.0.ebx`` or ``id.ID_AA64ZFR0_EL1`` to numbers, so
that one kind of mask serves all of it. The architectures (vmm.compat.x86.dimensions, vmm.compat.arm64.dimensions)
make the keys and judge them; vmm.compat.report asks them. Nothing here needs a KVM, or a host of the probe's
architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Any

__all__ = [
    "SCHEMA",
    "VERSION",
    "Capabilities",
    "Dimension",
    "Finding",
    "Mask",
    "Offer",
    "ProbeError",
    "Section",
    "Verdict",
]

# The name and number of what `vmm probe --json` writes. A key that changes its meaning raises the number.
SCHEMA, VERSION = "vmm-probe", 1
_ALL = (1 << 64) - 1
_HEXADECIMAL = re.compile(r"0x[0-9a-f]{1,16}")


class ProbeError(Exception):
    """A file is no probe that can be compared; the message says where it is wrong."""


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


class Section:
    """A JSON object that somebody else wrote, taken apart with all that is expected of it stated.

    ``where`` names it in the sentence of a ProbeError. Strings are printable and short, numbers unsigned and
    of 64 bits at most, lists and objects bounded.
    """

    MOST = 4096
    LONGEST = 256

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ProbeError(f"{where} is not a JSON object")
        if len(value) > self.MOST:
            raise ProbeError(f"{where} has more than {self.MOST} entries")
        self._value: dict[str, Any] = value
        self.where = where

    def __contains__(self, key: str) -> bool:
        """Is there the key, though its value may be null?"""
        return key in self._value

    def has(self, key: str) -> bool:
        """Is there a value, and not null?"""
        return self._value.get(key) is not None

    def _get(self, key: str) -> object:
        if not self.has(key):
            raise ProbeError(f"{self.where} has no {key!r}")
        return self._value[key]

    def items(self) -> Iterable[tuple[str, object]]:
        """Return keys and values as they are; every key is printable and short."""
        for key, value in self._value.items():
            yield self._text(key, "a key"), value

    def text(self, key: str) -> str:
        """Return a string."""
        return self._text(self._get(key), repr(key))

    def _text(self, value: object, what: str) -> str:
        if not isinstance(value, str) or len(value) > self.LONGEST or not value.isprintable():
            raise ProbeError(f"{what} of {self.where} is not a printable string of at most {self.LONGEST} characters")
        return value

    def number(self, key: str) -> int:
        """Return a number: a JSON integer, or a string such as ``0x1f``."""
        return self.as_number(self._get(key), repr(key))

    def as_number(self, value: object, what: str) -> int:
        """Return a value of this section as a number."""
        if isinstance(value, str) and _HEXADECIMAL.fullmatch(value):
            return int(value, 16)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _ALL:
            raise ProbeError(f"{what} of {self.where} is not an unsigned number of 64 bits or less")
        return value

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._get(key)
        if not isinstance(value, bool):
            raise ProbeError(f"{key!r} of {self.where} is neither true nor false")
        return value

    def section(self, key: str) -> Section:
        """Return an object inside this one."""
        return Section(self._get(key), f"{key!r} of {self.where}")

    def numbers(self, key: str) -> dict[str, int]:
        """Return an object whose values are numbers."""
        inner = self.section(key)
        return {name: inner.as_number(value, repr(name)) for name, value in inner.items()}

    def _list(self, key: str) -> list[object]:
        value = self._get(key)
        if not isinstance(value, list) or len(value) > self.MOST:
            raise ProbeError(f"{key!r} of {self.where} is not a list of at most {self.MOST} values")
        return value

    def texts(self, key: str) -> list[str]:
        """Return a list of strings."""
        return [self._text(value, f"a value in {key!r}") for value in self._list(key)]

    def list_of_numbers(self, key: str) -> list[int]:
        """Return a list of numbers."""
        return [self.as_number(value, f"a value in {key!r}") for value in self._list(key)]
