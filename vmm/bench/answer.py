# SPDX-License-Identifier: Apache-2.0
"""The frame of a Python side of the comparison: it answers to commands until whoever started it is gone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from vmm._kvm import lib

__all__ = ["answer", "serve"]


def answer(hello: tuple[int, ...], operations: Mapping[str, Callable[[int], int]]) -> None:
    """Print the numbers that whoever started this program waits for, then one for each ``NAME COUNT`` it sends."""
    print(*hello, flush=True)
    for line in sys.stdin:
        name, count = line.split()
        print(operations[name](int(count)), flush=True)


def serve(program: Callable[[Path], None]) -> int:
    """Run ``program`` with the folder that was named until this program's parent is gone; return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    lib.vmm_die_with_parent(os.getppid())
    try:
        program(Path(sys.argv[1]))
    except Exception as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0
