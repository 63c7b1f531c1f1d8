# SPDX-License-Identifier: Apache-2.0
"""Write cpio archives in the "newc" format, what Linux unpacks as its first root file system.

Device nodes and root's ownership are only numbers in the archive, so no privilege is needed.  Times are
zero and the order is the caller's: equal content gives equal bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

__all__ = ["CpioWriter"]


class CpioWriter:
    """An archive being written to `stream`; leaving the `with` block writes its trailer.

    >>> with open("root.cpio", "wb") as stream, CpioWriter(stream) as archive:
    ...     archive.folder("dev")
    ...     archive.device("dev/console", 5, 1)
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._inode = 0
        self._folders: set[str] = set()

    def __enter__(self) -> CpioWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._entry("TRAILER!!!", 0, b"")
            # Archives follow one another in an initrd; the kernel wants each to start at a multiple of
            # four.
            self._stream.write(b"\0" * (-self._stream.tell() % 512))

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file with the missing folders above it."""
        self._parents(name)
        self._entry(name, stat.S_IFREG | mode, content)

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder with the missing ones above it; a second time does no harm."""
        if name in self._folders or name in ("", "."):
            return
        self._parents(name)
        self._folders.add(name)
        self._entry(name, stat.S_IFDIR | mode, b"")

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._parents(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device."""
        self._parents(name)
        self._entry(name, stat.S_IFCHR | mode, b"", major, minor)

    def tree(self, root: Path, prefix: str = "", leave_out: Callable[[str], bool] = lambda name: False) -> None:
        """Add everything below `root` under `prefix`; `leave_out` is asked with paths relative to `root`."""
        for folder, subfolders, files in os.walk(root):
            below = os.path.relpath(folder, root)
            subfolders.sort()
            for name in [*subfolders, *sorted(files)]:
                path = Path(folder, name)
                relative = os.path.normpath(os.path.join(below, name))
                if leave_out(relative):
                    if name in subfolders:
                        subfolders.remove(name)
                    continue
                self._node(path, os.path.join(prefix, relative))

    def _node(self, path: Path, name: str) -> None:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            self.link(name, os.readlink(path))
        elif stat.S_ISDIR(info.st_mode):
            self.folder(name)
        elif stat.S_ISREG(info.st_mode):
            self.file(name, path.read_bytes(), 0o755 if info.st_mode & 0o100 else 0o644)

    def _parents(self, name: str) -> None:
        parent = os.path.dirname(name)
        if parent:
            self.folder(parent)

    def _entry(self, name: str, mode: int, content: bytes, major: int = 0, minor: int = 0) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, 0, len(content), 0, 0, major, minor, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._write_padded(header + encoded)
        self._write_padded(content)

    def _write_padded(self, data: bytes) -> None:
        self._stream.write(data + b"\0" * (-len(data) % 4))
