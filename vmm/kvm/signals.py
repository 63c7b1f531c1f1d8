# SPDX-License-Identifier: Apache-2.0
"""The signals of this process as the rest of the package wants them, whatever the parent left behind."""

from __future__ import annotations

import signal

__all__ = ["reset"]


def reset() -> None:
    """Take back what a parent may have set for its children: SIGCHLD ignored, signals blocked.

    With SIGCHLD ignored the kernel reaps children by itself, and no wait learns how one ended; a blocked signal
    leaves a guest running past its deadline. Call it where a process begins, before it starts threads or children.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
