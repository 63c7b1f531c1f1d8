# SPDX-License-Identifier: Apache-2.0
"""The order matrix as a graph in graphviz's DOT language, drawn by its program where there is one."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from vmm.report.order import documented, reduced
from vmm.state.order import Matrix
from vmm.state.piece import Piece

__all__ = ["dot", "draw", "drawable"]

_SECONDS = 30
_WIDTH = 34  # characters of a label's line
_LEGEND = "an arrow goes from what has to come first; dashed: kept all the same, and not enforced for this state"


def _quoted(text: str) -> str:
    """Return a string of DOT. Source: graphviz.org/doc/info/lang.html, ID."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _folded(text: str) -> str:
    return "\n".join(textwrap.wrap(text, _WIDTH))


def dot(matrix: Matrix, steps: Iterable[Piece], about: Sequence[tuple[str, str]]) -> str:
    """Return the partial order; ``about`` are the lines that say of which host it is.

    What follows from other arrows has none. An arrow's text is what was seen when its order was not kept, or why we
    keep it.
    """
    return "\n".join(_lines(matrix, steps, about)) + "\n"


def _lines(matrix: Matrix, steps: Iterable[Piece], about: Sequence[tuple[str, str]]) -> Iterator[str]:
    title = "\n".join([*(f"{name}: {value}" for name, value in about), _LEGEND])
    yield "digraph order {"
    yield f"  graph [label={_quoted(title)}, labelloc=t, labeljust=l, fontname=sans, fontsize=11, rankdir=TB];"
    yield '  node [shape=box, style="rounded,filled", fillcolor="#eeeeff", fontname=sans];'
    yield "  edge [fontname=sans, fontsize=9];"
    yield from (f"  {_quoted(name)};" for name in matrix.names)
    for edge in reduced(matrix.edges):
        yield f"  {_quoted(edge.first)} -> {_quoted(edge.then)} [label={_quoted(_folded(edge.otherwise))}];"
    for first, then, reason in documented(matrix, steps):
        label = f"label={_quoted(_folded(reason))}, style=dashed, color=gray50, fontcolor=gray40"
        yield f"  {_quoted(first)} -> {_quoted(then)} [{label}];"
    yield "}"


def drawable() -> bool:
    """Tell whether graphviz's program is there."""
    return shutil.which("dot") is not None


def draw(text: str, path: str) -> None:
    """Write a graph as SVG; ValueError, with what the program says, if it cannot draw it."""
    done = subprocess.run(
        ["dot", "-Tsvg", "-o", path], input=text, text=True, capture_output=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        raise ValueError(f"graphviz's dot could not draw it: {done.stderr.strip()}")
