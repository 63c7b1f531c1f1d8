# SPDX-License-Identifier: Apache-2.0
"""One piece of a vCPU's state, declared once: its shape, its calls, its place in a restore, its names, its checks.

A piece is known on hosts of every architecture, because a state is checked wherever it is read: nothing but reading,
writing and describing may touch the kernel's structures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import KvmError, errno_name
from vmm.kvm.vcpu import Vcpu, register_size
from vmm.state.errors import StateRefused
from vmm.state.shape import Shape
from vmm.state.value import Part, Registers, VcpuState

__all__ = [
    "ANY",
    "Change",
    "Follows",
    "Held",
    "OneRegs",
    "Piece",
    "Reading",
    "RegisterSet",
    "Row",
    "Stale",
    "Structure",
    "changes",
    "one_reg_calls",
    "raw",
    "registers",
]

# One call: request, argument, and the result it has to have; ANY is content with any success.
Row = tuple[int, Any, int]
ANY = -1
_ONE_REG, _BYTES = ffi.typeof("struct kvm_one_reg *"), ffi.typeof("uint8_t[]")


class Stale(Exception):
    """The calls that were prepared for a vCPU no longer fit it: they have to be prepared anew.

    ``error`` is what it is if they do not fit even then.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Follows:
    """A piece is restored after ``step`` for this reason; ``source`` says where that is written.

    ``always(parts)`` tells whether every KVM enforces that for a vCPU with these parts.
    """

    step: str
    reason: str
    source: str
    always: Callable[[Mapping[str, Part]], bool] = lambda parts: False


@dataclass(frozen=True, slots=True)
class Reading:
    """The calls that read a part of one vCPU, as often as wanted; ``take`` makes it of what they left.

    ``take(calls)`` gets a ``struct vmm_call *`` at the first of them.
    """

    rows: Sequence[Row]
    take: Callable[[Any], Part]


class Held(list[Row]):
    """Calls with the ``buffer`` that their arguments point into, which lives as long as the list does."""

    buffer: Any


@dataclass(frozen=True, slots=True)
class Change:
    """A register or field that differs, with both values as people read them.

    ``numbers`` are the values of a register that both states have; ``extra`` is the value of one that only the
    second has.
    """

    register: str
    values: str
    numbers: tuple[int, int] | None = None
    extra: str | None = None

    @classmethod
    def of(cls, register: str, first: str | None, second: str | None) -> Change:
        """Return the change of a value, None where a state lacks it."""
        shown = ("absent" if value is None else value for value in (first, second))
        return cls(register, ", ".join(shown), extra=second if first is None else None)


def changes(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[Change]:
    """Yield what differs between two descriptions."""
    for name in dict.fromkeys([*first, *second]):
        if first.get(name) != second.get(name):
            yield Change.of(name, first.get(name), second.get(name))


def raw(name: str, part: Part, size: int | None = None) -> bytes:
    """Return a part that is bytes, as many as it has to have; StateRefused if it is not."""
    if not isinstance(part, bytes) or (size is not None and len(part) != size):
        raise StateRefused(f"{name} has to be {size or 'a number of'} bytes: the state is damaged")
    return part


def registers(name: str, part: Part) -> Registers:
    """Return a part that is a set of registers; StateRefused if it is not."""
    if isinstance(part, bytes):
        raise StateRefused(f"{name} has to be a set of registers: the state is damaged")
    return part


class Piece:
    """One piece of a vCPU's state. ``get`` and ``set`` name its calls; ``after`` is about restoring.

    ``chosen``: KVM does not tell what was chosen, so the vCPU remembers it (Vcpu.chosen).
    """

    chosen = False

    def __init__(self, name: str, calls: tuple[str, str], shape: Shape, *after: Follows) -> None:
        self.name = name
        self.get, self.set = calls
        self.shape = shape
        self.after = after

    # --- the kernel ---

    def read(self, vcpu: Vcpu) -> Reading | None:
        """Return the calls that read this piece of a vCPU; None where it has no such state."""
        raise NotImplementedError

    def unreadable(self, vcpu: Vcpu, row: int, result: int) -> None:
        """Raise for a call of ``read`` that went otherwise; returning means that this vCPU has no such state."""
        raise KvmError(self.get, -result)

    def write(self, part: Part) -> list[Row]:
        """Return the calls that write a part, in a list that owns what they point to.

        StateRefused if the part has another shape.
        """
        raise NotImplementedError

    def refused(self, vcpu: Vcpu, state: VcpuState, row: int, result: int) -> list[tuple[str, str]]:
        """Return which registers KVM refused in a call of ``write``, with the reason; StateRefused where none is.

        What else the call had to write is written.
        """
        name = errno_name(-result)
        raise StateRefused(f"{self.name}: {self.set} refused it with {name}{self.why(state, name)}")

    def why(self, state: VcpuState, name: str) -> str:
        """Return the likely cause of an errno in the terms of the state, or nothing."""
        return ""

    def missing(self, vcpu: Vcpu, part: Part) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Return what of a part this vCPU lacks, and what it has beyond it; both after the piece was written."""
        return [], []

    # --- names ---

    def describe(self, part: Part, parts: Mapping[str, Part]) -> dict[str, str]:
        """Return what a part holds, value by register or field name; ``parts`` are those beside it."""
        return {self.name: raw(self.name, part).hex()}

    def different(self, first: Part, second: Part, parts: Mapping[str, Part]) -> Iterator[Change]:
        """Yield what differs between two parts; ``parts`` are those beside the first."""
        yield from changes(self.describe(first, parts), self.describe(second, parts))

    # --- what a stranger's state is checked for ---

    def check(self, where: str, parts: Mapping[str, Part]) -> None:
        """Raise StreamError for what no vCPU has; parts have their shapes. No kernel structure is touched."""

    def check_readable(self, where: str, parts: Mapping[str, Part]) -> None:
        """Raise StreamError if this part cannot be described beside the others; all have their shapes."""


class Structure(Piece):
    """A piece that is one structure: one call fills it, another takes it. ``size`` is the structure's, in bytes."""

    def __init__(
        self, name: str, struct: str, size: int, *after: Follows, calls: str = "", required: bool = True
    ) -> None:
        suffix = calls or name
        shape = Shape.exactly(size, required=required)
        super().__init__(name, (f"KVM_GET_{suffix}", f"KVM_SET_{suffix}"), shape, *after)
        self.struct, self.size = struct, size

    @cached_property
    def kind(self) -> Any:
        """The C type of a pointer to the structure."""
        return ffi.typeof(f"struct {self.struct} *")

    @cached_property
    def requests(self) -> tuple[int, int]:
        """The numbers of the two calls."""
        return getattr(lib, self.get), getattr(lib, self.set)

    def read(self, vcpu: Vcpu) -> Reading | None:
        """One call."""
        value = ffi.new(self.kind)
        data = ffi.buffer(value)
        return Reading([(self.requests[0], value, ANY)], lambda calls: data[:])

    def write(self, part: Part) -> list[Row]:
        """One call."""
        return [(self.requests[1], self.value(part), ANY)]

    def value(self, part: Part) -> Any:
        """Return the part as a new structure."""
        value = ffi.new(self.kind)
        ffi.memmove(value, raw(self.name, part, self.size), self.size)
        return value


class RegisterSet(Piece):
    """A piece that is registers by their numbers; a subclass says what their names are and how they are shown."""

    def register_name(self, number: int) -> str:
        """Return a register's name."""
        raise NotImplementedError

    def known(self) -> Iterable[int]:
        """Return the registers that a state may have, as far as there is a list of them."""
        return ()

    def text(self, number: int, value: bytes) -> str:
        """Return a register's value for people."""
        return f"{int.from_bytes(value, 'little'):#x}"

    def describe(self, part: Part, parts: Mapping[str, Part]) -> dict[str, str]:
        """Return the registers by name."""
        values = registers(self.name, part)
        return {self.register_name(number): self.text(number, value) for number, value in values.items()}

    def different(self, first: Part, second: Part, parts: Mapping[str, Part]) -> Iterator[Change]:
        """Yield the registers that differ, by number."""
        ours, theirs = registers(self.name, first), registers(self.name, second)
        for number in dict.fromkeys([*ours, *theirs]):
            if ours.get(number) != theirs.get(number):
                yield self.change(number, ours.get(number), theirs.get(number))

    def change(self, number: int, first: bytes | None, second: bytes | None) -> Change:
        """Return how a register differs, None where it is absent."""
        shown = (None if value is None else self.text(number, value) for value in (first, second))
        found = Change.of(self.register_name(number), *shown)
        if first is None or second is None:
            return found
        return replace(found, numbers=(int.from_bytes(first, "little"), int.from_bytes(second, "little")))


class OneRegs(RegisterSet):
    """A piece that is registers of KVM_GET_ONE_REG; a subclass says which a vCPU has."""

    def __init__(self, name: str, *after: Follows, required: bool = True) -> None:
        super().__init__(name, ("KVM_GET_ONE_REG", "KVM_SET_ONE_REG"), Shape(required=required), *after)

    def identifiers(self, vcpu: Vcpu) -> Sequence[int]:
        """Return the registers of this piece that a vCPU has."""
        raise NotImplementedError

    def why_refused(self, vcpu: Vcpu, identifier: int, value: bytes, name: str) -> str:
        """Say why KVM refused a value, with the errno's name."""
        return f"KVM refused it with {name}"

    def read(self, vcpu: Vcpu) -> Reading | None:
        """A call a register."""
        identifiers = self.identifiers(vcpu)
        if not identifiers:
            return None
        sizes = [register_size(identifier) for identifier in identifiers]
        calls = one_reg_calls(lib.KVM_GET_ONE_REG, identifiers, bytes(sum(sizes)))
        data, ends = ffi.buffer(calls.buffer), list(accumulate(sizes))
        spans = [(number, end - size, end) for number, size, end in zip(identifiers, sizes, ends, strict=True)]
        return Reading(calls, lambda calls: {number: data[low:high] for number, low, high in spans})

    def write(self, part: Part) -> list[Row]:
        """A call a register."""
        values = registers(self.name, part)
        sizes = [register_size(identifier) for identifier in values]
        if wrong := [number for number, size in zip(values, sizes, strict=True) if len(values[number]) != size]:
            raise StateRefused(f"{self.name}: register {wrong[0]:#x} has another size: the state is damaged")
        return one_reg_calls(lib.KVM_SET_ONE_REG, values, b"".join(values.values()))

    def refused(self, vcpu: Vcpu, state: VcpuState, row: int, result: int) -> list[tuple[str, str]]:
        """Return the one register of the call."""
        identifier, value = list(registers(self.name, state.parts[self.name]).items())[row]
        why = self.why_refused(vcpu, identifier, value, errno_name(-result))
        return [(f"{self.name}.{self.register_name(identifier)}", why)]


def one_reg_calls(request: int, identifiers: Iterable[int], data: bytes) -> Held:
    """Return a call a register; ``data`` are their values one after the other."""
    values = ffi.from_buffer(_BYTES, bytearray(data))
    address = int(ffi.cast("uintptr_t", values))
    rows = Held()
    for identifier in identifiers:
        rows.append((request, ffi.new(_ONE_REG, (identifier, address)), ANY))
        address += register_size(identifier)
    rows.buffer = values
    return rows
