# SPDX-License-Identifier: Apache-2.0
"""Two states side by side: what differs, by vCPU, part and register, in the terms of the architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from vmm.arch import ARCHITECTURE
from vmm.state import volatile
from vmm.state.architecture import pieces
from vmm.state.explain import describe_machine
from vmm.state.piece import Change, changes
from vmm.state.value import PAGE, MemoryState, Part, VcpuState, VmState

__all__ = ["Difference", "compare", "differences", "differing_pages", "memory_differences", "vcpu_differences"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs: ``name`` is part and register, ``values`` both values for people.

    ``only_second`` is the value of what the second state has and the first has not (empty for a whole part); None if
    this is no such difference.
    """

    where: str
    name: str
    values: str
    only_second: str | None = None

    def __str__(self) -> str:
        return f"{self.where} {self.name}: {self.values}"


def compare(first: VmState, second: VmState) -> list[str]:
    """Return what differs between two states, a line each; nothing if they are the same but for what is volatile."""
    return [str(found) for found in differences(first, second)]


def differences(first: VmState, second: VmState) -> list[Difference]:
    """Return what differs between two states."""
    found: list[Difference] = []
    for label in ("arch", "payload"):
        ours, theirs = getattr(first, label), getattr(second, label)
        if ours != theirs:
            found.append(Difference("VM", label, f"{_identity(ours)}, {_identity(theirs)}"))
    if first.arch != second.arch:
        return found
    found += _parts(first.arch, "VM", first.machine, second.machine)
    ours_by_number = {vcpu.identifier: vcpu for vcpu in first.vcpus}
    theirs_by_number = {vcpu.identifier: vcpu for vcpu in second.vcpus}
    for number in sorted({*ours_by_number, *theirs_by_number}):
        if number in ours_by_number and number in theirs_by_number:
            found += vcpu_differences(first.arch, ours_by_number[number], theirs_by_number[number])
        else:
            found.append(Difference(f"vCPU {number}", "vCPU", "is in only one of the states"))
    return found + memory_differences(first.memory, second.memory)


def vcpu_differences(arch: str, first: VcpuState, second: VcpuState) -> list[Difference]:
    """Return what differs between two vCPUs of one architecture."""
    return _parts(arch, f"vCPU {first.identifier}", first.parts, second.parts)


def _parts(arch: str, where: str, first: Mapping[str, Part], second: Mapping[str, Part]) -> list[Difference]:
    found = []
    for name in dict.fromkeys([*first, *second]):
        ours, theirs = first.get(name), second.get(name)
        if ours is None:
            found.append(Difference(where, name, "only in the second state", ""))
        elif theirs is None:
            found.append(Difference(where, name, "only in the first state"))
        elif ours != theirs:
            found += [
                Difference(where, f"{name}.{change.register}", change.values, change.extra)
                for change in _changes(arch, name, ours, theirs, first)
            ]
    return found


def _changes(arch: str, name: str, ours: Part, theirs: Part, parts: Mapping[str, Part]) -> Iterator[Change]:
    """Yield what differs between two parts, but for what changes by itself."""
    if arch != ARCHITECTURE:  # then it is unknown which register is volatile, too
        yield from _plain(name, ours, theirs)
        return
    for change in _named(arch, name, ours, theirs, parts):
        entry = volatile.load(arch).get((name, change.register))
        if entry is None or change.numbers is None or not entry.excuses(*change.numbers):
            yield change


def _named(arch: str, name: str, ours: Part, theirs: Part, parts: Mapping[str, Part]) -> Iterator[Change]:
    piece = pieces(arch).get(name)
    if piece:
        yield from piece.different(ours, theirs, parts)
        return
    numbers = None
    if isinstance(ours, bytes) and isinstance(theirs, bytes):
        numbers = int.from_bytes(ours, "little"), int.from_bytes(theirs, "little")
    for change in changes(describe_machine(name, ours), describe_machine(name, theirs)):
        yield replace(change, numbers=numbers)


def _plain(name: str, ours: Part, theirs: Part) -> Iterator[Change]:
    """What can be said on a host of another architecture."""
    if isinstance(ours, bytes) or isinstance(theirs, bytes):
        yield Change(name, "differ")
        return
    for number in sorted({*ours, *theirs}):
        if ours.get(number) != theirs.get(number):
            yield Change.of(f"{number:#x}", _hex(ours.get(number)), _hex(theirs.get(number)))


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _identity(value: object) -> str:
    digest = getattr(value, "digest", None)
    return f"{value.name} {digest.hex()[:16]}" if digest is not None else str(value)  # type: ignore[attr-defined]


def memory_differences(first: tuple[MemoryState, ...], second: tuple[MemoryState, ...]) -> list[Difference]:
    """Return the regions that differ, each with its first differing byte and how many pages do."""
    found = []
    ours_by_gpa, theirs_by_gpa = {m.gpa: m for m in first}, {m.gpa: m for m in second}
    for gpa in sorted({*ours_by_gpa, *theirs_by_gpa}):
        ours, theirs = ours_by_gpa.get(gpa), theirs_by_gpa.get(gpa)
        if ours is None or theirs is None or ours.size != theirs.size:
            sizes = f"{ours.size if ours else 0} and {theirs.size if theirs else 0} bytes"
            found.append(Difference("memory", f"region at {gpa:#x}", sizes))
        elif ours != theirs and (pages := _pages(ours, theirs)):
            found.append(Difference("memory", f"region at {gpa:#x}", pages))
    return found


def _pages(ours: MemoryState, theirs: MemoryState) -> str:
    """Say which pages differ; nothing where the same memory is only cut into other extents."""
    first, second = _by_page(ours), _by_page(theirs)
    zero = bytes(PAGE)
    changed = [gpa for gpa in sorted({*first, *second}) if first.get(gpa, zero) != second.get(gpa, zero)]
    if not changed:
        return ""
    page = changed[0]
    return differing_pages(len(changed), page, first.get(page, zero), second.get(page, zero))


def differing_pages(count: int, gpa: int, first: bytes | memoryview, second: bytes | memoryview) -> str:
    """Return how many pages differ, and the first byte that does in the first of them, which is at ``gpa``."""
    at = next(index for index in range(PAGE) if first[index] != second[index])
    return f"{count} pages differ, the first byte at {gpa + at:#x}: {first[at]:02x}, {second[at]:02x}"


def _by_page(memory: MemoryState) -> dict[int, bytes | memoryview]:
    return {
        extent.gpa + offset: extent.data[offset : offset + PAGE]
        for extent in memory.extents
        for offset in range(0, len(extent.data), PAGE)
    }
