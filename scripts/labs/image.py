# SPDX-License-Identifier: Apache-2.0
"""The initial file system of one run: the userland, our package, and the agent with what it is to do.

Linux unpacks cpio archives that follow one another, so only the small last part is made for each run.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .cache import Cache, hash_files
from .cpio import CpioWriter
from .frames import GO, SEED, TIME, WRITE, frame
from .toolchain import find_compiler
from .untraced import untraced

__all__ = ["Setup", "Task", "agent_archive", "build_agent", "task_frames", "write_initrd"]

_AGENT = Path(__file__).parent / "machine" / "agent.c"

_SEED_SIZE = 64

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    # the package folder holds byte code already, and what is written would be lost
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True)
class Setup:
    """What the agent does first: modules to insert and settings to make."""

    settings: Mapping[str, str]
    modules: Sequence[Path] = ()


@dataclass(frozen=True)
class Task:
    """What the agent is then to run."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)  # by their names in /in

    def contents(self) -> dict[str, bytes]:
        """Return the files that tell the agent, by their paths below the root."""
        names = {**_ENVIRONMENT, **self.environment}
        return {
            "lab/command": _strings(self.command),
            "lab/names": _strings(f"{key}={value}" for key, value in names.items()),
            **{f"in/{name}": source.read_bytes() for name, source in self.files.items()},
        }


def build_agent(cache: Cache, arch: str) -> Path:
    """Return the first process of the machines of a Debian architecture, a static program."""
    compiler = find_compiler(cache, arch)

    def make(folder: Path) -> None:
        compiler.compile(["-O2", "-Wall", "-static", "-s", "-o", folder / "agent", _AGENT], "Compiling the agent")

    inputs = [compiler.identity, hash_files([_AGENT], _AGENT.parent)]
    return cache.build("agent", inputs, make, f"compiling the {arch} agent") / "agent"


def agent_archive(agent: Path, setup: Setup, task: Task | None) -> bytes:
    """Return the archive with the agent as /init and its instructions, or none that it has to wait for."""
    buffer = io.BytesIO()
    with CpioWriter(buffer) as out:
        out.file("init", agent.read_bytes(), 0o755)
        paths = []
        for module in setup.modules:
            paths.append(f"/lab/{module.name}")
            out.file(f"lab/{module.name}", untraced(module.read_bytes()))
        settings = setup.settings if task else {**setup.settings, "wait": "yes"}
        out.file("lab/modules", _lines(paths))
        out.file("lab/settings", _lines(f"{key} {value}" for key, value in settings.items()))
        for path, content in task.contents().items() if task else ():
            out.file(path, content)
    return buffer.getvalue()


def task_frames(task: Task) -> bytes:
    """Return what a waiting agent is told: its files, the time, a seed, and to go."""
    files = [frame(WRITE, b"/" + path.encode() + b"\0" + content) for path, content in task.contents().items()]
    now = str(time.time_ns()).encode()
    return b"".join([*files, frame(TIME, now), frame(SEED, os.urandom(_SEED_SIZE)), frame(GO)])


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
