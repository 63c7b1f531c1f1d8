# SPDX-License-Identifier: Apache-2.0
"""Numbers on the command line: seconds that are finite, and counts that a 64-bit field of the kernel holds."""

from __future__ import annotations

import math
from typing import Any

import click

__all__ = ["Count", "Seconds"]


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
