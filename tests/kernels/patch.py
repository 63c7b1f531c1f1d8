# SPDX-License-Identifier: Apache-2.0
"""Puts faults into a source of the kernel, each behind a guard, so that one build has all of them.

Nothing is taken away and no line moves: what is there gets text before and behind it. An ``Edit`` names the place by
a function and a regular expression that has to match once in it (its group, if it has one, is the place; the rest is
what is around it), and says what happens there while the fault is on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["HOW", "Edit", "Misplaced", "Span", "apply", "find_function", "insert", "locate", "wrap"]

#: How an edit changes what its anchor matches. The first three take the whole statement, from the start of the
#: anchor's line to its semicolon.
HOW = {
    "skip": "the statement is not executed",
    "before": "the code is executed before the statement",
    "after": "the code is executed after the statement",
    "value": "the expression has the code's value",
    "negate": "the expression is true where it was false",
    "entry": "the code, given here, is executed first in the function; there is no anchor",
}
_STATEMENTS = ("skip", "before", "after")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_NOT_CODE = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", re.DOTALL)


class Misplaced(Exception):
    """A source has no such place, or more than one."""


@dataclass(frozen=True)
class Edit:
    """One change of a fault: where, and what happens there."""

    file: str  # below the kernel's source
    function: str
    how: str  # of HOW
    anchor: str = ""
    code: str = ""  # C: statements, or an expression


@dataclass(frozen=True)
class Span:
    """A part of a source, and the text to put before and behind it."""

    start: int
    end: int
    opening: str
    closing: str


@lru_cache(maxsize=32)
def blank(source: str) -> str:
    """Return a source of the same length in which comments, strings and characters are spaces."""
    return _NOT_CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), source)


def find_function(source: str, name: str) -> tuple[int, int]:
    """Return where the body of a function begins, behind its brace, and where it ends, before the last one."""
    code = blank(source)
    head = re.compile(rf"^(?![\s#}}])[^\n;={{}}]*\b{re.escape(name)}\([^;{{}}]*\)\s*{{", re.MULTILINE)
    found = list(head.finditer(code))
    if len(found) != 1:
        raise Misplaced(f"{len(found)} functions {name}")
    end = code.index("\n}", found[0].end() - 1)
    return found[0].end(), end + 1


def locate(source: str, edit: Edit) -> tuple[int, int]:
    """Return the part of a source that an edit is about."""
    start, end = find_function(source, edit.function)
    if edit.how == "entry":
        return start, start
    found = list(re.compile(edit.anchor, re.MULTILINE).finditer(source, start, end))
    if len(found) != 1:
        raise Misplaced(f"{edit.function} has {len(found)} times {edit.anchor!r}")
    first, last = found[0].span(1 if found[0].re.groups else 0)
    if edit.how in _STATEMENTS:
        first, last = _statement(source, first, end)
    if first >= last or not _balanced(blank(source)[first:last]):
        raise Misplaced(f"{edit.anchor!r} in {edit.function} is no whole {_kind(edit.how)}: {source[first:last]!r}")
    return first, last


def _kind(how: str) -> str:
    return "statement" if how in _STATEMENTS else "expression"


def _statement(source: str, found: int, end: int) -> tuple[int, int]:
    """Return the statement whose first line has a position: to the semicolon that is in no bracket."""
    line = source.rindex("\n", 0, found) + 1
    first = line + len(source[line:]) - len(source[line:].lstrip())
    code, depth = blank(source), 0
    for position in range(first, end):
        letter = code[position]
        depth += (letter in "([{") - (letter in ")]}")
        if letter == ";" and depth == 0:
            return first, position + 1
        if letter == "}" and depth == 0:
            return first, position + 1
    raise Misplaced(f"no statement ends after {source[first : first + 40]!r}")


def _balanced(code: str) -> bool:
    stack = []
    for letter in code:
        if letter in "([{":
            stack.append(letter)
        elif letter in _PAIRS and (not stack or stack.pop() != _PAIRS[letter]):
            return False
    return not stack


def wrap(edit: Edit, number: int) -> tuple[str, str]:
    """Return what an edit of the fault with a number puts before and behind its part of the source."""
    on, code = f"FAULT({number})", " ".join(edit.code.split())
    return {
        "skip": (f"{{ if (!{on}) {{ ", " } }"),
        "before": (f"{{ if ({on}) {{ {code} }} ", " }"),
        "after": ("{ ", f" if ({on}) {{ {code} }} }}"),
        "value": (f"({on} ? ({code}) : (", "))"),
        "negate": (f"({on} != !!(", "))"),
        "entry": (f" if ({on}) {{ {code} }}", ""),
    }[edit.how]


def apply(source: str, edits: Iterable[tuple[int, Edit]]) -> str:
    """Return a source with edits, each of the fault with its number; edits may be within others, not across."""
    spans = []
    for number, edit in edits:
        start, end = locate(source, edit)
        opening, closing = wrap(edit, number)
        spans.append(Span(start, end, opening, closing))
    return insert(source, spans)


def insert(source: str, spans: Iterable[Span]) -> str:
    """Return a source with the texts of spans; where one is in another, its texts are inside too."""
    outside_in = sorted(spans, key=lambda span: (span.start, -span.end))
    parts: list[str] = []
    pending: list[Span] = []
    done = 0

    def close(until: int) -> None:
        nonlocal done
        while pending and pending[-1].end <= until:
            span = pending.pop()
            parts.extend((source[done : span.end], span.closing))
            done = span.end

    for span in outside_in:
        close(span.start)
        if pending and span.end > pending[-1].end:
            raise Misplaced(f"two edits cross at {source[span.start : pending[-1].end]!r}")
        parts.extend((source[done : span.start], span.opening))
        done = span.start
        pending.append(span)
    close(len(source))
    parts.append(source[done:])
    return "".join(parts)
