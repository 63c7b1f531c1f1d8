# SPDX-License-Identifier: Apache-2.0
"""The fields of one piece under one property: which were judged, which not and why, and which are wrong."""

from __future__ import annotations

from typing import Any

from vmm.conformance.context import Context
from vmm.conformance.expect import Finding, Violation, looks
from vmm.conformance.texts import text
from vmm.state.world.row import Allowed, fits

__all__ = ["Tally"]

_NAMED = 4
NO_ROW = "this version has no row for it"


class Tally:
    """Looks at all fields before it says what is wrong, so that one fault does not hide the next.

    ``piece`` names what the fields are of, as a failure shows it; without it their names have that in front. Used as
    a context manager, it raises the Violation at its end. A field that was looked at several times is one pair of
    field and property.
    """

    def __init__(self, context: Context, piece: str = "") -> None:
        self._context, self._prefix = context, f"{piece}." if piece else ""
        self._judged: set[str] = set()
        self._untold: dict[str, str] = {}
        self._wrong: dict[str, Finding] = {}

    def look(self, field: str, where: str, observed: int | None, expected: int | Allowed) -> None:
        """A field has to have this value; ``where`` says when or by which call it was read."""
        self._judged.add(field)
        if not fits(observed, expected):
            shown = text(expected) if isinstance(expected, int) else str(expected)
            self.wrong(field, where, text(observed), shown)

    def wrong(self, field: str, where: str, observed: str, expected: str) -> None:
        """A field is not as it has to be; the first finding of each counts."""
        self._judged.add(field)
        self._wrong.setdefault(field, Finding(f"{self._prefix}{field} {where}", expected, observed))

    def judged(self, field: str) -> None:
        """A field is as it has to be."""
        self._judged.add(field)

    def untold(self, field: str, reason: str) -> None:
        """A field cannot be judged, for this reason."""
        self._untold.setdefault(field, reason)

    def __enter__(self) -> Tally:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        looks.count += len(self._judged)
        reasons: dict[str, list[str]] = {}
        for field, reason in self._untold.items():
            if field not in self._judged:
                reasons.setdefault(reason, []).append(f"{self._prefix}{field}")
        self._context.cover(len(self._judged), reasons)
        if kind is None and self._wrong:
            raise _violation(list(self._wrong.values()))


def _violation(found: list[Finding]) -> Violation:
    first = found[0]
    if len(found) == 1:
        return Violation(first.what, first.expected, first.observed, fields=found)
    names = ", ".join(one.what.split(" ")[0] for one in found[1:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return Violation(f"{first.what} (also {names}{more})", first.expected, first.observed, fields=found)
