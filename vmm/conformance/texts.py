# SPDX-License-Identifier: Apache-2.0
"""Values as a failure shows them: in the ABI's terms, and long ones only where they differ."""

from __future__ import annotations

from typing import Any

__all__ = ["pair", "text"]

# Items of a list, and bytes around one that differs, that are shown.
_SHOWN, _WINDOW = 8, 16


def text(value: Any) -> str:
    """A value for people, in the ABI's terms and never in Python's."""
    if value is None:
        return "nothing"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:#x}" if abs(value) > 9 else str(value)
    if isinstance(value, bytes):
        return value.hex(" ", 4) if len(value) <= 64 else f"{value[:64].hex(' ', 4)}... ({len(value)} bytes)"
    if hasattr(value, "_fields"):  # an exit: it says by itself what it is
        return str(value)
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else list(value)
        more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
        return "[" + ", ".join(text(item) for item in items[:_SHOWN]) + more + "]"
    shown = str(value)
    return type(value).__name__ if shown == object.__repr__(value) else shown


def pair(expected: Any, observed: Any) -> tuple[str, str]:
    """Two values that differ: of long ones only where they do."""
    if isinstance(expected, bytes) and isinstance(observed, bytes) and len(expected) == len(observed) > _WINDOW:
        return _bytes(expected, observed)
    lists = isinstance(expected, list | tuple) and isinstance(observed, list | tuple)
    if lists and max(len(expected), len(observed)) > _SHOWN:
        return _items(list(expected), list(observed))
    return text(expected), text(observed)


def _bytes(expected: bytes, observed: bytes) -> tuple[str, str]:
    """The words around the first byte that differs, and how many do."""
    different = [at for at, (one, other) in enumerate(zip(expected, observed, strict=True)) if one != other]
    start = max(0, different[0] // 4 * 4 - 4)
    part = slice(start, start + _WINDOW)
    where = f"bytes {start} to {min(start + _WINDOW, len(expected)) - 1} of {len(expected)}"
    count = f"{len(different)} differ" if len(different) > 1 else "1 differs"
    first = f"{count}, the first is byte {different[0]}"
    return f"{expected[part].hex(' ', 4)} ({where})", f"{observed[part].hex(' ', 4)} ({first})"


def _items(expected: list[Any], observed: list[Any]) -> tuple[str, str]:
    """What is in only one of two lists, or where their order begins to differ."""
    missing = [item for item in expected if item not in observed]
    beyond = [item for item in observed if item not in expected]
    if missing or beyond:
        lacks = [f"without {text(missing)}"] * bool(missing) + [f"with {text(beyond)} beyond them"] * bool(beyond)
        return f"{len(expected)} items", f"{len(observed)}, {', '.join(lacks)}"
    at = next((at for at, pair in enumerate(zip(expected, observed, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        return f"{len(expected)} items", f"{len(observed)}, the same ones more or less often"
    return f"{text(expected[at])} as item {at} of {len(expected)}", f"{text(observed[at])} there"
