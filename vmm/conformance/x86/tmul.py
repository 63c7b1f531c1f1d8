# SPDX-License-Identifier: Apache-2.0
"""A reference for the dot products of AMX, written from the manual: TMM0 += TMM1 * TMM2.

A is TMM1 (16 rows of 64 bytes), B is TMM2 in the same shape with its rows holding groups of four bytes (or two
BF16 numbers) per column, C is TMM0 with 16 x 16 doublewords. Source: Intel SDM volume 2, TDPBSSD, TDPBF16PS.
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


def _bf16(numbers: tuple[int, ...]) -> list[float]:
    return list(struct.unpack(f"<{len(numbers)}f", struct.pack(f"<{len(numbers)}I", *(n << 16 for n in numbers))))


def _bf16_product(tiles: bytes) -> bytes:
    """Each step adds the product of the even, then of the odd elements, each with one rounding (fused).

    The operands' exponents lie so close that product and sum are exact in double precision, and rounding that
    to single is the one rounding.
    """
    sums = list(struct.unpack("<256f", _tile(tiles, 0)))
    a = _bf16(struct.unpack("<512H", _tile(tiles, 1)))
    b = _bf16(struct.unpack("<512H", _tile(tiles, 2)))
    for row in range(_SIZE):
        for column in range(_SIZE):
            even = odd = 0.0
            for group in range(_SIZE):
                left, right = row * 32 + group * 2, group * 32 + column * 2
                even = _single(even + a[left] * b[right])
                odd = _single(odd + a[left + 1] * b[right + 1])
            sums[row * _SIZE + column] = _single(sums[row * _SIZE + column] + _single(even + odd))
    return struct.pack("<256f", *sums)


PRODUCTS: dict[str, Callable[[bytes], bytes]] = {
    "tdpbssd": _integer(True, True),
    "tdpbsud": _integer(True, False),
    "tdpbusd": _integer(False, True),
    "tdpbuud": _integer(False, False),
    "tdpbf16ps": _bf16_product,
}


def _bf16_operand(source: random.Random) -> bytes:
    """BF16 numbers of moderate size: sums stay normal numbers, so that no rule on denormals decides."""
    numbers = [
        source.choice((0, 0x8000)) | (source.randrange(120, 134) << 7) | source.randrange(128) for _ in range(512)
    ]
    return struct.pack("<512H", *numbers)


def operands(name: str, seed: int) -> TileImage:
    """Return an image with operands for one product in TMM0 to TMM2."""
    source = random.Random(1000 + seed)
    image = TileImage.random(seed)
    if name != "tdpbf16ps":
        return image
    sums = struct.pack(
        "<256f", *(struct.unpack("<f", struct.pack("<f", source.uniform(-8, 8)))[0] for _ in range(256))
    )
    tiles = sums + _bf16_operand(source) + _bf16_operand(source) + image.tiles[3 * TILE :]
    return TileImage(FULL, tiles)
