# SPDX-License-Identifier: Apache-2.0
"""The initial file system of one run: the userland, our package, and the agent with what it is to do.

Linux unpacks cpio archives that follow one another, so only the small last part is made anew for a run.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .cache import Cache, hash_files
from .cpio import CpioWriter
from .toolchain import find_compiler

__all__ = ["Job", "build_agent", "job_archive", "write_initrd"]

_AGENT = Path(__file__).parent / "machine" / "agent.c"

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    # the package folder holds byte code already, and what is written would be lost
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True)
class Job:
    """What the agent is to do: a command, with the modules inserted and the settings made before."""

    command: Sequence[str]
    settings: Mapping[str, str]
    modules: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)  # by their names in /in


def build_agent(cache: Cache, arch: str) -> Path:
    """Return the first process of the machines of a Debian architecture, a static program."""
    compiler = find_compiler(cache, arch)

    def make(folder: Path) -> None:
        compiler.compile(["-O2", "-Wall", "-static", "-s", "-o", folder / "agent", _AGENT], "Compiling the agent")

    inputs = [compiler.identity, hash_files([_AGENT], _AGENT.parent)]
    return cache.build("agent", inputs, make, f"compiling the {arch} agent") / "agent"


def job_archive(agent: Path, job: Job) -> bytes:
    """Return the archive with the agent as /init and its instructions."""
    buffer = io.BytesIO()
    with CpioWriter(buffer) as out:
        out.file("init", agent.read_bytes(), 0o755)
        paths = []
        for module in job.modules:
            paths.append(f"/lab/{module.name}")
            out.file(f"lab/{module.name}", module.read_bytes())
        out.file("lab/modules", _lines(paths))
        out.file("lab/settings", _lines(f"{key} {value}" for key, value in job.settings.items()))
        out.file("lab/command", _strings(job.command))
        for name, source in job.files.items():
            out.file(f"in/{name}", source.read_bytes())
        names = {**_ENVIRONMENT, **job.environment}
        out.file("lab/names", _strings(f"{key}={value}" for key, value in names.items()))
    return buffer.getvalue()


def write_initrd(target: Path, archives: Sequence[Path], last: bytes) -> None:
    """Write the archives one after the other."""
    with open(target, "wb") as out:
        for archive in archives:
            with open(archive, "rb") as source:
                shutil.copyfileobj(source, out, 1 << 20)
        out.write(last)


def _lines(words: Iterable[str]) -> bytes:
    return "".join(word + "\n" for word in words).encode()


def _strings(words: Iterable[str]) -> bytes:
    return "".join(word + "\0" for word in words).encode()
