# SPDX-License-Identifier: Apache-2.0
"""The command ``vmm``, also as ``python -m vmm``: what it imports can be interrupted as well as what it does."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

__all__ = ["main"]


def _interrupted(number: int, frame: object) -> NoReturn:
    os.write(2, b"vmm: interrupted\n")
    os._exit(130)


def main() -> None:
    """Run the command line and exit with its status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    from vmm.cli import main as run

    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
