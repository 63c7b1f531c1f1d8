# SPDX-License-Identifier: Apache-2.0
"""The Python side of the comparison of reading guest memory: a program of its own, because of what it maps.

    python -m vmm.bench.memory_subject FOLDER

It answers ``read N`` and ``flushed N`` with the nanoseconds of N reads, of coherent and of non-coherent memory,
and ``dirtyflush N`` with those of N reads of non-coherent memory that was written right before.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter_ns

from vmm.bench.answer import answer, serve
from vmm.kvm.coherence import Coherence
from vmm.kvm.memory import GuestMemory
from vmm.kvm.system import Kvm
from vmm.kvm.vm import VirtualMachine

__all__ = ["PIECE", "REGION", "main"]

# What a read reads, and the memory it walks through, larger than most caches; as in baseline.c.
PIECE, REGION = 1 << 20, 64 << 20
_DATA = b"\xa5" * PIECE


class _Walk:
    """Reads of one region, each of the piece after the last."""

    def __init__(self, vm: VirtualMachine, coherence: Coherence) -> None:
        self._memory: GuestMemory = vm.add_memory(REGION, len(vm.memories) * REGION, coherence=coherence)
        self._memory.view[:] = b"\x5a" * REGION
        self._at = self._memory.gpa

    def measure(self, count: int) -> int:
        """Return the nanoseconds of ``count`` reads."""
        read = self._memory.read
        begin = perf_counter_ns()
        for _ in range(count):
            read(self._next(), PIECE)
        return perf_counter_ns() - begin

    def measure_written(self, count: int) -> int:
        """Return the nanoseconds of ``count`` reads, each of what was written before it."""
        spent = 0
        for _ in range(count):
            gpa = self._next()
            offset = gpa - self._memory.gpa
            self._memory.view[offset : offset + PIECE] = _DATA
            begin = perf_counter_ns()
            self._memory.read(gpa, PIECE)
            spent += perf_counter_ns() - begin
        return spent

    def _next(self) -> int:
        at = self._at
        self._at += PIECE
        if self._at == self._memory.gpa + REGION:
            self._at = self._memory.gpa
        return at


def _serve(folder: Path) -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        coherent, other = _Walk(vm, Coherence.COHERENT), _Walk(vm, Coherence.NON_COHERENT)
        operations = {"read": coherent.measure, "flushed": other.measure, "dirtyflush": other.measure_written}
        answer((0,), operations)


def main() -> int:
    """Serve whoever started this program until its end of the pipe is closed."""
    return serve(_serve)


if __name__ == "__main__":
    sys.exit(main())
