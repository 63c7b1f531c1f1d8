# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: one line a step on a terminal, nothing in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["note", "step"]


def note(text: str) -> None:
    """Show one line of progress when standard error is a terminal."""
    if sys.stderr.isatty():
        print(f"lab: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Announce `text` before the work and its duration after it.

    Steps may nest, so each prints whole lines instead of completing one that another has broken.
    """
    note(f"{text} ...")
    start = time.monotonic()
    yield
    seconds = time.monotonic() - start
    if seconds >= 1:
        note(f"{text}: {seconds:.0f} s")
