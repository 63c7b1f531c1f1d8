# SPDX-License-Identifier: Apache-2.0
"""Draws faults at random from a source of the kernel, in the form of the tables of ``tests.kernels.table``.

Which functions are KVM's state handling is declared, a file for each architecture, in ``drawn/*.toml``. A draw takes
an operator, then one of the places where it can be applied in all of these functions: each has the same chance. The
same seed draws the same faults from the same source.
"""

from __future__ import annotations

import fnmatch
import json
import random
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.draw_places import Place, places
from tests.kernels.patch import Edit, Misplaced, blank, find_function, locate

__all__ = ["FOLDER", "Drawn", "Target", "anchor", "draw", "functions", "load_targets", "write"]

FOLDER = Path(__file__).parent / "drawn"
_DEFINITION = re.compile(r"^(?![\s#}])(?P<before>[^\n;={}]*?)\b(?P<name>\w+)\([^;{}]*\)\s*\{", re.MULTILINE)
#: What runs when a module is loaded or not at all: a fault in it cannot be turned on later.
_AT_LOAD = re.compile(r"\b__(?:init|exit)\b")
#: By how much more the surroundings of a place are taken into its anchor until it matches once.
_STEP = 12


@dataclass(frozen=True)
class Target:
    """Functions of one file of the kernel that handle state, as globs, and the machines where they run."""

    file: str
    functions: Sequence[str]
    machines: Sequence[str]
    but: Sequence[str] = ()


@dataclass(frozen=True)
class Drawn:
    """A fault that has been drawn."""

    operator: str
    edit: Edit
    line: int
    does: str
    machines: Sequence[str]


def load_targets(architecture: str, folder: Path = FOLDER) -> list[Target]:
    """Return what is declared to be state handling of an architecture, as vmm.arch calls it."""
    table = tomllib.loads((folder / f"{architecture}.toml").read_text())
    return [
        Target(entry["file"], tuple(entry["functions"]), tuple(entry["machines"]), tuple(entry.get("but", ())))
        for entry in table["target"]
    ]


def functions(source: str, target: Target) -> list[str]:
    """Return the functions of a source that a target is about, but for those that it has twice."""
    found = []
    for match in _DEFINITION.finditer(blank(source)):
        name = match["name"]
        wanted = any(fnmatch.fnmatchcase(name, glob) for glob in target.functions)
        if (
            not wanted
            or any(fnmatch.fnmatchcase(name, glob) for glob in target.but)
            or _AT_LOAD.search(match["before"])
        ):
            continue
        try:
            find_function(source, name)
        except Misplaced:
            continue
        found.append(name)
    return found


def draw(sources: Mapping[str, str], targets: Iterable[Target], seed: int, count: int) -> list[Drawn]:
    """Return faults drawn from sources, fewer than ``count`` where there are no more places."""
    there: dict[str, list[tuple[Target, str, Place]]] = {}
    for target in targets:
        if target.file in sources:
            source = sources[target.file]
            for function in functions(source, target):
                for place in places(source, function):
                    there.setdefault(place.operator, []).append((target, function, place))
    dice = random.Random(seed)
    drawn: list[Drawn] = []
    while len(drawn) < count and there:
        operator = dice.choice(sorted(there))
        target, function, place = there[operator].pop(dice.randrange(len(there[operator])))
        if not there[operator]:
            del there[operator]
        source = sources[target.file]
        edit = Edit(target.file, function, place.how, anchor(source, function, place), dice.choice(place.codes))
        line = source.count("\n", 0, place.start) + 1
        drawn.append(Drawn(operator, edit, line, _does(source, function, line, place, edit.code), target.machines))
    return drawn


def _does(source: str, function: str, line: int, place: Place, code: str) -> str:
    text = " ".join(source[place.start : place.end].split())
    return f"{place.operator} in {function}, line {line}: {text}{f' -> {code}' if code else ''}"


def anchor(source: str, function: str, place: Place) -> str:
    """Return a regular expression that matches once in a function, and whose group is a place.

    As much of what is before the place is in it as it takes.
    """
    start, _ = find_function(source, function)
    where = re.escape(source[place.start : place.end])
    for first in [*range(place.start, start, -_STEP), start]:
        expression = f"{re.escape(source[first : place.start])}({where})"
        try:
            if locate(source, Edit("", function, place.how, expression, "0")) == (place.start, place.end):
                return expression
        except Misplaced:
            continue
    raise Misplaced(f"no expression is about one place of {function} alone: {source[place.start : place.end]!r}")


def write(drawn: Sequence[Drawn], prefix: str, clauses: Sequence[str]) -> str:
    """Return a table of drawn faults."""
    return "\n".join(_entries(drawn, prefix, clauses))


def _entries(drawn: Sequence[Drawn], prefix: str, clauses: Sequence[str]) -> Iterator[str]:
    digits = len(str(len(drawn)))
    for number, fault in enumerate(drawn, start=1):
        edit = {"file": fault.edit.file, "function": fault.edit.function, fault.edit.how: fault.edit.anchor}
        if fault.edit.code:
            edit["code"] = fault.edit.code
        yield "[[fault]]"
        yield f"name = {json.dumps(f'{prefix}-{number:0{digits}}-{fault.operator}')}"
        yield f"does = {json.dumps(fault.does)}"
        yield f"clauses = {json.dumps(list(clauses))}"
        yield f"machines = {json.dumps(list(fault.machines))}"
        yield f"edit = [{{ {', '.join(f'{key} = {json.dumps(value)}' for key, value in edit.items())} }}]"
        yield ""
