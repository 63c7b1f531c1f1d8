# SPDX-License-Identifier: Apache-2.0
"""States in files: written whole or not at all, for the owner's eyes, and never believed when read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from vmm.state.decode import read_state
from vmm.state.encode import Explain, write_state
from vmm.state.memory_section import LEVEL
from vmm.state.stream import LIMITS, Limits
from vmm.state.validate import validate
from vmm.state.value import VmState

__all__ = ["load", "save"]


def save(
    path: str | os.PathLike[str], state: VmState, explain: Explain | None = None, level: int | None = LEVEL
) -> None:
    """Write a state to a file with mode 0600, replacing what was there at once when all is on the disk.

    Nothing is left behind if that fails. OSError: the folder cannot be written, or is full.
    """
    target = Path(path)
    # In the same folder: a rename is atomic inside one file system alone.
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            write_state(file, state, explain, level)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: str | os.PathLike[str], explain: Explain | None = None, limits: Limits = LIMITS) -> VmState:
    """Return the state in a file, read as if a stranger had written it; StreamError if it is not one."""
    with open(path, "rb") as file:
        state = read_state(file, explain, limits)
    validate(state)
    return state
