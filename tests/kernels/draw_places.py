# SPDX-License-Identifier: Apache-2.0
"""The places of a C function where an operator makes a fault; nothing here knows an architecture.

What is read is the kernel's style rather than C: a statement begins a line. What cannot be understood is no place;
what does not compile is found out by the build.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.kernels.patch import blank, find_function

__all__ = ["OPERATORS", "Place", "places"]

OPERATORS = {
    "negate": "a condition, or a part of it, is true where it was false",
    "delete": "a statement is not executed",
    "constant": "what is assigned or returned, or a part of a condition, is a constant",
    "boundary": "a comparison is off by one",
    "mask": "an operand of & or | is missing, or the lowest bit is lost",
    "return": "the function returns before a statement",
}
_OPEN, _CLOSE = "([{", ")]}"
_CONDITION = re.compile(r"\b(?:if|while)\s*\(")
_CONTROL = re.compile(r"\b(?:if|while|for|switch|\w*for_each\w*)\s*$")
_LABEL = re.compile(r"(?:^|\n)[ \t]*(?:case\b[^\n?]*|default[ \t]*|\w+[ \t]*):$")
_WORD = re.compile(r"[A-Za-z_]\w*")
_DECLARATION = re.compile(r"(?:[A-Za-z_]\w*\s+)+(?:\*\s*)*[A-Za-z_]\w*\s*(?:[=;,\[:]|$)|(?:[A-Za-z_]\w*\s+)+\*+\s*\w")
_ASSIGNMENT = re.compile(r"(?<![=!<>])(?:<<|>>|[-+*/%&|^])?=(?!=)")
_RELATION = re.compile(r"(?<![-<>])(<=?|>=?)(?![<>])")
_OFF_BY_ONE = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_NOT_SIMPLE = ("if", "else", "while", "for", "switch", "do", "case", "default", "static", "asm", "typedef", "struct")
#: Statements that no state depends on, or without which the kernel itself comes to a halt.
_BESIDE = re.compile(
    r"\w*(?:trace|WARN|BUG|pr_|printk|unimpl|assert|lock|preempt|irq_(?:save|restore|disable|enable)"
    r"|free|_put\b|_get\b|srcu|barrier|smp_|vcpu_load|vcpu_put|might_|cond_resched|instrumentation|INIT_|kunmap|kmap)"
)
_CONSTANTS = ("0", "1", "~0ULL")


@dataclass(frozen=True)
class Place:
    """A part of a source, what an operator does there (HOW of tests.kernels.patch), and with which code."""

    operator: str
    how: str
    start: int
    end: int
    codes: tuple[str, ...] = ("",)


def places(source: str, function: str) -> list[Place]:
    """Return the places of a function, in their order."""
    start, end = find_function(source, function)
    code = _plain(source)
    found = [*_conditions(code, start, end), *_statements(code, start, end)]
    # No expression has a line for the preprocessor in it, and what is wrapped is left as it is.
    return sorted(
        (place for place in found if "\n#" not in source[place.start : place.end] and place.start < place.end),
        key=lambda place: (place.start, place.end, place.operator),
    )


def _plain(source: str) -> str:
    """Return a source of the same length without comments, strings and lines for the preprocessor."""
    directive = re.compile(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", re.MULTILINE)
    return directive.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), blank(source))


def _closing(code: str, opening: int, end: int) -> int:
    """Return where the bracket that opens at a position is closed, or ``end``."""
    depth = 0
    for position in range(opening, end):
        depth += (code[position] in _OPEN) - (code[position] in _CLOSE)
        if depth == 0:
            return position
    return end


def _trim(code: str, start: int, end: int) -> tuple[int, int]:
    while start < end and code[start].isspace():
        start += 1
    while end > start and code[end - 1].isspace():
        end -= 1
    return start, end


def _split(code: str, start: int, end: int, separator: str) -> list[tuple[int, int]]:
    """Return the parts of an expression between separators that are in no bracket; one is the whole."""
    parts, depth, first, position = [], 0, start, start
    while position < end:
        depth += (code[position] in _OPEN) - (code[position] in _CLOSE)
        if depth == 0 and code.startswith(separator, position):
            if len(separator) == 2 or separator not in (code[position - 1], code[position + 1]):
                parts.append(_trim(code, first, position))
                first = position + len(separator)
            position += len(separator)
        else:
            position += 1
    return [*parts, _trim(code, first, end)]


def _outside(pattern: re.Pattern[str], code: str, start: int, end: int) -> Iterator[re.Match[str]]:
    """Yield the matches that are in no bracket of an expression."""
    for match in pattern.finditer(code, start, end):
        before = code[start : match.start()]
        if sum(before.count(one) for one in _OPEN) == sum(before.count(one) for one in _CLOSE):
            yield match


def _conditions(code: str, start: int, end: int) -> Iterator[Place]:
    for match in _CONDITION.finditer(code, start, end):
        first, last = _trim(code, match.end(), _closing(code, match.end() - 1, end))
        yield Place("negate", "negate", first, last)
        yield Place("constant", "value", first, last, ("0", "1"))
        yield from _parts(code, first, last)


def _parts(code: str, start: int, end: int) -> Iterator[Place]:
    """Yield the places of a condition's parts."""
    if code[start] == "(" and _closing(code, start, end) == end - 1:
        yield from _parts(code, *_trim(code, start + 1, end - 1))
        return
    for separator, lost in (("||", "0"), ("&&", "1")):
        parts = _split(code, start, end, separator)
        if len(parts) > 1:
            for part in parts:
                yield Place("negate", "negate", *part)
                yield Place("constant", "value", *part, (lost,))
                yield from _parts(code, *part)
            return
    relations = list(_outside(_RELATION, code, start, end))
    if len(relations) == 1 and not any(_outside(re.compile(r"[?]|(?<!\|)="), code, start, relations[0].start())):
        (relation,) = relations
        other = code[start : relation.start()] + _OFF_BY_ONE[relation[1]] + code[relation.end() : end]
        yield Place("boundary", "value", start, end, (_one_line(other),))


def _statements(code: str, start: int, end: int) -> Iterator[Place]:
    back = "return;" if _returns_nothing(code, start) else "return 0;"
    for line in re.finditer(r"^[ \t]*(?=[^\s#])", code[start:end], re.MULTILINE):
        first = start + line.end()
        last = _end(code, first, end)
        if last is None or not _begins(code, start, first):
            continue
        text = code[first:last]
        word = _WORD.match(text)
        if word is None and text[0] not in "*(+-":
            continue
        if word is not None and (word[0] in _NOT_SIMPLE or re.match(r"\w+[ \t]*:", text)):
            continue
        yield from _simple(code, first, last, word[0] if word else "", back)


def _simple(code: str, first: int, last: int, word: str, back: str) -> Iterator[Place]:
    """Yield the places of a statement that begins with a word."""
    text = code[first:last]
    if word == "return":
        yield Place("delete", "skip", first, last)
        yield from _values(code, *_trim(code, first + len(word), last - 1))
        return
    leaves = word in ("goto", "break", "continue")
    if leaves or not (_DECLARATION.match(text) or _BESIDE.match(text)):
        yield Place("delete", "skip", first, last)
        # Before one that leaves anyway, a return would mostly forget what is undone at the end.
        if not leaves:
            yield Place("return", "before", first, last, (back,))
    assignments = list(_outside(_ASSIGNMENT, code, first, last))
    if len(assignments) == 1:
        yield from _values(code, *_trim(code, assignments[0].end(), last - 1))


def _values(code: str, start: int, end: int) -> Iterator[Place]:
    """Yield the places of an expression whose value is kept or returned."""
    text = _one_line(code[start:end])
    if not text or text.startswith("{") or '"' in text:
        return
    constants = tuple(one for one in _CONSTANTS if one != text)
    yield Place("constant", "value", start, end, constants)
    if any(_outside(re.compile(r"[?]|&&|\|\||[<>=!]="), code, start, end)):
        return
    for separator in "|&":
        parts = _split(code, start, end, separator)
        if len(parts) > 1 and all(first < last for first, last in parts):
            texts = [_one_line(code[first:last]) for first, last in parts]
            without = [f" {separator} ".join(texts[:lost] + texts[lost + 1 :]) for lost in range(len(texts))]
            yield Place("mask", "value", start, end, tuple(without))
            return
    if not re.fullmatch(r"-?\w+", text):
        yield Place("mask", "value", start, end, (f"({text}) & ~1ULL",))


def _one_line(code: str) -> str:
    return " ".join(code.split())


def _returns_nothing(code: str, start: int) -> bool:
    """Whether the function whose body begins at a position is void."""
    head = code[max(code.rfind("\n}", 0, start), code.rfind(";", 0, start)) + 1 : start]
    return re.search(r"\bvoid\s+(?!\*)(?:\w+\s+)*\w+\s*\(", head) is not None


def _end(code: str, first: int, end: int) -> int | None:
    """Return where a statement ends, behind its semicolon; None for what has a block."""
    depth = 0
    for position in range(first, end):
        letter = code[position]
        if letter in "{}" and depth == 0:
            return None
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if letter == ";" and depth == 0:
            return position + 1
        if depth < 0:
            return None
    return None


def _begins(code: str, start: int, first: int) -> bool:
    """Whether a statement begins at a position, going by what is before it."""
    before = code[start:first].rstrip()
    if not before or before[-1] in ";{}":
        return True
    if re.search(r"\b(?:else|do)$", before):
        return True
    if before[-1] == ":":
        return _LABEL.search(before) is not None
    if before[-1] != ")":
        return False
    depth = 0
    for position in range(len(before) - 1, -1, -1):
        depth += (before[position] in _CLOSE) - (before[position] in _OPEN)
        if depth == 0:
            return _CONTROL.search(before[:position]) is not None
    return False
