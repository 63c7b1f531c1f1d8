# SPDX-License-Identifier: Apache-2.0
"""The Python side of the comparison, a program like baseline.c:

    python -m vmm.bench.subject FOLDER

It writes the guest that both are to run into FOLDER, then a line with the guest's memory size and its tick
address. After that it answers a line ``NAME N`` with the nanoseconds of N operations, all together, or with
``error: `` and a sentence.

The imports are few on purpose: KVM_CREATE_VM takes a lock for every mapping of the process, and every shared
object that a module brings is five of them.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from vmm._kvm import lib
from vmm.arch import module
from vmm.bench.answer import answer, serve
from vmm.guest.architecture import guest_type
from vmm.kvm import ioctl as door
from vmm.kvm.exits import Budget, Exit
from vmm.kvm.memory import PAGE_SIZE
from vmm.kvm.system import Kvm

__all__ = ["Subject", "main", "prepared", "runs"]

_PAYLOAD, _ENTRY, _ENDLESS = "hello", "ticks", 1 << 62
_RECORD = struct.Struct("=QQ")


class Subject:
    """A guest that ticks for ever, and the operations on it; each returns the nanoseconds of ``count``."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self._guest_type = guest_type()
        self._workload = module("", "bench")
        self.guest = self._start(kvm)
        self.tick = int(self.guest.vcpu.tick)

    def _start(self, kvm: Kvm) -> Any:
        return prepared(kvm, self._guest_type)

    def write_to(self, folder: Path) -> None:
        """Write the guest as it is, before it first runs, for the C program."""
        view = self.guest.memory.view
        (folder / "memory").write_bytes(b"".join(_RECORD.pack(at, len(data)) + data for at, data in runs(view)))
        for name, value in self._workload.registers(self.guest).items():
            (folder / name).write_bytes(value)

    def loop(self, count: int) -> int:
        """Exits that the shim's loop absorbs."""
        begin = perf_counter_ns()
        exit = self.guest.resume(ticks=count)
        spent = perf_counter_ns() - begin
        _expect_budget(exit)
        return spent

    def exit(self, count: int) -> int:
        """Exits that come back to Python."""
        vcpu = self.guest.vcpu
        vcpu.tick = 0
        begin = perf_counter_ns()
        self._workload.handle_ticks(vcpu, self.tick, count)
        spent = perf_counter_ns() - begin
        vcpu.tick = self.tick
        return spent

    def call(self, count: int) -> int:
        """Ioctls that do next to nothing, through the door."""
        ioctl_value, fd, request = door.ioctl_value, self._kvm.fd, lib.KVM_GET_API_VERSION
        begin = perf_counter_ns()
        for _ in range(count):
            ioctl_value(fd, request)
        return perf_counter_ns() - begin

    def start(self, count: int) -> int:
        """New guests, from opening /dev/kvm to their first exit; closing is not counted."""
        total = 0
        for _ in range(count):
            begin = perf_counter_ns()
            with Kvm() as kvm, self._start(kvm) as guest:
                exit = guest.resume(ticks=1)
                total += perf_counter_ns() - begin
            _expect_budget(exit)
        return total


def prepared(kvm: Kvm, guest_type: Any) -> Any:
    """Return a guest that is about to tick for ever."""
    guest = guest_type(kvm, _PAYLOAD)
    guest.prepare(_ENTRY, _ENDLESS)
    return guest


def runs(view: memoryview) -> list[tuple[int, bytes]]:
    """Return the runs of pages that are not zero, as (offset, bytes)."""
    zero = bytes(PAGE_SIZE)
    found: list[tuple[int, bytes]] = []
    for at in range(0, len(view), PAGE_SIZE):
        page = bytes(view[at : at + PAGE_SIZE])
        if page == zero:
            continue
        if found and found[-1][0] + len(found[-1][1]) == at:
            at, before = found.pop()
            page = before + page
        found.append((at, page))
    return found


def _expect_budget(exit: Exit) -> None:
    if not isinstance(exit, Budget):
        raise RuntimeError(f"the guest left with {exit} instead of ticking")


def _serve(folder: Path) -> None:
    with Kvm() as kvm:
        subject = Subject(kvm)
        with subject.guest:
            subject.write_to(folder)
            operations = {"loop": subject.loop, "exit": subject.exit, "call": subject.call, "start": subject.start}
            answer((subject.guest.memory.size, subject.tick), operations)


def main() -> int:
    """Serve whoever started this program until its end of the pipe is closed."""
    return serve(_serve)


if __name__ == "__main__":
    sys.exit(main())
