# SPDX-License-Identifier: Apache-2.0
"""A reference for the products of AMX, written from the manual: TMM0 += TMM1 * TMM2.

A is TMM1 (16 rows of 64 bytes), B is TMM2 in the same shape with its rows holding groups of four bytes, two 16-bit
numbers or one of 32 bits per column, C is TMM0 with 16 x 16 doublewords. Source: Intel SDM volume 2, TDPBSSD,
TDPBF16PS; Architecture Instruction Set Extensions Programming Reference, TDPFP16PS, TCMMRLFP16PS, TMMULTF32PS.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from vmm.conformance.x86.tiles import FULL, TILE, TileImage

__all__ = ["PRODUCTS", "operands"]

_SIZE = 16


def _tile(tiles: bytes, number: int) -> bytes:
    return tiles[number * TILE : (number + 1) * TILE]


def _integer(signed_a: bool, signed_b: bool) -> Callable[[bytes], bytes]:
    """The four INT8 products: 32-bit sums of four byte products, wrapping around."""

    def product(tiles: bytes) -> bytes:
        sums = list(struct.unpack("<256I", _tile(tiles, 0)))
        a = struct.unpack(f"<1024{'b' if signed_a else 'B'}", _tile(tiles, 1))
        b = struct.unpack(f"<1024{'b' if signed_b else 'B'}", _tile(tiles, 2))
        for row in range(_SIZE):
            for column in range(_SIZE):
                for group in range(_SIZE):
                    left, right = row * 64 + group * 4, group * 64 + column * 4
                    sums[row * _SIZE + column] += sum(a[left + n] * b[right + n] for n in range(4))
        return struct.pack("<256I", *(value & 0xFFFFFFFF for value in sums))

    return product


def _single(value: float) -> float:
    """Round to single precision, to nearest even."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


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
        sums = list(struct.unpack("<256f", _tile(tiles, 0)))
        a, b = decode(_tile(tiles, 1)), decode(_tile(tiles, 2))
        for row in range(_SIZE):
            for column in range(_SIZE):
                partial = [0.0, 0.0]
                for group in range(_SIZE):
                    left, right = row * 32 + group * 2, group * 32 + column * 2
                    for which, (of_a, of_b, sign) in enumerate(terms):
                        partial[which] = _single(partial[which] + sign * a[left + of_a] * b[right + of_b])
                sums[row * _SIZE + column] = _single(sums[row * _SIZE + column] + _single(sum(partial)))
        return struct.pack("<256f", *sums)

    return product


def _tf32_product(tiles: bytes) -> bytes:
    """A product of matrices of TF32 numbers, each step with one rounding (fused), as of `_pairs`."""
    sums, a, b = (list(struct.unpack("<256f", _tile(tiles, number))) for number in range(3))
    for row in range(_SIZE):
        for column in range(_SIZE):
            partial = 0.0
            for step in range(_SIZE):
                partial = _single(partial + a[row * _SIZE + step] * b[step * _SIZE + column])
            sums[row * _SIZE + column] = _single(sums[row * _SIZE + column] + partial)
    return struct.pack("<256f", *sums)


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
    sums = struct.pack("<256f", *(_single(source.uniform(-8, 8)) for _ in range(256)))
    return TileImage(FULL, sums + operand(source) + operand(source) + image.tiles[3 * TILE :])
