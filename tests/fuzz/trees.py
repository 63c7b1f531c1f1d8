# SPDX-License-Identifier: Apache-2.0
"""Changes to a value of maps, arrays, text, bytes and numbers, whatever it is encoded in."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

__all__ = ["Leaf", "changed"]

Leaf = Callable[[bytes], bytes]
_NUMBERS = (
    0,
    1,
    2,
    3,
    15,
    16,
    63,
    64,
    255,
    4095,
    4096,
    1 << 20,
    (1 << 31) - 1,
    1 << 32,
    1 << 52,
    1 << 63,
    (1 << 64) - 1,
)
_OTHERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    b"",
    "",
    "0x1",
    [],
    {},
    None,
    True,
    1.5,
    [[0, 4096]],
    {"": 0},
    {1: b"x"},
    "\x1b[2J",
)
_STOP = 0.2


def changed(source: random.Random, value: Any, leaf: Leaf) -> Any:
    """Return the value with one thing in it changed; ``leaf`` changes bytes. What an encoding lacks may come out."""
    if isinstance(value, dict) and value:
        if source.random() < _STOP:
            return _other_map(source, value)
        key = source.choice(list(value))
        return {**value, key: changed(source, value[key], leaf)}
    if isinstance(value, list) and value:
        if source.random() < _STOP:
            return _other_list(source, value)
        at = source.randrange(len(value))
        return [*value[:at], changed(source, value[at], leaf), *value[at + 1 :]]
    if source.random() < 0.15:
        return source.choice(_OTHERS)
    return _other(source, value, leaf)


def _other_map(source: random.Random, value: dict[Any, Any]) -> dict[Any, Any]:
    key, other = source.choice(list(value)), source.choice(list(value))
    found = dict(value)
    kind = source.randrange(4)
    if kind == 0:
        del found[key]
    elif kind == 1:
        found[key] = value[other]
    elif kind == 2:
        found[source.choice(_NUMBERS) if isinstance(key, int) else str(key) + "X"] = found.pop(key)
    else:
        found[source.choice(_NUMBERS) if isinstance(key, int) else f"{key}{source.randrange(100)}"] = value[other]
    return found


def _other_list(source: random.Random, value: list[Any]) -> list[Any]:
    at, other = source.randrange(len(value)), source.randrange(len(value))
    kind = source.randrange(4)
    if kind == 0:
        return value[:at] + value[at + 1 :]
    if kind == 1:
        return [*value[:at], value[other], *value[at:]]
    if kind == 2:
        return [*value, *value[:at]]
    return source.sample(value, len(value))


def _other(source: random.Random, value: Any, leaf: Leaf) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, float):
        return source.choice(_OTHERS)
    if isinstance(value, int):
        return source.choice((source.choice(_NUMBERS), value ^ 1 << source.randrange(64), value + 1, abs(value - 1)))
    if isinstance(value, bytes):
        return leaf(value)
    if isinstance(value, str) and value.startswith("0x") and source.random() < 0.8:
        return _hexadecimal(source, value)
    return leaf(str(value).encode()).decode("utf-8", "replace")


def _hexadecimal(source: random.Random, value: str) -> str:
    try:
        number = int(value, 16)
    except ValueError:
        return "0x0"
    return f"{source.choice((source.choice(_NUMBERS), number ^ 1 << source.randrange(64))):#x}"
