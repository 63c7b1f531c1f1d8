# SPDX-License-Identifier: Apache-2.0
"""States in files: written whole or not at all, for the owner's eyes, and never believed when read."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from vmm.state.stream.container import LIMITS, Limits
from vmm.state.stream.decode import read_state
from vmm.state.stream.encode import Explain, write_state
from vmm.state.stream.memory import LEVEL
from vmm.state.validate import validate
from vmm.state.value import VmState

__all__ = ["check_place", "load", "save"]


def save(
    path: str | os.PathLike[str], state: VmState, explain: Explain | None = None, level: int | None = LEVEL
) -> None:
    """Write a state to a file with mode 0600, replacing what was there at once when all is on the disk.

    A link is followed: the file that it names is replaced, and the link stays. A character device and a FIFO are
    written to as they are; nothing else that is not a regular file is touched. Nothing remains if writing
    fails. OSError, with ``path`` for its file: it is a folder, a socket or a disk, or its folder cannot take it.
    """
    try:
        with _opened(Path(os.path.realpath(path))) as file:
            write_state(file, state, explain, level)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless ``path`` can become a regular file that stays; nothing is written.

    Asked before there is anything to lose: a device swallows a state, and a folder that is missing is found too late.
    """
    target = Path(os.path.realpath(path))
    try:
        if not os.fspath(path) or target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "it is a device, a pipe or a socket, which cannot keep a state")
        descriptor, name = _unfinished(target)
        os.close(descriptor)
        if name is not None:
            name.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextlib.contextmanager
def _opened(target: Path) -> Iterator[BinaryIO | FileIO]:
    """Give a file to write to that becomes ``target`` at the end of the block, or is it if it is a device."""
    mode = target.stat().st_mode if target.exists() else stat.S_IFREG
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        with open(target, "wb", buffering=0) as device:
            yield device
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a socket or a disk, and a state goes to a file")
    descriptor, name = _unfinished(target)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if name is None:
                name = _temporary(target)
                _give_name(file.fileno(), name)
        os.replace(name, target)
    except BaseException:
        if name is not None:
            name.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _give_name(descriptor: int, name: Path) -> None:
    """Give a name to a file that has none: linkat(2), which os.link calls only where it is given a folder."""
    folder = os.open(name.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _temporary(target: Path) -> Path:
    # In the same folder: a rename is atomic only inside one file system.
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}")


def _unfinished(target: Path) -> tuple[int, Path | None]:
    """Open a new file in the folder of ``target``, without a name where that can be: then a kill leaves nothing."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    with contextlib.suppress(OSError):  # EOPNOTSUPP, EISDIR: named then; any other error comes again below
        return os.open(target.parent, flags | os.O_TMPFILE, 0o600), None
    name = _temporary(target)
    return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600), name


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
