# SPDX-License-Identifier: Apache-2.0
"""The cache of built things: keyed by content, filled atomically, safe for builds at the same time.

An entry is a folder `<root>/<kind>/<key>`, where the key is a hash of everything the entry is made from.
It is built in a temporary folder beside it and appears by one rename, so a reader sees a whole entry or
none.  A lock per entry keeps two processes from doing the same work twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import LabError
from .progress import note, step

__all__ = ["Cache", "default_root", "hash_files", "key_of"]


def default_root() -> Path:
    """Return the cache folder: `$XDG_CACHE_HOME/xstate-vmm/labs`, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "xstate-vmm" / "labs"


def key_of(*inputs: Any) -> str:
    """Return the 16 hex digits that stand for `inputs`, any values JSON can hold."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def hash_files(files: Iterable[Path], base: Path) -> str:
    """Return a hash of the names below `base`, the modes and the contents of `files`, in any order."""
    total = hashlib.sha256()
    for file in sorted(files):
        mode = "x" if os.access(file, os.X_OK) else "-"
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(base)} {mode} {content}\n".encode())
    return total.hexdigest()[:16]


class Cache:
    """The cache below `root`; while the object lives, `clean` from another process is refused."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._use = os.open(self.root / "in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LabError(
                f"The cache folder {self.root} cannot be written ({error.strerror}); set XDG_CACHE_HOME."
            ) from None
        fcntl.flock(self._use, fcntl.LOCK_SH)

    def build(self, kind: str, inputs: Any, make: Callable[[Path], None], what: str | None = None) -> Path:
        """Return the entry for `inputs`, calling `make` with an empty folder to fill when there is none yet.

        `what` is the sentence shown as progress.  When `make` raises, nothing of the entry remains.
        """
        path = self.root / kind / key_of(kind, inputs)
        if self._use_entry(path):
            return path
        with self.lock(f"{kind}-{path.name}", what or kind):
            if self._use_entry(path):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            with self.scratch(f"{kind}-") as folder, step(what or f"building {kind}"):
                make(folder)
                os.rename(folder, path)
        return path

    def manifest(self, path: Path, content: Any) -> None:
        """Write what an entry was made from beside its files, for people."""
        (path / "manifest.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")

    @contextmanager
    def scratch(self, prefix: str) -> Iterator[Path]:
        """Give a new folder on the cache's file system; what is left of it at the end is removed."""
        parent = self.root / "tmp"
        parent.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def lock(self, name: str, what: str) -> Iterator[None]:
        """Hold the named lock against other processes and threads."""
        folder = self.root / "locks"
        folder.mkdir(exist_ok=True)
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                note(f"waiting for another process: {what}")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def prune(self, kind: str, keep: int) -> None:
        """Remove all but the `keep` most recently used entries of `kind`."""
        folder = self.root / kind
        if not folder.is_dir():
            return
        entries = sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in entries[keep:]:
            shutil.rmtree(entry, ignore_errors=True)

    def clean(self) -> None:
        """Remove the whole cache, unless another process uses it."""
        try:
            fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LabError(
                f"The cache {self.root} is in use by another scripts/lab; clean it when that one has ended."
            ) from None
        shutil.rmtree(self.root, ignore_errors=True)

    @staticmethod
    def _use_entry(path: Path) -> bool:
        """Tell whether the entry exists, marking it as used now for `prune`."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except OSError:
            pass  # a read-only cache serves all the same
        return True
