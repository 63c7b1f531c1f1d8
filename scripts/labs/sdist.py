# SPDX-License-Identifier: Apache-2.0
"""The source distribution of the working tree, built from a copy: nothing is written into the tree itself."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from .errors import LabError, run_tool

__all__ = ["build_sdist"]

_BUILD = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
# What was built, downloaded or left there by tools. The names of folders, and of files.
_LEFT_OUT = (
    ".git",
    ".venv",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "build",
    "dist",
    "payloads",
    "*.egg-info",
    "*.so",
    "*.elf",
    "*.py[co]",
)


def build_sdist(repository: Path, into: Path) -> Path:
    """Build the source distribution in the folder `into` with this Python's setuptools and cffi; return its path."""
    with tempfile.TemporaryDirectory(prefix="sdist-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(repository, copy, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        run_tool([sys.executable, "-c", _BUILD, into], "Building the source distribution", cwd=copy)
    made = list(into.glob("*.tar.gz"))
    if len(made) != 1:
        raise LabError(f"setuptools built {len(made)} source distributions in {into}; give an empty folder.")
    return made[0]
