# SPDX-License-Identifier: Apache-2.0
"""How long the tests wait: the one place for it.

A limit is there to end what hangs, never to judge how fast something is: a machine under load may be ten times slower
than it should be and more, and is not wrong. So limits are generous, what is waited for is an event, and only what
hangs takes so long. What a test measures by the clock it compares with a limit that only another behaviour would
reach, such as that of a time-out which is far longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["HANGS", "LIMIT", "MACHINE", "TIME_SCALE", "eventually", "patiently"]

Result = TypeVar("Result")

# Seconds for one thing that takes one second or less here, such as a start of vmm: what is not there by then hangs.
LIMIT = 120.0
# Seconds for a whole test.
HANGS = 1800.0
# Seconds for one run of an emulated machine, and for what runs in it; on this side the same again to build it.
MACHINE = 3600.0
# For clauses, whose own time limits are for a machine that has nothing else to do.
TIME_SCALE = 20.0


def eventually(condition: Callable[[], bool], seconds: float = LIMIT) -> bool:
    """Wait until a condition holds; return whether it came to that."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


def patiently(attempt: Callable[[float], Result], *, scales: Sequence[float] = (1.0, 20.0)) -> Result:
    """Try what depends on real time-outs with short ones, and only if that fails with far longer ones.

    ``attempt`` gets the factor for its times. What holds whatever the times are is none of its business: who has to
    be sure of that looks at every attempt.
    """
    for scale in scales[:-1]:
        try:
            return attempt(scale)
        except AssertionError as error:
            print(f"not in the time of a fast machine, so again with {scales[-1]:g} times as much: {error}")
    return attempt(scales[-1])
