# SPDX-License-Identifier: Apache-2.0
"""The order matrix as text and JSON; vmm.report.order_dot draws it."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.state.order import Edge, Matrix
from vmm.state.piece import Piece

__all__ = ["documented", "lines", "reduced", "to_json"]


def reduced(edges: Iterable[Edge]) -> list[Edge]:
    """Return the edges without those that follow from others."""
    all_edges = list(edges)
    found = []
    for edge in all_edges:
        rest = [(other.first, other.then) for other in all_edges if other is not edge]
        if not _reaches(edge.first, edge.then, rest):
            found.append(edge)
    return found


def _reaches(start: str, end: str, pairs: list[tuple[str, str]]) -> bool:
    seen, left = {start}, [start]
    while left:
        here = left.pop()
        for first, then in pairs:
            if first == here and then not in seen:
                seen.add(then)
                left.append(then)
    return end in seen


def documented(matrix: Matrix, steps: Iterable[Piece]) -> list[tuple[str, str, str]]:
    """Return the constraints this project keeps that this KVM was not seen to enforce."""
    pairs = [(edge.first, edge.then) for edge in matrix.edges]
    return [
        (follows.step, step.name, follows.reason)
        for step in steps
        for follows in step.after
        if step.name in matrix.names and follows.step in matrix.names and not _reaches(follows.step, step.name, pairs)
    ]


def lines(matrix: Matrix, steps: tuple[Piece, ...]) -> list[str]:
    """Return the result for people."""
    found = [f"order of our restore: {' '.join(matrix.names)}", "", "what this KVM enforces:"]
    found += [f"  {edge}" for edge in matrix.edges] or ["  nothing"]
    if kept := documented(matrix, steps):
        found += ["", "kept all the same, and not enforced for this state:"]
        found += [f"  {first} before {then}: {reason}" for first, then, reason in kept]
    right, wrong = matrix.kept - len(matrix.surprises), matrix.broken - matrix.harmless
    total = f"{matrix.trials} restores: {right} of {matrix.kept} random orders within these constraints gave the same"
    found += ["", f"{total} state, {wrong} of {matrix.broken} that break one did not"]
    found += [f"unexpected: {text}" for text in matrix.surprises]
    found += [f"unexpected: no step has {edge.first} before {edge.then}" for edge in matrix.unknown]
    found += [f"unexpected: {first} before {then} is not enforced here" for first, then in matrix.missing]
    return found + [f"lost when it was written, whatever the order: {text}" for text in matrix.lost]


def to_json(matrix: Matrix, steps: tuple[Piece, ...]) -> dict[str, object]:
    """Return the result as JSON values."""
    return {
        "order": list(matrix.names),
        "enforced": [{"first": e.first, "then": e.then, "otherwise": e.otherwise} for e in matrix.edges],
        "kept": [{"first": a, "then": b, "reason": why} for a, b, why in documented(matrix, steps)],
        "trials": matrix.trials,
        "within": {"orders": matrix.kept, "unexpected": matrix.surprises},
        "against": {"orders": matrix.broken, "harmless": matrix.harmless},
        "as_expected": matrix.as_expected,
        "unknown": [{"first": edge.first, "then": edge.then} for edge in matrix.unknown],
        "missing": [{"first": first, "then": then} for first, then in matrix.missing],
        "lost": matrix.lost,
    }
