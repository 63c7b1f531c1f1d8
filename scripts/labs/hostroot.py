# SPDX-License-Identifier: Apache-2.0
"""Programs from extracted packages, run on the host through their own dynamic loader and libraries.

So the emulators, and the Python that compiles byte code for the machines, are the same on every host and
none of them is installed.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from .cache import Cache
from .errors import LabError
from .packages import Archive

__all__ = ["HostRoot", "extract_closure", "host_arch"]

_LOADERS = {"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}
_TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}


def host_arch() -> str:
    """Return Debian's name of the host's architecture."""
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    try:
        return names[platform.machine()]
    except KeyError:
        raise LabError(
            f"The emulated machines run on x86-64 and aarch64 hosts, not on {platform.machine()}."
        ) from None


def extract_closure(cache: Cache, suite: str, arch: str, names: Sequence[str]) -> Path:
    """Return a folder with the named packages and all they depend on, extracted but not configured."""
    archive = Archive(cache, suite, arch, complete=True)
    packages = archive.closure(names)
    listing = [f"{package.name}={package.version}" for package in packages]

    def make(folder: Path) -> None:
        archive.extract(packages, folder)
        cache.manifest(folder, archive.describe(packages))

    return cache.build("root", [suite, arch, listing], make, f"extracting {' '.join(names)} of {suite} for {arch}")


class HostRoot:
    """A package closure for the host's architecture whose programs can be run."""

    def __init__(self, cache: Cache, suite: str, names: Sequence[str]) -> None:
        self._arch = host_arch()
        self.root = extract_closure(cache, suite, self._arch, names)

    def command(self, program: str) -> list[str]:
        """Return the words that start `program`, a path below the root such as "usr/bin/zstd"."""
        triplet = _TRIPLETS[self._arch]
        loader = self._find([f"usr/lib/{triplet}", f"lib/{triplet}"], _LOADERS[self._arch])
        folders = ["usr/lib/" + triplet, "lib/" + triplet, "usr/lib", "lib"]
        libraries = ":".join(str(self.root / folder) for folder in folders)
        return [str(loader), "--library-path", libraries, str(self.root / program)]

    def version(self, package: str) -> tuple[int, ...]:
        """Return the first two numbers of a package's upstream version."""
        listing = json.loads((self.root / "manifest.json").read_text())
        text = next(entry["version"] for entry in listing if entry["package"] == package)
        return tuple(map(int, re.findall(r"\d+", text.partition(":")[2] or text)[:2]))

    def _find(self, folders: Sequence[str], name: str) -> Path:
        for folder in folders:
            if (self.root / folder / name).exists():
                return self.root / folder / name
        raise LabError(
            f"The extracted packages in {self.root} have no {name}; run scripts/lab --clean and try again."
        )
