# SPDX-License-Identifier: Apache-2.0
"""Which memory type KVM gives a guest's page in EPT, exactly, as the kernel's own trace tells.

The event kvmmmu:kvm_mmu_set_spte has each entry that KVM writes into its page tables. A clause traces into an
instance of its own, so that nobody else's tracing is disturbed, and takes only what happened in its own thread.

Source: Documentation/trace/ftrace.rst ("Instances"); arch/x86/kvm/mmu/mmutrace.h, kvm_mmu_set_spte; Intel SDM volume
3, 29.3.2 (format of an EPT entry that maps a page) and 29.3.7 "EPT and memory typing".
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vmm.conformance.needs import Need
from vmm.probe.host import Host
from vmm.x86.memory_types import MemoryType

__all__ = ["EPT", "TRACEFS", "Mapping", "SpteTrace", "mappings"]

_EVENT = "events/kvmmmu/kvm_mmu_set_spte/enable"
_MOUNTED = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_INSTANCE = "xstate-vmm-"
_BUFFER_KB = "64"
# fsopen, fsconfig, fsmount: the same numbers on every architecture. Source: include/uapi/asm-generic/unistd.h.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _CREATE = 1, 6
# A line of the file `trace`: command, thread, CPU, flags, time, event. A command may have spaces and dashes.
_LINE = re.compile(r"^\s*.*-(?P<thread>\d+)\s+\[\d+\].*?: (?P<event>\w+): (?P<text>.*)$")
_SPTE = re.compile(r"gfn (?P<gfn>[0-9a-f]+) spte (?P<spte>[0-9a-f]+) \(\S*\) level (?P<level>\d+)")


@dataclass(frozen=True, slots=True)
class Mapping:
    """An EPT entry that maps the guest's page ``gfn``, or the 2 MiB around it at ``level`` 2."""

    gfn: int
    spte: int
    level: int

    @property
    def memory_type(self) -> MemoryType:
        """Bits 5:3."""
        return MemoryType(self.spte >> 3 & 7)

    @property
    def ignores_pat(self) -> bool:
        """Bit 6: the guest's PAT has no say."""
        return bool(self.spte >> 6 & 1)

    def __str__(self) -> str:
        return f"{self.memory_type.name}{', PAT ignored' if self.ignores_pat else ''}"


def mappings(lines: Iterable[str], token: str) -> list[Mapping]:
    """Return the mappings in a trace that were made by the thread which wrote ``token`` into it."""
    found: dict[str, list[Mapping]] = {}
    ours = ""
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        if match["event"] == "tracing_mark_write" and match["text"].strip() == token:
            ours = match["thread"]
        spte = _SPTE.search(match["text"]) if match["event"] == "kvm_mmu_set_spte" else None
        if spte is not None:
            mapping = Mapping(int(spte["gfn"], 16), int(spte["spte"], 16), int(spte["level"]))
            found.setdefault(match["thread"], []).append(mapping)
    return found.get(ours, [])


def _detached(kind: str) -> int:
    """Return a descriptor of a mount of a file system that is nowhere in the tree and ends with it."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long

    def checked(number: int, *arguments: object) -> int:
        result = int(call(ctypes.c_long(number), *arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    context = checked(_FSOPEN, kind.encode(), _CLOEXEC)
    try:
        checked(_FSCONFIG, context, _CREATE, None, None, 0)
        return checked(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def _root(stack: ExitStack) -> Path:
    """Return the folder of tracefs, where it is mounted or in a mount that ``stack`` closes; OSError without."""
    for name in _MOUNTED:
        if (Path(name) / "instances").is_dir():
            return Path(name)
    mount = _detached("tracefs")
    stack.callback(os.close, mount)
    return Path(f"/proc/self/fd/{mount}")


def _traced() -> tuple[bool, str]:
    try:
        with ExitStack() as stack:
            root = _root(stack)
            if not (root / _EVENT).exists():
                return False, "there is no event kvmmmu:kvm_mmu_set_spte"
            usable = os.access(root / "instances", os.W_OK)
            return usable, f"its instances are {'' if usable else 'not '}writable"
    except OSError as error:
        return False, f"tracefs cannot be used here ({error.strerror})"


def _ept(host: Host) -> tuple[bool, str]:
    types = host.facts.memory_types
    met = host.facts.backend == "kvm_intel" and bool(types.two_levels)
    return met, f"page tables of {host.facts.backend}: {types.tables()}"


EPT = Need("EPT", _ept)
TRACEFS = Need("tracefs with KVM's events", lambda host: _traced())


class SpteTrace:
    """KVM's page table entries while the block lasts, in an instance of tracefs that is removed behind it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._marks = 0
        self.folder = Path()

    def __enter__(self) -> Self:
        with self._stack as stack:
            instances = _root(stack) / "instances"
            _remove_abandoned(instances)
            self.folder = instances / f"{_prefix()}{os.getpid()}"
            self.folder.mkdir()
            stack.callback(self.folder.rmdir)
            self._write("buffer_size_kb", _BUFFER_KB)
            self._write(_EVENT, "1")
            stack.callback(self._write, _EVENT, "0")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def start(self) -> None:
        """Forget what was traced."""
        self._marks += 1
        self._write("trace", "")
        self._write("trace_marker", self._token())

    def _token(self) -> str:
        return f"{_INSTANCE}{os.getpid()}-{self._marks}"

    def lines(self) -> list[str]:
        """Return what was traced since start(), everybody's."""
        return (self.folder / "trace").read_text().splitlines()

    def mappings(self) -> list[Mapping]:
        """Return what this thread's guests had mapped since start()."""
        return mappings(self.lines(), self._token())


def _prefix() -> str:
    """What the names of instances of this PID namespace begin with: in another one a PID is somebody else's."""
    return f"{_INSTANCE}{os.stat('/proc/self/ns/pid').st_ino}-"


def _remove_abandoned(instances: Path) -> None:
    """Remove the instances of processes that were killed."""
    for folder in instances.glob(f"{_prefix()}*"):
        if not Path(f"/proc/{folder.name.removeprefix(_prefix())}").exists():
            (folder / _EVENT).write_text("0")
            folder.rmdir()
