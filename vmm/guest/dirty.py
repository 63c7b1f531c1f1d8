# SPDX-License-Identifier: Apache-2.0
"""What the dirty payload writes: a word for each page and pass, so that memory can be told right from stale.

The entries and their parameters are described in guest_payloads/*/dirty.S.
"""

from __future__ import annotations

__all__ = ["PAGE", "PAYLOAD", "page", "word"]

PAYLOAD = "dirty"
# The payload's pages, on every host.
PAGE = 4096
_MULTIPLIER = 0x9E3779B97F4A7C15


def word(gpa: int, number: int) -> int:
    """Return the 64-bit word that pass ``number`` (1 is the first) writes all over the page at ``gpa``.

    No two of them are equal below 2 ** 40 bytes of memory and 2 ** 24 passes.
    """
    return (number << 40 ^ gpa) * _MULTIPLIER & (1 << 64) - 1


def page(gpa: int, number: int, size: int = PAGE) -> bytes:
    """Return the first ``size`` bytes of the page at ``gpa`` after pass ``number``; zeros for pass 0, before any."""
    return (word(gpa, number) if number else 0).to_bytes(8, "little") * (size // 8)
