# SPDX-License-Identifier: Apache-2.0
"""Machines that are booted once: their emulator's state is kept and continued by every later run.

The state is saved when the agent has prepared the machine and waits for its task, so a run differs from one that
boots by nothing but the time.  Any change to what boots, the package included, gives another state.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cache import Cache
from .errors import LabError
from .image import write_initrd
from .kernels import Kernel
from .machines import Boot, Machine
from .supervise import Guest, failure_text, supervise

__all__ = ["CONSOLE", "POOL_SIZE", "STATE", "keep_machine"]

#: in the folder of a kept machine: the emulator's state, and what the console had shown
STATE, CONSOLE = "state", "console.log"

#: how many machines are kept in each pool, of nearly 200 MB each
POOL_SIZE = 8
_BOOT_SECONDS = 300.0
_SAVE_SECONDS = 60.0
_NO_LIMIT = 1 << 40  # bytes per second


def keep_machine(
    cache: Cache,
    machine: Machine,
    kernel: Kernel,
    archives: Sequence[Path],
    last: bytes,
    pool: str = "",
) -> Path:
    """Return the folder of a machine that waits for its task, booting it if none is kept.

    `archives` and `last` are its initial file system, as for `write_initrd`.  It is kept among those of a named
    `pool`, so that it pushes none out of another.
    """
    words = machine.command(Boot(Path("run"), kernel, Path("initrd"), data=0, console=Path(CONSOLE)))
    inputs = [words, [str(archive) for archive in archives], hashlib.sha256(last).hexdigest()]

    def make(folder: Path) -> None:
        with cache.scratch("boot-") as scratch:
            write_initrd(scratch / "initrd", archives, last)
            _boot(machine, kernel, scratch, folder)

    kind = f"kept-{pool}" if pool else "kept"
    entry = cache.build(kind, inputs, make, f"{machine.name}: booting Linux {kernel.release} to keep it")
    cache.prune(kind, keep=POOL_SIZE)
    return entry


def _boot(machine: Machine, kernel: Kernel, scratch: Path, folder: Path) -> None:
    """Boot a machine and save it into `folder` when it waits for its task."""
    ours, theirs = socket.socketpair()
    control, monitor = socket.socketpair()
    console = folder / CONSOLE
    boot = Boot(scratch, kernel, scratch / "initrd", theirs.detach(), console, control=monitor.detach())

    def save(guest: Guest) -> None:
        _Monitor(control).save(folder / STATE, opens=machine.opens_state)
        guest.status = 0

    guest = Guest(
        name=machine.name,
        command=machine.command(boot),
        environment=machine.environment(),
        data=(ours.detach(), boot.data),
        data_is_stdout=machine.data_is_stdout,
        console=console,
        log=scratch / "emulator.log",
        inherited=boot.inherited,
        sink=_NoSink(),
        when_ready=save,
    )
    with control:
        supervise([guest], _BOOT_SECONDS)
    if guest.failure:
        raise LabError(failure_text(guest))


class _NoSink:
    """Takes nothing: no command runs while a machine boots."""

    def output(self, data: bytes) -> None: ...

    def error(self, data: bytes) -> None: ...

    def files(self, data: bytes) -> None: ...


class _Monitor:
    """The emulator's monitor (QEMU's QMP: one JSON object a line)."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        control.settimeout(_SAVE_SECONDS)
        self._lines = control.makefile("rb")
        self._lines.readline()  # the greeting
        self._execute("qmp_capabilities")

    def save(self, path: Path, *, opens: bool) -> None:
        """Write the machine's state to a file, which the emulator `opens` or is given, and end the emulator."""
        self._execute("migrate-set-parameters", **{"max-bandwidth": _NO_LIMIT})
        if opens:
            self._execute("migrate", uri=f"file:{path}")
        else:
            with open(path, "wb") as state:
                self._execute("getfd", state.fileno(), fdname=STATE)
            self._execute("migrate", uri=f"fd:{STATE}")
        deadline = time.monotonic() + _SAVE_SECONDS
        while (found := self._execute("query-migrate"))["status"] != "completed":
            if found["status"] in ("failed", "cancelled") or time.monotonic() > deadline:
                reason = found.get("error-desc", found["status"])
                raise LabError(f"The emulator could not save its machine ({reason}); is the disk full? Try --fresh.")
            time.sleep(0.01)
        self._execute("quit")

    def _execute(self, name: str, *descriptors: int, **arguments: Any) -> dict[str, Any]:
        """Run a command, with descriptors for the emulator, and return its answer, whatever events come before it."""
        command = json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n"
        try:
            socket.send_fds(self._control, [command], descriptors)
            while line := self._lines.readline():
                answer = json.loads(line)
                if "return" in answer:
                    return dict(answer["return"])
                if "error" in answer:
                    raise LabError(f"The emulator refuses {name}: {answer['error'].get('desc')}. Try --fresh.")
        except OSError as error:
            raise LabError(f"The emulator's monitor does not answer ({error}); try --fresh.") from None
        raise LabError(f"The emulator ended at {name}; try --fresh.")
