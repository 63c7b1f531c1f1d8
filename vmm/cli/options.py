# SPDX-License-Identifier: Apache-2.0
"""Numbers on the command line: finite seconds, counts that a 64-bit field holds, sizes with their units."""

from __future__ import annotations

import math
from typing import Any

import click

__all__ = ["Count", "Seconds", "Size"]

_DIGITS = 20  # more than any size that is taken has
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Count(click.IntRange):
    """A number from 1 up to what the shim's and the kernel's signed 64-bit fields hold, or to ``most``."""

    def __init__(self, most: int = (1 << 62) - 1) -> None:
        super().__init__(1, most)


class Seconds(click.FloatRange):
    """Like FloatRange up to 86400, and not-a-number is refused too."""

    def __init__(self, minimum: float) -> None:
        super().__init__(minimum, 86400.0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or fail as click does."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Size(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A number of bytes, such as 4G; K, M, G and T are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or fail as click does."""
        if isinstance(value, int):
            return value
        text = str(value).upper().removesuffix("IB").removesuffix("B")
        number, unit = (text[:-1], text[-1]) if text and text[-1] in _UNITS else (text, "")
        if (
            len(number) > _DIGITS
            or not number.isascii()
            or not number.isdigit()
            or not 0 < int(number) * _UNITS[unit] <= _UNITS["T"] << 4
        ):
            self.fail(f"{value!r} is not a size: write 512M or 4G.", param, ctx)
        return int(number) * _UNITS[unit]
