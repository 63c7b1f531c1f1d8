# SPDX-License-Identifier: Apache-2.0
"""Many CPUID leaves, MSRs or values of CR4 in one run of a guest, with the payload ``lists``."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vmm.conformance.context import Context
from vmm.conformance.expect import judged
from vmm.guest.base import NO_CAPABILITIES, Capabilities
from vmm.x86.boot import TYPED_PAGES
from vmm.x86.cpuid import Cpuid
from vmm.x86.guest import Guest

__all__ = ["ANSWERS", "GP", "LIST", "Answer", "ListGuest", "answers"]

GP = 13
# Behind the payload, in memory that nothing else uses.
LIST, ANSWERS = TYPED_PAGES, TYPED_PAGES + 0x10000
_MOST = 0x1000


@dataclass(frozen=True, slots=True)
class Answer:
    """What an instruction gave: a value, and the vector of its fault or -1."""

    value: int
    vector: int = -1

    def __str__(self) -> str:
        return f"{self.value:#x}" + (f" and exception {self.vector}" if self.vector >= 0 else "")


def answers(data: bytes) -> list[Answer]:
    """Return the answers of an entry point: value, number of faults, vector."""
    return [Answer(value, vector if faults else -1) for value, faults, vector in struct.iter_unpack("<QII", data)]


class ListGuest:
    """A guest with the payload ``lists``. What a run finds at entry can be changed between prepare() and finish()."""

    def __init__(
        self, context: Context, table: Cpuid, cr4: int = 0, capabilities: Capabilities = NO_CAPABILITIES
    ) -> None:
        self._timeout = context.timeout
        self._count = 0
        self.guest = context.own(Guest(context.kvm, "lists", cpuid=table, cr4=cr4, capabilities=capabilities))

    def prepare(self, entry: str, operands: bytes, count: int) -> None:
        """Point the guest at an entry point with a list of ``count`` operands."""
        if not 0 < count <= _MOST:
            raise ValueError(f"a list has 1 to {_MOST} entries, not {count}")
        self._count = count
        self.guest.memory.write(LIST, operands)
        self.guest.memory.write(ANSWERS, bytes([0xAA]) * 16 * count)
        self.guest.prepare(entry, LIST, count, ANSWERS)

    def finish(self, what: str) -> bytes:
        """Run what was prepared; return the answers' bytes."""
        with judged(f"{what} in the guest"):
            self.guest.finish(self.guest.resume(self._timeout), what)
        return self.guest.memory.read(ANSWERS, 16 * self._count)

    def cpuid(self, leaves: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
        """EAX, EBX, ECX and EDX of CPUID leaves and subleaves."""
        self.prepare("cpuid_list", b"".join(struct.pack("<II", *leaf) for leaf in leaves), len(leaves))
        return list(struct.iter_unpack("<4I", self.finish("CPUID")))

    def read_msrs(self, indices: Sequence[int]) -> list[Answer]:
        """RDMSR."""
        self.prepare("rdmsr_list", struct.pack(f"<{len(indices)}Q", *indices), len(indices))
        return answers(self.finish("RDMSR"))

    def write_msrs(self, values: Sequence[tuple[int, int]]) -> list[Answer]:
        """WRMSR."""
        self.prepare("wrmsr_list", b"".join(struct.pack("<QQ", *one) for one in values), len(values))
        return answers(self.finish("WRMSR"))

    def write_cr4(self, values: Sequence[int]) -> list[Answer]:
        """MOV to CR4: what CR4 is behind it, a fault or not. Each begins with the guest's own CR4."""
        self.prepare("cr4_list", struct.pack(f"<{len(values)}Q", *values), len(values))
        return answers(self.finish("MOV to CR4"))
