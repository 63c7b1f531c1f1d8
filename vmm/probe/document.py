# SPDX-License-Identifier: Apache-2.0
"""The document that ``vmm probe --json`` writes, and the reading of one that somebody else wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, cast

from vmm.arch import module

if TYPE_CHECKING:
    from vmm.kvm.system import Kvm
    from vmm.probe.host import Host

__all__ = ["SCHEMA", "VERSION", "ProbeError", "Section", "Survey", "document", "lines"]


# The name and number of what `vmm probe --json` writes. A key that changes its meaning raises the number.
SCHEMA, VERSION = "vmm-probe", 1
_ALL = (1 << 64) - 1
_HEXADECIMAL = re.compile(r"0x[0-9a-f]{1,16}")


class ProbeError(Exception):
    """A file is not a usable probe; the message says where it is wrong."""


class Section:
    """A JSON object that somebody else wrote, taken apart with all that is expected of it stated.

    ``where`` names it in the sentence of a ProbeError. Strings are printable and short, numbers unsigned and
    of 64 bits at most, lists and objects bounded.
    """

    MOST = 4096
    LONGEST = 256

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ProbeError(f"{where} is not a JSON object")
        if len(value) > self.MOST:
            raise ProbeError(f"{where} has more than {self.MOST} entries")
        self._value: dict[str, Any] = value
        self.where = where

    def __contains__(self, key: str) -> bool:
        """Is there the key, though its value may be null?"""
        return key in self._value

    def has(self, key: str) -> bool:
        """Is there a value, and not null?"""
        return self._value.get(key) is not None

    def _get(self, key: str) -> object:
        if not self.has(key):
            raise ProbeError(f"{self.where} has no {key!r}")
        return self._value[key]

    def items(self) -> Iterable[tuple[str, object]]:
        """Return keys and values as they are; every key is printable and short."""
        for key, value in self._value.items():
            yield self._text(key, "a key"), value

    def text(self, key: str) -> str:
        """Return a string."""
        return self._text(self._get(key), repr(key))

    def _text(self, value: object, what: str) -> str:
        if not isinstance(value, str) or len(value) > self.LONGEST or not value.isprintable():
            raise ProbeError(f"{what} of {self.where} is not a printable string of at most {self.LONGEST} characters")
        return value

    def number(self, key: str) -> int:
        """Return a number: a JSON integer, or a string such as ``0x1f``."""
        return self.as_number(self._get(key), repr(key))

    def as_number(self, value: object, what: str) -> int:
        """Return a value of this section as a number."""
        if isinstance(value, str) and _HEXADECIMAL.fullmatch(value):
            return int(value, 16)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _ALL:
            raise ProbeError(f"{what} of {self.where} is not an unsigned number of 64 bits or less")
        return value

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._get(key)
        if not isinstance(value, bool):
            raise ProbeError(f"{key!r} of {self.where} is neither true nor false")
        return value

    def section(self, key: str) -> Section:
        """Return an object inside this one."""
        return Section(self._get(key), f"{key!r} of {self.where}")

    def numbers(self, key: str) -> dict[str, int]:
        """Return an object whose values are numbers."""
        inner = self.section(key)
        return {name: inner.as_number(value, repr(name)) for name, value in inner.items()}

    def _list(self, key: str) -> list[object]:
        value = self._get(key)
        if not isinstance(value, list) or len(value) > self.MOST:
            raise ProbeError(f"{key!r} of {self.where} is not a list of at most {self.MOST} values")
        return value

    def texts(self, key: str) -> list[str]:
        """Return a list of strings."""
        return [self._text(value, f"a value in {key!r}") for value in self._list(key)]

    def list_of_numbers(self, key: str) -> list[int]:
        """Return a list of numbers."""
        return [self.as_number(value, f"a value in {key!r}") for value in self._list(key)]


def document(kvm: Kvm, host: Host) -> dict[str, Any]:
    """Return what ``vmm probe --json`` prints about a measured host."""
    return {"schema": SCHEMA, "version": VERSION, **host.to_json(), **_survey().survey(kvm, host.facts)}


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a document says beyond what Host.lines does, as (name, value) pairs for people."""
    return _survey().lines(found)


class Survey(Protocol):
    """A module ``vmm.probe.ARCHITECTURE.survey``: what takes longer to find out than facts, or leaves a mark."""

    def survey(self, kvm: Kvm, facts: Any) -> dict[str, Any]: ...

    def lines(self, document: dict[str, Any]) -> list[tuple[str, str]]: ...


def _survey() -> Survey:
    return cast(Survey, module("survey", "probe"))
