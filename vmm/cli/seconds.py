# SPDX-License-Identifier: Apache-2.0
"""A number of seconds, or a factor of them, on the command line: positive, finite, at most a day."""

from __future__ import annotations

import math
from typing import Any

import click

__all__ = ["Seconds"]


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
