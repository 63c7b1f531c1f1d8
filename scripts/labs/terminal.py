# SPDX-License-Identifier: Apache-2.0
"""The user's terminal joined to a machine's console, for `--shell`."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ESCAPE", "Relay"]

#: Ctrl-] ends the session, as in telnet.
ESCAPE = b"\x1d"


class Relay:
    """A pseudo-terminal whose far end an emulator opens as its serial line."""

    def __init__(self) -> None:
        self._near, self._far = os.openpty()
        tty.setraw(self._far)
        os.set_blocking(self._near, False)
        self.path = Path(os.ttyname(self._far))
        self._input = sys.stdin.fileno()
        self._waiting = b""
        self.left = False

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Give every key to the machine while in the block."""
        saved = termios.tcgetattr(self._input) if os.isatty(self._input) else None
        if saved is not None:
            tty.setraw(self._input)
        try:
            yield
        finally:
            if saved is not None:
                termios.tcsetattr(self._input, termios.TCSADRAIN, saved)
            os.close(self._near)
            os.close(self._far)

    def pump(self) -> bool:
        """Move what is there in both directions; false when the user has left with Ctrl-]."""
        ends = [self._near, *([self._input] if self._input >= 0 else [])]
        ready, _, _ = select.select(ends, [], [], 0)
        if self._near in ready:
            with contextlib.suppress(OSError):
                os.write(sys.stdout.fileno(), os.read(self._near, 1 << 16))
        if self._input in ready:
            data = os.read(self._input, 4096)
            if not data:
                self._input = -1  # the end of a pipe: let the machine continue
            if ESCAPE in data:
                self.left = True
                return False
            self._waiting += data
        if self._waiting:
            # A serial line takes few bytes at a time; the rest waits for the next round.
            with contextlib.suppress(BlockingIOError):
                written = os.write(self._near, self._waiting[:16])
                self._waiting = self._waiting[written:]
        return True
