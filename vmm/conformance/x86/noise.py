# SPDX-License-Identifier: Apache-2.0
"""Bytes that no register has initially."""

from __future__ import annotations

import random

__all__ = ["noise"]

_ODD = bytes(byte | 1 for byte in range(256))


def noise(source: random.Random, size: int) -> bytes:
    """Return random bytes of which none is 0."""
    return source.randbytes(size).translate(_ODD)
