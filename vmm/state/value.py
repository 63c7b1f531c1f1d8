# SPDX-License-Identifier: Apache-2.0
"""The state of a vCPU and of a VM as immutable values: what the kernel's calls gave, and nothing decoded.

A part is what one piece of a capture reads (see :mod:`vmm.state.piece`): the bytes of one structure, or a set of
registers, each by its number (an MSR's index, a register id of KVM_GET_ONE_REG) with its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

__all__ = [
    "PAGE",
    "Extent",
    "MemoryState",
    "Packed",
    "Part",
    "PayloadIdentity",
    "Registers",
    "VcpuState",
    "VmState",
    "frozen",
]

Registers = Mapping[int, bytes]
Part = bytes | Registers
# The unit in which memory is kept and zeros are left out, on every host.
PAGE = 4096


class Packed(Mapping[int, bytes]):
    """Registers as the kernel's array of (number u32, zero u32, value u64), taken apart when somebody looks.

    The order is that of the array. Most states are captured and restored without anybody looking.
    """

    ROW = struct.Struct("<IIQ")

    def __init__(self, rows: bytes) -> None:
        self.rows = rows

    @cached_property
    def _values(self) -> dict[int, bytes]:
        return {number: value.to_bytes(8, "little") for number, _, value in self.ROW.iter_unpack(self.rows)}

    def __getitem__(self, number: int) -> bytes:
        return self._values[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self.rows) // self.ROW.size

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Packed) and self.rows == other.rows:
            return True
        return isinstance(other, Mapping) and self._values == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Packed({self._values})"


_FROZEN = frozenset({bytes, Packed, MappingProxyType})


def frozen(part: Part | Mapping[int, bytes] | bytearray) -> Part:
    """Return a part that cannot be changed, its registers in the order of their numbers."""
    if type(part) in _FROZEN:
        return part  # type: ignore[return-value]
    if isinstance(part, Mapping):
        return MappingProxyType({int(number): bytes(part[number]) for number in sorted(part)})
    return bytes(part)


def _frozen_parts(parts: Mapping[str, Part]) -> Mapping[str, Part]:
    return MappingProxyType({name: frozen(part) for name, part in parts.items()})


@dataclass(frozen=True)
class VcpuState:
    """One vCPU: its parts by the name of their piece."""

    parts: Mapping[str, Part]
    identifier: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _frozen_parts(self.parts))

    def with_part(self, name: str, part: Part) -> VcpuState:
        """Return the same state with one part replaced or added."""
        return VcpuState({**self.parts, name: part}, self.identifier)

    def without(self, name: str) -> VcpuState:
        """Return the same state without one part."""
        return VcpuState({key: part for key, part in self.parts.items() if key != name}, self.identifier)


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes at a guest physical address, whole pages of 4096."""

    gpa: int
    data: bytes | memoryview


_BLOCK = 64 * PAGE
_ZEROS = bytes(_BLOCK)


def _pages_in_use(view: memoryview) -> Iterator[int]:
    """Yield the offsets of the pages that are not zero; whole blocks of zeros are passed over at once."""
    for start in range(0, len(view), _BLOCK):
        block = bytes(view[start : start + _BLOCK])
        if block != _ZEROS[: len(block)]:
            for offset in range(0, len(block), PAGE):
                if block[offset : offset + PAGE] != _ZEROS[:PAGE]:
                    yield start + offset


@dataclass(frozen=True, slots=True)
class MemoryState:
    """One memory region in bytes: ``extents`` hold its pages that are not zero, ascending, adjacent ones merged."""

    gpa: int
    size: int
    extents: tuple[Extent, ...] = ()

    @classmethod
    def of(cls, gpa: int, view: memoryview) -> MemoryState:
        """Copy a region's memory, without the pages that are all zero."""
        runs: list[list[int]] = []
        for offset in _pages_in_use(view):
            if runs and runs[-1][1] == offset:
                runs[-1][1] += PAGE
            else:
                runs.append([offset, offset + PAGE])
        return cls(gpa, len(view), tuple(Extent(gpa + low, bytes(view[low:high])) for low, high in runs))

    @classmethod
    def merged(cls, gpa: int, size: int, extents: Iterable[Extent]) -> MemoryState:
        """Join ascending extents that touch; ValueError if they overlap, descend or leave the region."""
        runs: list[tuple[int, bytearray]] = []
        end = gpa
        for extent in extents:
            if extent.gpa < end or extent.gpa % PAGE or len(extent.data) % PAGE or not extent.data:
                raise ValueError(f"memory at {extent.gpa:#x} overlaps, goes back or is not in pages")
            if runs and extent.gpa == end:
                runs[-1][1].extend(extent.data)
            else:
                runs.append((extent.gpa, bytearray(extent.data)))
            end = extent.gpa + len(extent.data)
        if end > gpa + size:
            raise ValueError(f"memory ends at {end:#x}, beyond its region of {size} bytes at {gpa:#x}")
        return cls(gpa, size, tuple(Extent(start, bytes(data)) for start, data in runs))


@dataclass(frozen=True, slots=True)
class PayloadIdentity:
    """Which payload the guest runs: its name and the SHA-256 of its loadable bytes."""

    name: str
    digest: bytes


@dataclass(frozen=True)
class VmState:
    """A whole VM: its architecture (x86, arm64), VM-wide parts, vCPUs and memory regions.

    ``about`` describes where it was captured (tool, kernel, back end, CPU): for people, never for a decision
    about equality.
    """

    arch: str
    vcpus: tuple[VcpuState, ...]
    memory: tuple[MemoryState, ...]
    machine: Mapping[str, Part] = field(default_factory=dict)
    payload: PayloadIdentity | None = None
    about: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "machine", _frozen_parts(self.machine))
        object.__setattr__(self, "about", MappingProxyType(dict(self.about)))
