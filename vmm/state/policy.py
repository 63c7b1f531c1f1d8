# SPDX-License-Identifier: Apache-2.0
"""What a caller can live with when a KVM refuses registers of a state."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from vmm.state.errors import StateRefused

__all__ = ["Policy"]


_SHOWN = 6


def _sentence(refusals: Iterable[tuple[str, str]]) -> str:
    """Say what was refused, the names with the same reason together."""
    names: dict[str, list[str]] = {}
    for name, why in refusals:
        names.setdefault(why, []).append(name)
    parts = []
    for why, group in names.items():
        more = f" and {len(group) - _SHOWN} more" if len(group) > _SHOWN else ""
        parts.append(f"{', '.join(group[:_SHOWN])}{more}: {why}")
    more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return "; ".join(parts[:_SHOWN]) + more


class Policy:
    """Which refusals of registers the caller can live with: patterns of names such as ``MSRS.KVM_*``.

    A register that this KVM has and the state lacks keeps its reset value: with ``foreign``, a state that
    another kernel saved, that is worth a note; a state of this very kernel has lost something. What was
    tolerated is in ``notes``, one sentence per register.
    """

    def __init__(self, tolerate: Iterable[str] = (), *, foreign: bool = False) -> None:
        self.tolerate = tuple(tolerate)
        self.foreign = foreign
        self.notes: list[str] = []

    def missing(self, names: Iterable[tuple[str, str]]) -> None:
        """Note, or refuse, registers that the state lacks; pairs of name and what this KVM has."""
        why = "not in the saved state; keeps its reset value"
        found = [(name, f"{why}{f' ({value})' if value else ''}") for name, value in names]
        if self.foreign:
            self.notes += [f"{name}: {text}" for name, text in found]
        else:
            self.refuse_all(found)

    def refuse(self, name: str, why: str) -> None:
        """Note the refusal of ``name`` if it is tolerated, else raise StateRefused."""
        self.refuse_all([(name, why)])

    def refuse_all(self, refusals: Iterable[tuple[str, str]]) -> None:
        """Note those refusals that are tolerated; raise StateRefused that names all others."""
        fatal = []
        for name, why in refusals:
            if any(fnmatchcase(name, pattern) for pattern in self.tolerate):
                self.notes.append(f"{name}: {why}")
            else:
                fatal.append((name, why))
        if fatal:
            raise StateRefused(_sentence(fatal), fatal)
