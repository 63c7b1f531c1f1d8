# SPDX-License-Identifier: Apache-2.0
"""The sources of a Debian kernel: those that the kernel itself was built from, and no more of them than is read."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labs.cache import Cache
from labs.errors import LabError
from labs.packages import Archive, Package

__all__ = ["source_package", "unpack", "unpacked"]


def source_package(archive: Archive, series: str, built: Package) -> Package:
    """Return the package with the sources of a series; LabError if they are not those that ``built`` is of."""
    package = archive.candidate(f"linux-source-{series}")
    if package.version != built.version:
        raise LabError(
            f"Debian {archive.suite} has the sources of {package.version} and the kernel of "
            f"{built.version}; take them for the machine when both are there, or name an older --kernel."
        )
    return package


def unpacked(
    cache: Cache, archive: Archive, package: Package, kind: str, reads: list[Any], wanted: Callable[[str], bool]
) -> Path:
    """Return the folder with the files of a package of sources that are ``wanted``, which follows from ``reads``."""

    def make(folder: Path) -> None:
        with cache.scratch("source-") as extracted:
            archive.extract([package], extracted)
            (packed,) = extracted.glob("usr/src/linux-source-*.tar.xz")
            unpack(packed, folder, wanted)
        cache.manifest(folder, archive.describe([package]))

    return cache.build(kind, [package.deb, *reads], make, f"unpacking {package.name}")


def unpack(packed: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack the files that are wanted, by their paths below the first folder, which is left out."""
    with tarfile.open(packed) as tar:
        for member in tar:
            _, _, inside = member.name.partition("/")
            if not member.isdir() and inside and wanted(inside):
                member.name = inside
                tar.extract(member, folder, filter="data")
