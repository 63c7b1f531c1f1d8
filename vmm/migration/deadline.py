# SPDX-License-Identifier: Apache-2.0
"""Bounds on the time before a handover: on the whole migration, and on the pause of the guest.

What waits for a line is woken by cutting it, because a peer that trickles bytes is never silent. No bound outlives
the handover: once it may have been said, only the receiver knows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

from vmm.migration.errors import LineLost, MigrationError

__all__ = ["Bound", "TimeIsUp"]


class TimeIsUp(MigrationError):
    """A migration's time is up; the message says which."""


class Bound:
    """So many seconds (None: no bound) from now to ``end()``; ``grace`` seconds later, what waits is cut.

    As a context manager it ends with the block, where a line that it cut is a LineLost that gives ``why``.
    """

    def __init__(self, seconds: float | None, cut: Callable[[], None], why: str, grace: float = 0.0) -> None:
        self.why, self.cut = why, False
        self._until = None if seconds is None else time.monotonic() + seconds
        self._cut_line, self._lock, self._ended = cut, threading.Lock(), False
        self._timer: threading.Timer | None = None
        if seconds is not None:
            self._timer = threading.Timer(seconds + grace, self._up)
            self._timer.daemon = True
            self._timer.start()

    def _up(self) -> None:
        with self._lock:
            if not self._ended:
                self.cut = True
                self._cut_line()

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return self._until is not None and time.monotonic() >= self._until

    def check(self) -> None:
        """Raise TimeIsUp if it is."""
        if self.passed:
            raise TimeIsUp(self.why)

    def end(self) -> None:
        """Cut nothing from now on."""
        with self._lock:
            self._ended = True
        if self._timer:
            self._timer.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.end()
        if self.cut and (error is None or isinstance(error, LineLost)):
            raise LineLost(self.why) from error
