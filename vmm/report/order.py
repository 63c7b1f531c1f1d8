# SPDX-License-Identifier: Apache-2.0
"""The order matrix as text, JSON and a drawing."""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape

from vmm.state.order import Edge, Matrix
from vmm.state.piece import Piece

__all__ = ["lines", "reduced", "svg", "to_json"]

_WIDTH, _HEIGHT, _ACROSS, _DOWN, _MARGIN = 110, 30, 140, 80, 20


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


def _documented(matrix: Matrix, steps: Iterable[Piece]) -> list[tuple[str, str, str]]:
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
    if kept := _documented(matrix, steps):
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
        "kept": [{"first": a, "then": b, "reason": why} for a, b, why in _documented(matrix, steps)],
        "trials": matrix.trials,
        "within": {"orders": matrix.kept, "unexpected": matrix.surprises},
        "against": {"orders": matrix.broken, "harmless": matrix.harmless},
        "as_expected": matrix.as_expected,
        "unknown": [{"first": edge.first, "then": edge.then} for edge in matrix.unknown],
        "missing": [{"first": first, "then": then} for first, then in matrix.missing],
        "lost": matrix.lost,
    }


def svg(matrix: Matrix) -> str:
    """Return the partial order as an SVG drawing: an arrow goes from what comes first; the reason is its title."""
    edges = reduced(matrix.edges)
    level = {name: 0 for name in matrix.names}
    for name in matrix.names:  # the names are in an order that respects the edges
        level[name] = max([level[edge.first] + 1 for edge in edges if edge.then == name], default=0)
    rows = [[name for name in matrix.names if level[name] == row] for row in range(max(level.values()) + 1)]
    place = {
        name: (_MARGIN + column * _ACROSS, _MARGIN + row * _DOWN)
        for row, names in enumerate(rows)
        for column, name in enumerate(names)
    }
    width = 2 * _MARGIN + max(len(names) for names in rows) * _ACROSS - (_ACROSS - _WIDTH)
    height = 2 * _MARGIN + (len(rows) - 1) * _DOWN + _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="9" refY="4" orient="auto">'
        '<path d="M0,0 L9,4 L0,8 z"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *(_arrow(edge, place) for edge in edges),
        *(_box(name, *place[name]) for name in matrix.names),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _arrow(edge: Edge, place: dict[str, tuple[int, int]]) -> str:
    (x1, y1), (x2, y2) = place[edge.first], place[edge.then]
    half = _WIDTH // 2
    line = f'<line x1="{x1 + half}" y1="{y1 + _HEIGHT}" x2="{x2 + half}" y2="{y2}" stroke="black"'
    return f'{line} marker-end="url(#tip)"><title>{escape(str(edge))}</title></line>'


def _box(name: str, x: int, y: int) -> str:
    box = f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" fill="#eef" stroke="black"/>'
    return f'{box}<text x="{x + _WIDTH // 2}" y="{y + 20}" text-anchor="middle">{escape(name)}</text>'
