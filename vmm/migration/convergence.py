# SPDX-License-Identifier: Apache-2.0
"""When to stop copying a running guest's memory: what is left has to fit the time that the guest may be paused."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["FIXED", "STALLS", "Convergence", "Decision", "Limits"]

# What else takes time while the guest is paused: its registers, verifying, a few round trips. Seconds.
FIXED = 0.004
STALLS = ("throttle", "stop", "abort")
_STEP, _MOST = 0.2, 0.99
# A round that leaves more than this share of what the one before it left is not worth another like it.
_PROGRESS = 0.7
_PATIENT_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows: seconds of downtime, rounds, bytes per second (0: no limit), and what to do with a
    guest that writes faster than can be sent: slow it down, stop it all the same, or give up."""

    downtime: float = 0.1
    rounds: int = 30
    rate: int = 0
    stall: str = "throttle"


class Decision(Enum):
    """What comes after a round."""

    COPY = "another round"
    STOP = "stop the guest and send the rest"
    ABORT = "it does not converge"


class Convergence:
    """Decides after each round; ``throttle`` is the share of time that the guest should not run."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.throttle = 0.0
        self.bandwidth = 0.0
        self._before: int | None = None
        self._stalled = 0

    def estimate(self, left: int) -> float:
        """Return the downtime in seconds if ``left`` bytes were the last."""
        return FIXED + (left / self.bandwidth if self.bandwidth else 0.0)

    def decide(self, rounds: int, left: int, sent: int, seconds: float) -> Decision:
        """Decide after ``rounds`` rounds; the last one sent bytes in seconds, and ``left`` bytes became dirty."""
        if seconds > 0:
            # A short round measures the delay of the line and not its width.
            self.bandwidth = max(self.bandwidth, sent / seconds)
        if self.estimate(left) <= self._limits.downtime:
            return Decision.STOP
        if rounds >= self._limits.rounds:
            return Decision.STOP if self._limits.stall == "stop" else Decision.ABORT
        if self._limits.stall == "throttle":
            self._watch(left)
        return Decision.COPY

    def _watch(self, left: int) -> None:
        if self._before is not None and left > self._before * _PROGRESS:
            self._stalled += 1
            if self._stalled >= _PATIENT_ROUNDS:
                self.throttle = min(self.throttle + _STEP, _MOST)
        else:
            self._stalled = 0
        self._before = left
