# SPDX-License-Identifier: Apache-2.0
"""A part of a state as fields with numbers, and back: the names are those of the structure or of the registers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol

from vmm._kvm import ffi
from vmm.state.piece import RegisterSet, raw, registers
from vmm.state.value import Part

__all__ = ["Codec", "Leaf", "RegisterCodec", "StructCodec", "leaves"]

# Name, offset and size in bytes of a number in a structure.
Leaf = tuple[str, int, int]


class Codec(Protocol):
    """How a part is taken apart and put together."""

    def split(self, part: Part) -> dict[str, int]:
        """Return the fields of a part."""

    def join(self, part: Part, values: Mapping[str, int]) -> Part:
        """Return a part to write, in which these fields have other values."""

    def bits(self, field: str) -> int:
        """Return how wide a field is."""

    def names(self) -> Iterable[str]:
        """Return the fields that a part may have, as far as that is known without one."""


def leaves(kind: Any, name: str = "", offset: int = 0) -> Iterator[Leaf]:
    """Yield every number in a C type; an array of bytes is one number, the first byte its lowest."""
    if kind.kind == "struct":
        for field, found in kind.fields:
            yield from leaves(found.type, f"{name}.{field}" if name else field, offset + found.offset)
    elif kind.kind == "array" and ffi.sizeof(kind.item) > 1:
        for at in range(kind.length):
            yield from leaves(kind.item, f"{name}[{at}]", offset + at * ffi.sizeof(kind.item))
    elif kind.kind == "union":
        raise ValueError(f"{name} is a union: say which of its fields count")
    else:
        yield name, offset, ffi.sizeof(kind)


class StructCodec:
    """A part that is one structure of the kernel's."""

    def __init__(self, name: str, struct: str) -> None:
        self._name, self._struct = name, struct

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The numbers in the structure."""
        return tuple(leaves(ffi.typeof(f"struct {self._struct}")))

    def names(self) -> Iterable[str]:
        """Return all fields."""
        return [name for name, _, _ in self.leaves]

    def bits(self, field: str) -> int:
        """Return how wide a field is."""
        return next(8 * size for name, _, size in self.leaves if name == field)

    def split(self, part: Part) -> dict[str, int]:
        """Return the numbers by their names."""
        data = raw(self._name, part)
        return {name: int.from_bytes(data[at : at + size], "little") for name, at, size in self.leaves}

    def join(self, part: Part, values: Mapping[str, int]) -> Part:
        """Return the whole structure."""
        data = bytearray(raw(self._name, part))
        for name, at, size in self.leaves:
            if name in values:
                data[at : at + size] = values[name].to_bytes(size, "little")
        return bytes(data)


class RegisterCodec:
    """A part that is a set of registers."""

    def __init__(self, piece: RegisterSet) -> None:
        self._piece = piece
        self._names: dict[int, str] = {}

    def _name(self, number: int) -> str:
        name = self._names.get(number)
        if name is None:
            name = self._names[number] = self._piece.register_name(number)
        return name

    def names(self) -> Iterable[str]:
        """Return the registers that a state may have."""
        return map(self._piece.register_name, self._piece.known())

    def bits(self, field: str) -> int:
        """Return how wide a register is at most."""
        return 64

    def split(self, part: Part) -> dict[str, int]:
        """Return the registers by their names."""
        name = self._name
        return {name(at): int.from_bytes(value, "little") for at, value in registers(self._piece.name, part).items()}

    def join(self, part: Part, values: Mapping[str, int]) -> Part:
        """Return only the registers that get a value."""
        name = self._name
        return {
            at: values[name(at)].to_bytes(len(value), "little")
            for at, value in registers(self._piece.name, part).items()
            if name(at) in values
        }
