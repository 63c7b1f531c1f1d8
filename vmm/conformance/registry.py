# SPDX-License-Identifier: Apache-2.0
"""The clause registry: one function, one record."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.arch import ARCHITECTURE

if TYPE_CHECKING:
    from vmm.conformance.context import Context
    from vmm.conformance.needs import Need

__all__ = ["Clause", "all_clauses", "clause", "matching", "select"]

Function = Callable[["Context"], None]


@dataclass(frozen=True, slots=True)
class Clause:
    """A statement of the ABI with the function that checks it.

    ``statement`` is the docstring's first paragraph, ``source`` what follows "Source:". ``info`` clauses record and
    never fail. ``dangerous`` ones could harm an unfixed host and run only when asked for. Which release brought a
    behaviour is not a field: releases are backported, so a need measures the behaviour's own sign, and a release that
    lacks it by fault has an expectation.
    """

    id: str
    function: Function
    arch: str
    needs: tuple[Need, ...]
    info: bool
    dangerous: bool
    statement: str
    source: str
    timeout: float

    @property
    def area(self) -> str:
        """The id up to its first dot."""
        return self.id.split(".")[0]


# By architecture and id: what is stated of two architectures has one id.
_clauses: dict[tuple[str, str], Clause] = {}


def clause(
    identifier: str,
    *,
    arch: str,
    needs: Iterable[Need] = (),
    info: bool = False,
    dangerous: bool = False,
    timeout: float = 10.0,
) -> Callable[[Function], Function]:
    """Register a function as a clause. Its docstring needs a first paragraph and a "Source:" line.

    The function gets a Context, returns nothing when the clause holds, and raises a Violation (through
    vmm.conformance.expect) when it does not. ``timeout`` is in seconds.
    """

    def register(function: Function) -> Function:
        text = inspect.getdoc(function) or ""
        statement = " ".join(text.split("\n\n")[0].split())
        source = re.search(r"^Source: (.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
        if not statement or not source or statement.startswith("Source:"):
            raise ValueError(f"clause {identifier}: the docstring needs a statement and a 'Source:' line")
        if (arch, identifier) in _clauses:
            raise ValueError(f"clause {identifier} is registered twice")
        cited = " ".join(source[1].split())
        _clauses[arch, identifier] = Clause(
            identifier, function, arch, tuple(needs), info, dangerous, statement, cited, timeout
        )
        return function

    return register


def all_clauses(arch: str = ARCHITECTURE) -> list[Clause]:
    """Import every clause module of an architecture and return its clauses, area by area, as they were written."""
    name = f"vmm.conformance.clauses.{arch}"
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return []
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{name}.{module.name}")
    chosen = [found for found in _clauses.values() if found.arch == arch]
    # An area may have several modules; reports show it in one piece.
    areas = list(dict.fromkeys(found.area for found in chosen))
    return sorted(chosen, key=lambda found: areas.index(found.area))


def matching(patterns: Iterable[str], identifiers: Iterable[str]) -> list[str]:
    """Return the ids that match one of the shell patterns (all if there is none).

    Raises LookupError for a pattern that matches nothing, so that a typing error is not a success.
    """
    wanted, known = list(patterns), list(identifiers)
    for pattern in wanted:
        if not fnmatch.filter(known, pattern):
            raise LookupError(f"no clause matches {pattern!r}: `vmm check --list` shows them all")
    return [name for name in known if not wanted or any(fnmatch.fnmatchcase(name, p) for p in wanted)]


def select(patterns: Iterable[str], clauses: list[Clause]) -> list[Clause]:
    """Return the clauses whose ids match; see matching."""
    chosen = set(matching(patterns, (found.id for found in clauses)))
    return [found for found in clauses if found.id in chosen]
