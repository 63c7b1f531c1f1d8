# SPDX-License-Identifier: Apache-2.0
"""What the ABI says of a field of a vCPU's state: one row for all fields of which it says the same.

A row is data with a source. What judges a KVM by it is in :mod:`vmm.conformance.world`; what gives a guest unusual
values before a migration takes them from here too.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Protocol, Self

from vmm.kvm.vcpu import Vcpu

__all__ = [
    "AS_IT_IS",
    "ELSEWHERE",
    "EVERYWHERE",
    "After",
    "Allowed",
    "Bits",
    "Canonical",
    "Free",
    "Fresh",
    "Made",
    "Number",
    "Of",
    "OneOf",
    "Refusal",
    "Row",
    "Untold",
    "Values",
    "Within",
    "fits",
    "wanted",
]

# A number, or how the vCPU's CPUID, features or VM decide it.
Number = int | Callable[[Vcpu], int]


class Allowed(Protocol):
    """Several values, of which each is right."""

    def allows(self, value: int) -> bool:
        """Tell whether it is one of them."""

    def __str__(self) -> str:
        """Return them in words."""


def fits(observed: int | None, expected: int | Allowed) -> bool:
    """Tell whether what was read, None for nothing, is what has to be there."""
    if isinstance(expected, int):
        return observed == expected
    return observed is not None and expected.allows(observed)


@dataclass(frozen=True, slots=True)
class OneOf:
    """Either of these values, which back ends choose between for this reason."""

    values: tuple[int, ...]
    reason: str

    def allows(self, value: int) -> bool:
        """Tell whether it is one of them."""
        return value in self.values

    def __str__(self) -> str:
        return " or ".join(map(hex, self.values))


@dataclass(frozen=True, slots=True)
class Within:
    """A value from ``low`` to ``high``, for what counts on."""

    low: int
    high: int

    def allows(self, value: int) -> bool:
        """Tell whether it lies there."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:#x} to {self.high:#x}"


@dataclass(frozen=True, slots=True)
class Bits:
    """A value with at least these bits, beside which later releases may have more."""

    bits: int

    def allows(self, value: int) -> bool:
        """Tell whether it has them."""
        return value & self.bits == self.bits

    def __str__(self) -> str:
        return f"at least the bits {self.bits:#x}"


def wanted(value: int | Allowed | Callable[[Vcpu], int | Allowed], vcpu: Vcpu) -> int | Allowed:
    """Return what a row means for a vCPU."""
    return value(vcpu) if callable(value) else value


@dataclass(frozen=True, slots=True)
class Untold:
    """The ABI leaves it open, or no host can show it, for this reason: a pair of field and property not judged."""

    reason: str


class After(Enum):
    """What becomes of a field in an event: it stays, or is what it is in a fresh vCPU, or either."""

    KEPT = auto()
    FRESH = auto()
    EITHER = auto()


@dataclass(frozen=True, slots=True)
class Made:
    """What becomes of a field in an event is made of what it was."""

    function: Callable[[int], int | Allowed]


class Values(Protocol):
    """Legal values of a field, in rounds: all fields of a piece get those of one round together."""

    @property
    def rounds(self) -> int:
        """How many rounds there are."""

    def value(self, field: str, round: int) -> int:
        """Return the value of a round; beyond the last one they begin anew."""


@dataclass(frozen=True, slots=True)
class Free:
    """Any value within ``mask``; the other bits are ``base``.

    Two patterns that no other field of the piece has, complements of each other, then all ones, then none.
    """

    mask: int
    base: int = 0
    rounds: int = 4

    def value(self, field: str, round: int) -> int:
        """Return the value of a round."""
        pattern = int.from_bytes(hashlib.shake_128(field.encode()).digest(self.mask.bit_length() // 8 + 1))
        chosen = (pattern, ~pattern, -1, 0)[round % self.rounds]
        return self.base | chosen & self.mask


@dataclass(frozen=True, slots=True)
class Canonical:
    """Any canonical address of 48 bits: one of either half that no other field has, then the ends of the halves.

    ``aligned`` low bits are 0.
    """

    aligned: int = 0
    rounds: int = 4

    def value(self, field: str, round: int) -> int:
        """Return the value of a round."""
        low, high = zlib.crc32(field.encode()) << 15 & (1 << 47) - 1 | 0x123, 0xFFFF_8000_0000_0000
        chosen = (low, high | low ^ 0x5555_5555_5555, (1 << 47) - 1, high)[round % self.rounds]
        return chosen >> self.aligned << self.aligned


class Of:
    """These values, one a round."""

    __slots__ = ("_values", "rounds")

    def __init__(self, *values: int) -> None:
        self._values, self.rounds = values, len(values)

    def value(self, field: str, round: int) -> int:
        """Return the value of a round."""
        return self._values[round % self.rounds]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A value that KVM refuses, and with which errno; 0 is an MSR that is not set.

    A callable gets the vCPU and what the field is in a fresh one; it returns None where there is no such value.
    """

    value: int | Callable[[Vcpu, int], int | None]
    errno: int = 0

    def of(self, vcpu: Vcpu, fresh: int) -> int | None:
        """Return the value for a vCPU in which the field is ``fresh`` at first."""
        return self.value if isinstance(self.value, int) else self.value(vcpu, fresh)


# A row without a condition.
def EVERYWHERE(vcpu: Vcpu) -> str:
    """Every vCPU has it."""
    return ""


# A row whose values any vCPU may have.
def AS_IT_IS(vcpu: Vcpu, value: int, fresh: int) -> int:
    """Every vCPU takes the value."""
    return value


Fresh = int | Allowed | Untold | None


@dataclass(frozen=True, slots=True)
class Row:
    """Fields of one piece, and what is promised of each.

    ``fields`` are names separated by blanks, or shell patterns. ``fresh`` is the value in a vCPU that has just been
    made, and ``init`` what INIT (x86) or another KVM_ARM_VCPU_INIT makes of it. ``values`` can be written, are read
    back by the same call, and come over; ``fit`` makes of such a value, and of the fresh one, one that this vCPU may
    have, or None if it may have only its own; ``reads`` gives what else one of them may be read as, and ``counts``
    how far it may have counted on by then. ``masked`` are pairs of what is written and what it then reads as;
    ``refused`` are not taken. ``kept`` is what KVM_RUN of a guest makes of it that does not touch it; ``runs`` tells
    that a guest runs with ``values`` as with its own, or with which others. ``alone``: it is the same state as
    another field, so it is written by itself. ``when`` says why a vCPU has no such field, or nothing. ``varies``
    gives what a vCPU's CPUID or features decide, as other values for this row's own names. None is a property that
    there is not.
    """

    fields: str
    source: str
    fresh: Fresh | Callable[[Vcpu], Fresh]
    values: Values | Untold | None
    init: After | Made | Number | Allowed | Untold | None = After.FRESH
    kept: After | Made | Untold = After.KEPT
    runs: bool | Values = True
    fit: Callable[[Vcpu, int, int], int | None] = AS_IT_IS
    reads: Callable[[int], Allowed] | None = None
    counts: int = 0
    masked: Sequence[tuple[int, Number | Allowed]] = ()
    refused: Sequence[Refusal] = ()
    alone: bool = False
    when: Callable[[Vcpu], str] = EVERYWHERE
    varies: Callable[[Vcpu], Mapping[str, Any]] | None = None

    def of(self, vcpu: Vcpu) -> Self:
        """Return the row as it is for a vCPU."""
        return replace(self, **self.varies(vcpu)) if self.varies else self

    def freshly(self, vcpu: Vcpu) -> Fresh:
        """Return what the field is in a fresh vCPU like this one."""
        return self.fresh(vcpu) if callable(self.fresh) else self.fresh

    def read(self, value: int) -> int | Allowed:
        """Return what a field reads as that has got a value."""
        if self.reads:
            return self.reads(value)
        return Within(value, value + self.counts) if self.counts else value


# For a table of some fields, in a mode or a VM of their own: another table has the others.
ELSEWHERE = Row("*", "the other table of this piece", fresh=None, values=None)
