# SPDX-License-Identifier: Apache-2.0
"""Which process is pytest's own: the one that began, or in each of several workers that worker."""

from __future__ import annotations

import os

__all__ = ["is_own", "take"]

_own = os.getpid()  # of pytest's own process, which imports this


def is_own() -> bool:
    """Say whether this process runs one test after another, and is not one of a single test."""
    return os.getpid() == _own


def take() -> None:
    """Make this process, a fork of pytest's, the one in which its tests run."""
    global _own
    _own = os.getpid()
