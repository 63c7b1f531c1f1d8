# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGHUP end pytest as Ctrl-C does: what runs is tidied up, children are ended, the status says why."""

from __future__ import annotations

import os
import signal
from types import FrameType

import pytest

from tests.plugins.owner import is_own
from tests.processes import descendants, end

_NUMBERS = (signal.SIGTERM, signal.SIGHUP)
_received: list[int] = []


def pytest_configure(config: pytest.Config) -> None:
    """Take over the signals, in this process and not in those forked from it."""
    # A shell has what it starts in the background ignore SIGINT, and so would all that the tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not is_own():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not _received:
            _received.append(number)
            raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")

    # One that is ignored stays so: nohup(1), say.
    before = {number: handler for number in _NUMBERS if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    config.add_cleanup(put_back)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """After an interruption end what is left of the test that ran, and return a shell's status for the signal."""
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        end(descendants(os.getpid()))
    if _received:
        session.exitstatus = 128 + _received[0]
