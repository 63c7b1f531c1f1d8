# SPDX-License-Identifier: Apache-2.0
"""The command line in a process of its own, and what it says where it cannot do its work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vmm
from tests.patience import LIMIT

__all__ = ["BARE_DEV", "Command", "environment", "hidden", "python", "sentence"]

Command = Callable[..., tuple[int, str, str]]
_ROOT = Path(vmm.__file__).resolve().parents[1]
# A /dev with the devices that any program may count on, and no kvm.
BARE_DEV = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9"


def environment() -> dict[str, str]:
    """This environment, with the package under test importable from any folder."""
    return {**os.environ, "PYTHONPATH": str(_ROOT)}


def python(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run this Python in a process of its own, behind the command ``before``."""
    command = [*before, sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=LIMIT)


def sentence(text: str) -> str:
    """The error's sentence: the only line, or the last one after click's two lines on usage."""
    lines = text.splitlines()
    assert lines and "Traceback" not in text
    assert len(lines) == 1 or (lines[0].startswith("Usage: ") and len(lines) <= 4), text
    return lines[-1].removeprefix("vmm: ").removeprefix("Error: ")


def hidden(*, setup: str) -> tuple[str, ...]:
    """A command prefix that runs in a mount namespace after ``setup``; skips where that is not allowed."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare on PATH")
    prefix = ("unshare", "--mount", "sh", "-c", setup + ' && exec "$@"', "sh")
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no mount namespace here: {tried.stderr.strip() or tried.returncode}")
    return prefix
