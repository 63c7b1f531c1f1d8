# SPDX-License-Identifier: Apache-2.0
"""Numbers on the command line: finite seconds, counts that a 64-bit field holds, sizes with their units, memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

__all__ = ["Count", "Memory", "Places", "Seconds", "Size", "guest_options"]

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


# Bytes of each memory region and where it begins, None where that was not said.
Places = tuple[tuple[int, int | None], ...]


class Memory(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Guest memory: a size, or the first region's size and SIZE@ADDRESS for each other one."""

    name = "memory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return Places, or fail as click does."""
        if isinstance(value, tuple):
            return value
        first, *others = str(value).split(",")
        places: list[tuple[int, int | None]] = [(Size().convert(first, param, ctx), None)]
        for other in others:
            size, at, address = other.partition("@")
            if not at:
                self.fail(f"{other!r} says no address: write {size or '64M'}@4G.", param, ctx)
            places.append((Size().convert(size, param, ctx), Size().convert(address, param, ctx)))
        return tuple(places)


def guest_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --memory and --vcpus, the options of a guest that is made here."""
    for option in (
        click.option("--vcpus", type=Count(), default=1, show_default=True, help="vCPUs; payloads chain and writer."),
        click.option("--memory", type=Memory(), metavar="SIZE[,SIZE@ADDRESS]",
                     help="Guest memory, such as 8G; beyond the hole for devices it goes on at 4G."),
    ):  # fmt: skip
        command = option(command)
    return command
