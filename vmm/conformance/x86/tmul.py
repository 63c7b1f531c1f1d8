# SPDX-License-Identifier: Apache-2.0
"""A reference for the products of AMX, written from the manual: TMM0 += TMM1 * TMM2.

A is TMM1 (16 rows of 64 bytes), B is TMM2 in the same shape with its rows holding groups of four bytes, two 16-bit
numbers or one of 32 bits per column, C is TMM0 with 16 x 16 doublewords. Source: Intel SDM volume 2, TDPBSSD,
TDPBF16PS; Architecture Instruction Set Extensions Programming Reference, TDPFP16PS, TCMMRLFP16PS, TMMULTF32PS.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from itertools import product as pairs
from itertools import starmap
from operator import add, mul

from vmm.conformance.x86.tiles import FULL, TILE, TileImage

__all__ = ["PRODUCTS", "operands"]

_SIZE = 16
_ZEROES: tuple[float, ...] = (0.0,) * 256


def _tile(tiles: bytes, number: int) -> bytes:
    return tiles[number * TILE : (number + 1) * TILE]


def _integer(signed_a: bool, signed_b: bool) -> Callable[[bytes], bytes]:
    """The four INT8 products: 32-bit sums of four byte products, wrapping around."""

    def product(tiles: bytes) -> bytes:
        sums = struct.unpack("<256I", _tile(tiles, 0))
        a = struct.unpack(f"<1024{'b' if signed_a else 'B'}", _tile(tiles, 1))
        b = struct.unpack(f"<1024{'b' if signed_b else 'B'}", _tile(tiles, 2))
        rows = [a[row * 64 : row * 64 + 64] for row in range(_SIZE)]
        # Of each column the bytes in the order in which those of a row meet them.
        columns = [
            [value for group in range(_SIZE) for value in b[group * 64 + column * 4 :][:4]] for column in range(_SIZE)
        ]
        products = (sum(map(mul, row, column)) for row in rows for column in columns)
        return struct.pack("<256I", *(value & 0xFFFFFFFF for value in map(add, sums, products)))

    return product


def _singles(values: Iterable[float]) -> tuple[float, ...]:
    """Round 256 numbers to single precision, to nearest even: one by one they take several times as long."""
    return struct.unpack("<256f", struct.pack("<256f", *values))


def _bf16(tile: bytes) -> list[float]:
    numbers = struct.unpack("<512H", tile)
    return list(struct.unpack("<512f", struct.pack("<512I", *(n << 16 for n in numbers))))


def _fp16(tile: bytes) -> list[float]:
    return list(struct.unpack("<512e", tile))


# What the first and the second of a pair's two sums adds: the element of A, that of B, and the sign.
_Terms = tuple[tuple[int, int, int], tuple[int, int, int]]
_DOT: _Terms = ((0, 0, 1), (1, 1, 1))
_REAL: _Terms = ((0, 0, 1), (1, 1, -1))
_IMAGINARY: _Terms = ((1, 0, 1), (0, 1, 1))


def _pairs(decode: Callable[[bytes], list[float]], terms: _Terms) -> Callable[[bytes], bytes]:
    """Products of pairs of 16-bit numbers: two sums, each step of each with one rounding (fused), added at the end.

    The operands' exponents lie so close that product and sum are exact in double precision, and rounding that
    to single is the one rounding.
    """

    def product(tiles: bytes) -> bytes:
        sums = struct.unpack("<256f", _tile(tiles, 0))
        a, b = decode(_tile(tiles, 1)), decode(_tile(tiles, 2))
        partial = [_ZEROES, _ZEROES]
        for left in range(0, 2 * _SIZE, 2):
            for which, (of_a, of_b, sign) in enumerate(terms):
                column = [sign * value for value in a[left + of_a :: 32]]
                row = b[left * _SIZE + of_b :][:32:2]
                partial[which] = _singles(map(add, partial[which], starmap(mul, pairs(column, row))))
        return struct.pack("<256f", *_singles(map(add, sums, _singles(map(add, *partial)))))

    return product


def _tf32_product(tiles: bytes) -> bytes:
    """A product of matrices of TF32 numbers, each step with one rounding (fused), as of `_pairs`."""
    sums, a, b = (struct.unpack("<256f", _tile(tiles, number)) for number in range(3))
    partial = _ZEROES
    for step in range(_SIZE):
        column, row = a[step::_SIZE], b[step * _SIZE :][:_SIZE]
        partial = _singles(map(add, partial, starmap(mul, pairs(column, row))))
    return struct.pack("<256f", *_singles(map(add, sums, partial)))


PRODUCTS: dict[str, Callable[[bytes], bytes]] = {
    "tdpbssd": _integer(True, True),
    "tdpbsud": _integer(True, False),
    "tdpbusd": _integer(False, True),
    "tdpbuud": _integer(False, False),
    "tdpbf16ps": _pairs(_bf16, _DOT),
    "tdpfp16ps": _pairs(_fp16, _DOT),
    "tcmmrlfp16ps": _pairs(_fp16, _REAL),
    "tcmmimfp16ps": _pairs(_fp16, _IMAGINARY),
    "tmmultf32ps": _tf32_product,
}


# Numbers of moderate size: sums stay normal numbers, so that no rule on denormals decides. Of TF32, whose numbers
# stand in 32 bits, the bits are clear that its rules round away.
def _bf16_operand(source: random.Random) -> bytes:
    numbers = [
        source.choice((0, 0x8000)) | (source.randrange(120, 134) << 7) | source.randrange(128) for _ in range(512)
    ]
    return struct.pack("<512H", *numbers)


def _fp16_operand(source: random.Random) -> bytes:
    numbers = [
        source.choice((0, 0x8000)) | (source.randrange(12, 19) << 10) | source.randrange(1 << 10) for _ in range(512)
    ]
    return struct.pack("<512H", *numbers)


def _tf32_operand(source: random.Random) -> bytes:
    numbers = [
        source.getrandbits(1) << 31 | source.randrange(124, 131) << 23 | source.getrandbits(10) << 13
        for _ in range(256)
    ]
    return struct.pack("<256I", *numbers)


_OPERANDS: dict[str, Callable[[random.Random], bytes]] = {
    "tdpbf16ps": _bf16_operand,
    "tdpfp16ps": _fp16_operand,
    "tcmmrlfp16ps": _fp16_operand,
    "tcmmimfp16ps": _fp16_operand,
    "tmmultf32ps": _tf32_operand,
}


def operands(name: str, seed: int) -> TileImage:
    """Return an image with operands for one product in TMM0 to TMM2."""
    source = random.Random(1000 + seed)
    image = TileImage.random(seed)
    operand = _OPERANDS.get(name)
    if operand is None:
        return image
    sums = struct.pack("<256f", *(source.uniform(-8, 8) for _ in range(256)))
    return TileImage(FULL, sums + operand(source) + operand(source) + image.tiles[3 * TILE :])
