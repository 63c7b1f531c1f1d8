# SPDX-License-Identifier: Apache-2.0
"""One use of the machines from beginning to end: build, boot, run, bring back, end."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from .bochs.machine import Amx
from .cache import Cache
from .errors import LabError
from .image import Setup, Task, agent_archive, build_agent, task_frames, write_initrd
from .kept import CONSOLE, STATE, keep_machine
from .kernels import Kernel, replace_modules
from .machines import Boot, Machine, Port
from .product import build_product
from .progress import note
from .qemu import Sve, Svm
from .shards import Merger, ShardSink
from .supervise import Guest, Sink, console_reports, failure_text, supervise
from .terminal import Relay
from .userland import build_userland

__all__ = ["LAB_FAILURE", "MACHINES", "Plan", "StreamSink", "extract_files", "run_plans"]

MACHINES: dict[str, type[Machine]] = {"svm": Svm, "amx": Amx, "sve": Sve}

#: the exit status when the machine failed and not the command
LAB_FAILURE = 125
_NOTHING_RAN = 4


@dataclass
class Plan:
    """One machine of a session with its command; the fields of the second part are for a pair."""

    machine: Machine
    command: Sequence[str]
    out: Path | None = None
    shell: bool = False
    files: Path | None = None  # a folder whose files the command finds in /in
    fresh: bool = False  # boot, even if the machine is kept booted
    pool: str = ""  # among which machines to keep it

    label: str = ""  # before each line of output
    address: str = ""  # of its network interface
    port: Port | None = None
    environment: dict[str, str] = field(default_factory=dict)
    merger: Merger | None = None  # where the output goes when several machines make one report

    @property
    def kept(self) -> bool:
        """Whether to continue a kept machine: one of a pair has an address of its own, a shell its terminal."""
        return self.machine.keeps_state and not (self.fresh or self.shell or self.port)


class StreamSink:
    """Pass a command's output on as it comes, line by line under a label if there is one."""

    def __init__(
        self, archive: Path, label: str = "", output: BinaryIO | None = None, errors: BinaryIO | None = None
    ) -> None:
        self.archive = archive
        self._label = label.encode()
        self._output = output or sys.stdout.buffer
        self._errors = errors or sys.stderr.buffer
        self._partial = {id(self._output): b"", id(self._errors): b""}

    def output(self, data: bytes) -> None:
        """Write to standard output."""
        self._write(self._output, data)

    def error(self, data: bytes) -> None:
        """Write to standard error."""
        self._write(self._errors, data)

    def files(self, data: bytes) -> None:
        """Collect the archive of /out."""
        with open(self.archive, "ab") as stream:
            stream.write(data)

    def finish(self) -> None:
        """Write a last line that had no end."""
        for stream in (self._output, self._errors):
            if self._partial[id(stream)]:
                self._write(stream, b"\n")

    def _write(self, stream: BinaryIO, data: bytes) -> None:
        if self._label:
            *lines, rest = (self._partial[id(stream)] + data).split(b"\n")
            self._partial[id(stream)] = rest
            data = b"".join(self._label + line + b"\n" for line in lines)
        stream.write(data)
        stream.flush()


def run_plans(cache: Cache, repository: Path, plans: Sequence[Plan], timeout: float, keep: bool) -> int:
    """Run the plans' machines together and return the exit status: the first that is not zero."""
    for plan in plans:
        plan.machine.prepare()
    _sweep(cache.root / "runs")
    folder = cache.root / "runs" / f"{plans[0].machine.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        return _run_in(folder, cache, repository, plans, timeout)
    finally:
        if keep:
            (folder / "kept").touch()
            print(f"scripts/lab: the machine's files are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(runs: Path) -> None:
    """Remove what killed processes could not: folders that were not to be kept and whose process is gone."""
    for folder in runs.iterdir() if runs.is_dir() else ():
        if not (folder / "kept").exists() and not Path("/proc", folder.name.rpartition("-")[2]).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _run_in(folder: Path, cache: Cache, repository: Path, plans: Sequence[Plan], timeout: float) -> int:
    relay = Relay() if any(plan.shell for plan in plans) else None
    guests: list[Guest] = []
    sinks: list[StreamSink | ShardSink] = []
    for number, plan in enumerate(plans):
        place = folder / str(number)
        place.mkdir()
        sink = ShardSink(plan.merger, number) if plan.merger else StreamSink(place / "out.tar", plan.label)
        guests.append(_guest(cache, repository, plan, place, sink, relay))
        sinks.append(sink)
    if relay is None:
        supervise(guests, timeout)
    else:
        print("scripts/lab: a shell in the machine; 'exit' or Ctrl-] ends it", file=sys.stderr)
        with relay.attached():
            supervise(guests, timeout, relay.pump)
        if relay.left:
            return 0
    for plan, sink in zip(plans, sinks, strict=True):
        sink.finish()
        if plan.out is not None and isinstance(sink, StreamSink):
            extract_files(sink.archive, plan.out)
    return _status(guests, divided=any(plan.merger for plan in plans))


def _status(guests: Sequence[Guest], *, divided: bool = False) -> int:
    for guest in guests:
        if guest.failure:
            print(f"scripts/lab: {failure_text(guest)}", file=sys.stderr)
        else:
            for line in console_reports(guest):
                print(f"scripts/lab: the kernel of {guest.name} reported: {line}", file=sys.stderr)
    if any(guest.failure for guest in guests):
        return LAB_FAILURE
    statuses = [guest.status or 0 for guest in guests]
    if divided and set(statuses) - {_NOTHING_RAN}:
        # "Nothing could run" is true of a divided run only if it is of every part.
        statuses = [status for status in statuses if status != _NOTHING_RAN]
    return next((status for status in statuses if status), 0)


def _guest(cache: Cache, repository: Path, plan: Plan, folder: Path, sink: Sink, relay: Relay | None) -> Guest:
    machine = plan.machine
    kernel = machine.kernel()
    archives = [build_userland(cache, machine.arch), build_product(cache, repository, machine.arch)]
    _write_manifest(folder, [kernel.folder, *(archive.parent for archive in archives)])
    ours, theirs = (end.detach() for end in socket.socketpair())
    console = relay.path if relay is not None else folder / "console.log"
    boot = Boot(folder, kernel, None, theirs, console, relay is not None, plan.port)
    boot, outgoing = _beginning(cache, plan, archives, boot)
    command = machine.command(boot)
    (folder / "command").write_text(shlex.join(command) + "\n")
    return Guest(
        name=plan.label.strip(" |") or machine.name,
        command=command,
        environment=machine.environment(),
        data=(ours, theirs),
        data_is_stdout=machine.data_is_stdout,
        console=None if relay is not None else console,
        log=folder / "emulator.log",
        inherited=boot.inherited,
        sink=sink,
        outgoing=outgoing,
    )


def _beginning(cache: Cache, plan: Plan, archives: Sequence[Path], boot: Boot) -> tuple[Boot, bytes]:
    """Return `boot` with what the machine begins from, and the frames that its agent is sent."""
    machine, kernel = plan.machine, boot.kernel
    agent = build_agent(cache, machine.arch)
    setup, task = _instructions(plan, kernel)
    if plan.kept:
        kept = keep_machine(cache, machine, kernel, archives, agent_archive(agent, setup, None), plan.pool)
        shutil.copyfile(kept / CONSOLE, boot.console)
        note(f"{machine.name}: continuing Linux {kernel.release}")
        return replace(boot, state=os.open(kept / STATE, os.O_RDONLY | os.O_CLOEXEC)), task_frames(task)
    initrd = boot.folder / "initrd"
    write_initrd(initrd, archives, agent_archive(agent, setup, task))
    note(f"{machine.name}: booting Linux {kernel.release}")
    return replace(boot, initrd=initrd), b""


def _instructions(plan: Plan, kernel: Kernel) -> tuple[Setup, Task]:
    """Return what the agent of a plan's machine is to do."""
    machine = plan.machine
    settings = {"channel": machine.channel, "power": machine.power}
    modules = list(machine.modules)
    if plan.shell:
        settings["shell"] = machine.console_device
    if plan.address:
        settings["address"] = plan.address
        modules += machine.network_modules
    files = {found.name: found for found in sorted(plan.files.iterdir()) if found.is_file()} if plan.files else {}
    found = kernel.modules(modules)
    if machine.options.replacements is not None:
        found = replace_modules(found, machine.options.replacements, kernel.release)
    return Setup(settings, found), Task(plan.command, plan.environment, files)


def _write_manifest(folder: Path, entries: Sequence[Path]) -> None:
    """Collect what the parts of a run were made from."""
    parts = {}
    for entry in entries:
        manifest = entry / "manifest.json"
        if manifest.exists():
            parts[f"{entry.parent.name}/{entry.name}"] = json.loads(manifest.read_text())
    (folder / "manifest.json").write_text(json.dumps(parts, indent=1) + "\n")


def extract_files(archive: Path, out: Path) -> None:
    """Unpack the regular files of an archive from a machine, none of them outside of `out`."""
    out.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        return
    base = out.resolve()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                target = (base / member.name).resolve()
                if not member.isfile() or not target.is_relative_to(base):
                    continue
                content = tar.extractfile(member)
                assert content is not None  # true for regular files
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    except tarfile.TarError as error:
        raise LabError(f"The files from the machine arrived damaged ({error}); run it again.") from None
