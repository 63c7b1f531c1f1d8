# SPDX-License-Identifier: Apache-2.0
"""Other Pythons than the one that runs this: those on the host, else those of Debian's suites, extracted."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache
from .config import KERNELS, TOOL_SUITE
from .errors import LabError
from .hostroot import HostRoot, host_arch
from .packages import Archive

__all__ = ["Interpreter", "NotFound", "find_interpreter", "supported"]

_CLASSIFIER = re.compile(r"Programming Language :: Python :: (3\.\d+)")
#: The suites that may have a Python, oldest first.
_SUITES = tuple(dict.fromkeys((TOOL_SUITE, *KERNELS.values())))


class NotFound(LabError):
    """This machine has no such Python, and its package archive serves none."""


@dataclass(frozen=True)
class Interpreter:
    """A Python: what starts it, and where it comes from, in words."""

    version: str  # such as "3.14"
    program: Path
    origin: str
    headers: Path | None = None  # where the headers are that its own compiler options leave out


def supported(repository: Path) -> list[str]:
    """Return the Pythons that the project declares, oldest first."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    versions = [match[1] for each in project["classifiers"] if (match := _CLASSIFIER.fullmatch(each))]
    return sorted(versions, key=lambda version: int(version.partition(".")[2]))


def find_interpreter(cache: Cache, version: str) -> Interpreter:
    """Return a Python of a version; raise NotFound with the reason if there is none."""
    for program, origin in _installed(version):
        if _is(program, version):
            return Interpreter(version, program, origin)
    for suite in _SUITES:
        if f"python{version}-venv" in Archive(cache, suite, host_arch()).versions(f"python{version}-"):
            return _extracted(cache, suite, version)
    raise NotFound(f"no python{version} in PATH, none of pyenv's, and none in Debian's {', '.join(_SUITES)}")


def _installed(version: str) -> Iterator[tuple[Path, str]]:
    """The places where the host may have a Python."""
    on_path = shutil.which(f"python{version}")
    if on_path is not None:
        yield Path(on_path), "of this machine"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for folder in sorted(pyenv.glob(f"versions/{version}.*"), key=_patch_level, reverse=True):
        yield folder / "bin" / f"python{version}", "of pyenv"


def _patch_level(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.name)]


def _is(program: Path, version: str) -> bool:
    """Whether a program is that Python and can make environments: pyenv has a stub for all versions it knows."""
    show = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([program, "-I", "-c", show], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.stdout.strip() == version


def _extracted(cache: Cache, suite: str, version: str) -> Interpreter:
    """Return a suite's Python under a program that starts it with its own loader and libraries.

    Environments that are made with it link to that program, which passes on the name it was called by.
    """
    root = HostRoot(cache, suite, [f"python{version}", f"python{version}-venv", f"python{version}-dev"])

    def make(folder: Path) -> None:
        loader, *words = root.command(f"usr/bin/python{version}")
        program = folder / "bin" / f"python{version}"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(loader)} --argv0 "$0" {shlex.join(words)} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        for name in ("lib", "include"):
            (folder / name).symlink_to(root.root / "usr" / name)

    folder = cache.build("python", [root.root.name, version], make, f"wrapping Python {version} of {suite}")
    return Interpreter(version, folder / f"bin/python{version}", f"of Debian's {suite}", root.root / "usr/include")
