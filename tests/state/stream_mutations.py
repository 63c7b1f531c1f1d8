# SPDX-License-Identifier: Apache-2.0
"""Changes to a valid stream, from a flipped bit to a lie under right digests; each takes a random source."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import cbor2
import zstandard

from tests.state.sealed import Piece, Sealed
from vmm.state.stream.container import LIMITS

__all__ = ["BLIND", "SEALED", "mutate"]

_NUMBERS = (0, 1, 2, 7, 8, 63, 64, 255, 4095, 4096, 1 << 20, (1 << 31) - 1, 1 << 32, 1 << 52, 1 << 63, (1 << 64) - 1)
# Where an XSAVE area, CPUID and the structures have what decides.
_OFFSETS = (0, 8, 16, 24, 28, 464, 512, 514, 519, 520, 527, 528, 575, 576, 2688, 2752, 2816)

Source = random.Random


# --- bytes, without a thought for digests ---------------------------------------------------------


def _flip(source: Source, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 8))):
        if changed:
            changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
    return bytes(changed)


def _cut(source: Source, data: bytes) -> bytes:
    return data[: source.randrange(len(data) + 1)]


def _remove(source: Source, data: bytes) -> bytes:
    start = source.randrange(len(data) + 1)
    return data[:start] + data[start + source.choice((1, 4, 8, 32, 1000)) :]


def _insert(source: Source, data: bytes) -> bytes:
    start = source.randrange(len(data) + 1)
    return data[:start] + source.randbytes(source.choice((1, 4, 8, 32, 200))) + data[start:]


def _repeat(source: Source, data: bytes) -> bytes:
    start = source.randrange(len(data) + 1)
    piece = data[start : start + source.choice((1, 8, 48, 500))]
    at = source.randrange(len(data) + 1)
    return data[:at] + piece + data[at:]


def _number(source: Source, data: bytes) -> bytes:
    at = source.choice(_OFFSETS) if source.random() < 0.5 else source.randrange(len(data) + 1)
    size = source.choice((1, 2, 4, 8))
    value = source.choice(_NUMBERS) if source.random() < 0.7 else 1 << source.randrange(64)
    return data[:at] + (value & (1 << 8 * size) - 1).to_bytes(size, "little") + data[at + size :]


BLIND: tuple[Callable[[Source, bytes], bytes], ...] = (_flip, _cut, _remove, _insert, _repeat, _number)


# --- values inside canonical CBOR -----------------------------------------------------------------


def _other(source: Source, value: Any) -> Any:
    """Something else in a value's place, mostly of its type."""
    if source.random() < 0.1:
        return source.choice([0, b"", "", [], {}, {"raw": b"x"}, {1: b"x"}, [[0, 4096]]])
    if isinstance(value, int):
        return source.choice((source.choice(_NUMBERS), value ^ 1 << source.randrange(64), value + 1, abs(value - 1)))
    if isinstance(value, bytes):
        return source.choice((_flip, _number, _cut, _insert, _remove))(source, value)
    if isinstance(value, str):
        return source.choice((value + "X", value[1:], "", "VMCONFIG", "REGS", "\x1b[2J", "ü" * 40, value.lower()))
    if isinstance(value, list):
        at = source.randrange(len(value) + 1)
        return source.choice(
            (value[:at] + value[at + 1 :], value[:at] + value[:1] + value[at:], value[::-1], value * 2)
        )
    items = dict(value)
    if items and source.random() < 0.5:
        del items[source.choice(list(items))]
    elif items:
        key = source.choice(list(items))
        items[_other(source, key) if not isinstance(key, bytes) else key] = source.choice(list(items.values()))
    else:
        items["new"] = 1
    return items


def _edit(source: Source, value: Any) -> Any:
    """A value with one node, anywhere in it, replaced."""
    if isinstance(value, list) and value and source.random() < 0.85:
        at = source.randrange(len(value))
        return [*value[:at], _edit(source, value[at]), *value[at + 1 :]]
    if isinstance(value, dict) and value and source.random() < 0.85:
        key = source.choice(list(value))
        return {**value, key: _edit(source, value[key])}
    return _other(source, value)


def _encoded(source: Source, value: Any) -> bytes:
    try:
        if source.random() < 0.05:
            return cbor2.dumps(cbor2.CBORTag(source.choice((0, 2, 28, 29, 258)), value))
        return cbor2.dumps(value, canonical=source.random() < 0.95)
    except (cbor2.CBOREncodeError, TypeError):  # a map's key that is a container
        return b"\xa0"


# --- sections, sealed again -----------------------------------------------------------------------


def _one(source: Source, stream: Sealed) -> Piece:
    return source.choice(stream.pieces) if stream.pieces else Piece("NOTE", 0, b"")


def _edit_header(source: Source, stream: Sealed) -> None:
    stream.header = _encoded(source, _edit(source, cbor2.loads(stream.header)))


def _edit_body(source: Source, stream: Sealed) -> None:
    piece = _one(source, stream)
    if piece.kind != "MEMORY":
        piece.body = _encoded(source, _edit(source, cbor2.loads(piece.body)))


def _edit_raw(source: Source, stream: Sealed) -> None:
    """Change what KVM would be given, and leave the shape."""
    piece = _one(source, stream)
    if piece.kind in ("MEMORY", "VMCONFIG"):
        return
    value = cbor2.loads(piece.body)
    value.pop("fields", None)
    if "raw" in value:
        change = source.choice((_flip, _number))
        value["raw"] = change(source, value["raw"])[: len(value["raw"])]
    else:
        number = source.choice(list(value["registers"]))
        data = _number(source, value["registers"].pop(number))[:8] if source.random() < 0.5 else bytes(8)
        value["registers"][number if source.random() < 0.5 else _other(source, number) & (1 << 64) - 1] = data
    piece.body = cbor2.dumps(value, canonical=True)


def _damage_body(source: Source, stream: Sealed) -> None:
    piece = _one(source, stream)
    piece.body = source.choice(BLIND)(source, piece.body)


def _damage_header(source: Source, stream: Sealed) -> None:
    stream.header = source.choice(BLIND)(source, stream.header)


@cache
def _zeros(size: int) -> bytes:
    """A frame that is small and gives much."""
    return zstandard.ZstdCompressor().compress(bytes(size))


def _edit_memory(source: Source, stream: Sealed) -> None:
    found = [piece for piece in stream.pieces if piece.kind == "MEMORY" and len(piece.body) >= 16]
    if not found:
        return
    piece = source.choice(found)
    gpa, length, encoding = struct.unpack_from("<QII", piece.body)
    data = piece.body[16:]
    choice = source.randrange(6)
    if choice == 0:
        gpa = source.choice((gpa ^ 1 << source.randrange(64), gpa + 4096, 0, source.choice(_NUMBERS)))
    elif choice == 1:
        length = source.choice(
            (length ^ 1 << source.randrange(32), length + 4096, 0, source.choice(_NUMBERS) & 0xFFFFFFFF)
        )
    elif choice == 2:
        encoding = source.choice((0, 1, 2, 1 << 31))
    elif choice == 3:
        length = source.choice((4096, 8192, 1 << 20))
        data, encoding = source.choice((_zeros(length), _zeros(length), _zeros(64 << 20))), 1
    elif choice == 4:
        data = source.choice(BLIND)(source, data)
    else:
        data, encoding = source.randbytes(length & 0xFFFFF), 0
    piece.body = struct.pack("<QII", gpa, length, encoding) + data


def _drop(source: Source, stream: Sealed) -> None:
    if stream.pieces:
        del stream.pieces[source.randrange(len(stream.pieces))]


def _duplicate(source: Source, stream: Sealed) -> None:
    stream.pieces.insert(source.randrange(len(stream.pieces) + 1), _one(source, stream).copy())


def _swap(source: Source, stream: Sealed) -> None:
    if len(stream.pieces) > 1:
        first, second = source.sample(range(len(stream.pieces)), 2)
        stream.pieces[first], stream.pieces[second] = stream.pieces[second], stream.pieces[first]


def _rename(source: Source, stream: Sealed) -> None:
    kinds = ("REGS", "XSAVE", "MEMORY", "VMCONFIG", "END", "NESTED", b"\xff\0\xff", b"", "lower")
    _one(source, stream).kind = source.choice((*kinds, _one(source, stream).kind))


def _renumber(source: Source, stream: Sealed) -> None:
    _one(source, stream).index = source.choice((0, 1, 2, 255, (1 << 32) - 1))


def _reflag(source: Source, stream: Sealed) -> None:
    piece = _one(source, stream)
    piece.flags, piece.zero = source.choice(((0, 0), (2, 0), (1, 1), (1 << 15, 0), (1, 0)))


def _lie_about_length(source: Source, stream: Sealed) -> None:
    _one(source, stream).length = source.choice((*_NUMBERS, LIMITS.section, LIMITS.section + 1))


def _add(source: Source, stream: Sealed) -> None:
    for _ in range(source.choice((1, 1, 1, 50))):
        piece = Piece(source.choice(("NOTE", "NESTED", "A")), 0, source.randbytes(20), source.choice((0, 0, 0, 1)))
        stream.pieces.insert(source.randrange(len(stream.pieces) + 1), piece)


def _change_architecture(source: Source, stream: Sealed) -> None:
    stream.arch, stream.format, stream.flags = source.choice(((1, 1, 0), (2, 1, 0), (0, 1, 0), (1, 2, 0), (1, 1, 1)))


def _recompress(source: Source, stream: Sealed) -> None:
    """The same pages in another way: an equal state."""
    for piece in stream.pieces:
        if piece.kind == "MEMORY" and len(piece.body) > 16:
            gpa, length, encoding = struct.unpack_from("<QII", piece.body)
            if encoding == 1:
                try:
                    if zstandard.get_frame_parameters(piece.body[16:]).content_size > 1 << 20:
                        continue
                    data = zstandard.ZstdDecompressor().decompress(piece.body[16:])
                except zstandard.ZstdError:
                    continue
                piece.body = struct.pack("<QII", gpa, length, 0) + data


# Often what leaves the shape as it is: that is what reaches validation.
SEALED: tuple[Callable[[Source, Sealed], None], ...] = (
    *(_edit_raw,) * 6, _edit_header, _edit_body, _damage_body, _damage_header, _edit_memory, _drop, _duplicate, _swap,
    _rename, _renumber, _reflag, _lie_about_length, _add, _change_architecture, _recompress,
)  # fmt: skip


def mutate(source: Source, data: bytes) -> tuple[str, bytes]:
    """Return the names of some changes, and a stream with them."""
    names, changed = [], data
    if source.random() < 0.8:
        stream = Sealed.open(data)
        for _ in range(source.choice((1, 1, 1, 2, 3))):
            change = source.choice(SEALED)
            names.append(change.__name__)
            try:
                change(source, stream)
            except (cbor2.CBORError, AttributeError, KeyError, TypeError, ValueError, IndexError, struct.error):
                names.append("(broken before)")
        lie = source.random()
        count = source.choice(_NUMBERS) if lie < 0.02 else None
        changed = stream.seal(count=count, digest=source.randbytes(32) if 0.02 < lie < 0.03 else None)
    if not names or source.random() < 0.05:
        blind = source.choice(BLIND)
        names.append(blind.__name__)
        changed = blind(source, changed)
    return " ".join(names), changed
