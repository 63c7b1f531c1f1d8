# SPDX-License-Identifier: Apache-2.0
"""Canonical CBOR (RFC 8949) of plain values: one value has one encoding, and nothing else is decoded.

Plain values are numbers from 0 to 2**64 - 1, bytes, text, arrays, and maps whose keys are all numbers or all
text. For these the two orders of keys that RFC 7049 (3.9) and RFC 8949 (4.2.1) call canonical are the same, so
every release of cbor2 writes the same bytes.
"""

from __future__ import annotations

from typing import Any

import cbor2

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "Allowance", "NotCanonical", "decode", "encode"]

MAX_DEPTH = 8
MAX_ITEMS = 1 << 16
_NUMBER, _BYTES, _TEXT, _ARRAY, _MAP = 0, 2, 3, 4, 5
_PLAIN = (_NUMBER, _BYTES, _TEXT, _ARRAY, _MAP)


class NotCanonical(ValueError):
    """These bytes are not a canonical encoding of a plain value; the message says where and why."""


class Allowance:
    """How many items may still be decoded: an item of a byte becomes an object of fifty."""

    def __init__(self, left: int = MAX_ITEMS) -> None:
        self.left = left


def encode(value: Any) -> bytes:
    """Return the one encoding of a plain value."""
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, allowance: Allowance | None = None) -> Any:
    """Return the value of an encoding; NotCanonical if another encoding of it is shorter or in order.

    cbor2 sees only what the scan let pass: no tags, nothing of indefinite length, no length beyond the end, at
    most MAX_DEPTH levels and MAX_ITEMS items, and no more than are left of the ``allowance``, which they are taken
    from. Before cbor2 6 it has no such limits of its own.
    """
    most = MAX_ITEMS if allowance is None else min(MAX_ITEMS, allowance.left)
    items = _scan(data, most)
    if allowance is not None:
        allowance.left -= items
    try:
        value = cbor2.loads(data)
        again = encode(value)
    except (cbor2.CBORError, ValueError, OverflowError) as error:
        raise NotCanonical(f"CBOR that cannot be decoded ({error})") from error
    if again != data:
        raise NotCanonical("CBOR that is not in its canonical form")
    return value


def _scan(data: bytes, most: int) -> int:
    """Walk over all heads without building anything, and return how many there are."""
    # What is open: (items left in it, is a map, major type of its keys or None before the first).
    levels: list[tuple[int, bool, int | None]] = [(1, False, None)]
    position = items = 0
    while levels:
        left, is_map, keys = levels.pop()
        if not left:
            continue
        major, count, position = _head(data, position)
        items += 1
        if items > most:
            raise NotCanonical(f"CBOR with more than {most} items, which are all that it may have here")
        if is_map and left % 2 == 0:
            if major not in (_NUMBER, _TEXT) or keys not in (None, major):
                raise NotCanonical(f"CBOR map at byte {position} whose keys are not all numbers or all text")
            keys = major
        levels.append((left - 1, is_map, keys))
        if major in (_BYTES, _TEXT):
            position += count
            if position > len(data):
                raise NotCanonical(f"CBOR string that extends {position - len(data)} bytes beyond the end")
        elif major in (_ARRAY, _MAP):
            inside = count * (2 if major == _MAP else 1)
            if inside > len(data) - position:
                raise NotCanonical(f"CBOR container of {count} items in {len(data) - position} bytes")
            if len(levels) > MAX_DEPTH:
                raise NotCanonical(f"CBOR nested deeper than {MAX_DEPTH} levels")
            levels.append((inside, major == _MAP, None))
    if position != len(data):
        raise NotCanonical(f"CBOR with {len(data) - position} bytes beyond its value")
    return items


def _head(data: bytes, position: int) -> tuple[int, int, int]:
    """Return major type, argument and where the item's content begins."""
    if position >= len(data):
        raise NotCanonical("CBOR that ends inside a value")
    first = data[position]
    major, short = first >> 5, first & 0x1F
    if major not in _PLAIN:
        raise NotCanonical(f"CBOR of major type {major} at byte {position}, which has no place here")
    position += 1
    if short < 24:
        return major, short, position
    if short > 27:
        raise NotCanonical(f"CBOR of indefinite or reserved length at byte {position - 1}")
    end = position + (1 << short - 24)
    if end > len(data):
        raise NotCanonical("CBOR that ends inside a value")
    return major, int.from_bytes(data[position:end], "big"), end
