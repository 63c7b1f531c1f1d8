# SPDX-License-Identifier: Apache-2.0
"""Two states side by side: what differs, by vCPU, part and register, in the terms of the architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

from vmm.arch import ARCHITECTURE, module
from vmm.state import volatile
from vmm.state.value import PAGE, MemoryState, Part, VcpuState, VmState

__all__ = ["Difference", "architecture", "compare", "differences", "memory_differences", "vcpu_differences"]


_ONLY_SECOND, _ABSENT = "only in the second state", "absent, "


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs: ``name`` is part and register, ``values`` both values."""

    where: str
    name: str
    values: str

    @property
    def only_second(self) -> str | None:
        """What the second state has and the first has not; None if this is no such difference."""
        if self.values == _ONLY_SECOND:
            return ""
        return self.values.removeprefix(_ABSENT) if self.values.startswith(_ABSENT) else None

    def __str__(self) -> str:
        return f"{self.where} {self.name}: {self.values}"


def architecture(name: str = ARCHITECTURE) -> ModuleType | None:
    """Return the module that knows the parts of an architecture; None for another one than the running."""
    return module("steps", "state", name) if name == ARCHITECTURE else None


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
        if ours is None or theirs is None:
            found.append(Difference(where, name, _ONLY_SECOND if ours is None else "only in the first state"))
        elif ours != theirs:
            pairs = _registers(arch, name, ours, theirs, first)
            found += [Difference(where, f"{name}.{register}", values) for register, values in pairs]
    return found


def _registers(
    arch: str, name: str, ours: Part, theirs: Part, parts: Mapping[str, Part]
) -> Iterator[tuple[str, str]]:
    module = architecture(arch)
    if module is None:  # then it is unknown which register is volatile, too
        yield from _plain(name, ours, theirs)
        return
    for register, values in module.different(name, ours, theirs, parts):
        entry = volatile.load(arch).get((name, register))
        if entry is None or "absent" in values or not entry.excuses(*_numbers(values)):
            yield register, values


def _numbers(values: str) -> tuple[int, int]:
    """The two values of a volatile register, which is always a plain number."""
    first, second = (int(value.split(" ")[0], 0) for value in values.split(", "))
    return first, second


def _plain(name: str, ours: Part, theirs: Part) -> list[tuple[str, str]]:
    """What can be said on a host of another architecture."""
    if isinstance(ours, bytes) or isinstance(theirs, bytes):
        return [(name, "differ")]
    return [
        (f"{number:#x}", f"{_hex(ours.get(number))}, {_hex(theirs.get(number))}")
        for number in sorted({*ours, *theirs})
        if ours.get(number) != theirs.get(number)
    ]


def _hex(value: bytes | None) -> str:
    return "absent" if value is None else value.hex()


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
    a, b = first.get(page, zero), second.get(page, zero)
    at = next(index for index in range(PAGE) if a[index] != b[index])
    return f"{len(changed)} pages differ, the first byte at {page + at:#x}: {a[at]:02x}, {b[at]:02x}"


def _by_page(memory: MemoryState) -> dict[int, bytes | memoryview]:
    return {
        extent.gpa + offset: extent.data[offset : offset + PAGE]
        for extent in memory.extents
        for offset in range(0, len(extent.data), PAGE)
    }
