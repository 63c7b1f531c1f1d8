# SPDX-License-Identifier: Apache-2.0
"""Which orders of a restore a KVM accepts with the same result: measured, not assumed.

Two steps are exchanged while everything else stays as legal as is known by then; if that fails, their order
is a constraint. The result is a partial order, which random orders then confirm or not. The kernel's
documentation says of the order: "TBD". Source: Documentation/virt/kvm/api.rst, "Ordering of
KVM_GET_*/KVM_SET_* ioctls".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Edge", "Matrix", "Pair", "Trial", "discover", "judge", "linear_extension"]

# Says what is wrong with a restore in this order, None if nothing is.
Trial = Callable[[Sequence[str]], str | None]
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Edge:
    """``first`` has to come before ``then``; ``otherwise`` is what was seen when it did not."""

    first: str
    then: str
    otherwise: str

    def __str__(self) -> str:
        return f"{self.first} before {self.then}, or {self.otherwise}"


@dataclass(slots=True)
class Matrix:
    """The constraints that were found, and how random orders fared.

    ``kept`` and ``broken`` count orders that respect all constraints and orders that break one; what they
    should not have done is in ``surprises`` and ``harmless``. ``lost`` is what was otherwise than it was meant before
    any restore, ``known`` that of it which this KVM is known to lose; ``missing`` are constraints that were expected
    and not found, ``unknown`` is the other way round.
    """

    names: tuple[str, ...]
    edges: list[Edge] = field(default_factory=list)
    trials: int = 0
    kept: int = 0
    broken: int = 0
    surprises: list[str] = field(default_factory=list)
    harmless: int = 0
    lost: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    missing: list[Pair] = field(default_factory=list)
    unknown: list[Edge] = field(default_factory=list)

    @property
    def as_expected(self) -> bool:
        """Whether this KVM keeps what is written and enforces the order that is expected of it."""
        return not (self.surprises or self.lost or self.missing or self.unknown)


def linear_extension(
    names: Sequence[str], pairs: Iterable[Pair], block: Pair | None = None, source: random.Random | None = None
) -> list[str] | None:
    """Return an order of ``names`` that respects ``pairs`` (first, then), or None if there is none.

    ``block`` are two names that follow each other immediately. Of the names that may come next the earliest in
    ``names`` is taken, or one by chance if there is a ``source``.
    """
    units = {name: name for name in names}
    if block is not None:
        units[block[1]] = block[0]
    before: dict[str, set[str]] = {unit: set() for unit in units.values()}
    for first, then in pairs:
        if units[first] != units[then]:
            before[units[then]].add(units[first])
        elif block == (then, first):
            return None
    order: list[str] = []
    while before:
        ready = [unit for unit in before if not before[unit]]
        if not ready:
            return None
        chosen = source.choice(ready) if source else ready[0]
        order += block if block is not None and chosen == block[0] else [chosen]
        del before[chosen]
        for waiting in before.values():
            waiting.discard(chosen)
    return order


def _closure(pairs: Iterable[Pair]) -> set[Pair]:
    found = set(pairs)
    while True:
        more = {(a, d) for a, b in found for c, d in found if b == c} - found
        if not more:
            return found
        found |= more


def judge(matrix: Matrix, kept: Iterable[Pair], always: Iterable[Pair]) -> None:
    """Fill in ``missing`` and ``unknown``.

    ``kept`` are the constraints that a restore keeps, ``always`` those of them that every KVM enforces for the state.
    """
    found = _closure((edge.first, edge.then) for edge in matrix.edges)
    known = _closure(kept)
    matrix.missing = [pair for pair in always if pair not in found]
    matrix.unknown = [edge for edge in matrix.edges if (edge.first, edge.then) not in known]


def discover(names: Sequence[str], attempt: Trial, *, samples: int, seed: int) -> Matrix:
    """Find the partial order among ``names``, which are given in an order that works.

    ``samples`` random orders that respect it and as many that break it are tried afterwards. Raises ValueError
    if the given order does not work either.
    """
    matrix = Matrix(tuple(names))

    def failure(order: Sequence[str]) -> str | None:
        matrix.trials += 1
        return attempt(order)

    if why := failure(names):
        raise ValueError(f"the usual order {' '.join(names)} does not work: {why}")
    known: set[Pair] = set()
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    for i, j in sorted(pairs, key=lambda pair: (pair[1] - pair[0], pair)):
        first, then = names[i], names[j]
        if (first, then) in known:
            continue
        order = linear_extension(names, known, (then, first))
        if order is not None and (why := failure(order)):
            matrix.edges.append(Edge(first, then, why))
            known = _closure({*known, (first, then)})
    _confirm(matrix, known, failure, samples, random.Random(seed))
    return matrix


def _confirm(matrix: Matrix, known: set[Pair], failure: Trial, samples: int, source: random.Random) -> None:
    for _ in range(samples):
        order = linear_extension(matrix.names, known, source=source)
        assert order is not None
        matrix.kept += 1
        if why := failure(order):
            matrix.surprises.append(f"{' '.join(order)}: {why}")
    for _ in range(samples if known else 0):
        first, then = source.choice(sorted(known))
        order = list(matrix.names)
        while True:
            source.shuffle(order)
            if order.index(then) < order.index(first):
                break
        matrix.broken += 1
        matrix.harmless += failure(order) is None
