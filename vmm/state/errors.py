# SPDX-License-Identifier: Apache-2.0
"""How a state is refused: a stream that is damaged or no state, and a state that this KVM does not take."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["StateRefused", "StreamError", "printable"]


def printable(text: str) -> str:
    """Return a stranger's text fit for a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


class StreamError(Exception):
    """A stream that is not taken; the message is one sentence that says where and why."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(printable(f"{where}: {what}"))


class StateRefused(Exception):
    """This KVM does not take, or does not keep, a piece of the state; the message names it.

    ``refusals`` has each refused register with its reason, where the message has room for a few only.
    """

    def __init__(self, message: str, refusals: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.refusals = tuple(refusals)
