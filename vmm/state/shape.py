# SPDX-License-Identifier: Apache-2.0
"""What shape a part of a state has: so many bytes, or a set of registers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmm.state.errors import StreamError
from vmm.state.value import Part

__all__ = ["MOST_REGISTERS", "Shape"]

MOST_REGISTERS = 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """A part of ``smallest`` to ``largest`` bytes, a multiple of ``unit``; with ``largest`` 0 a set of registers, of
    ``register`` bytes each or, with 0, of any size."""

    smallest: int = 0
    largest: int = 0
    unit: int = 1
    register: int = 0
    required: bool = True

    @classmethod
    def exactly(cls, size: int, *, required: bool = True) -> Shape:
        """Return the shape of a part that always has so many bytes."""
        return cls(size, size, required=required)

    def check(self, where: str, part: Part) -> None:
        """Raise StreamError for a part of another shape."""
        if not isinstance(part, bytes):
            if self.largest:
                raise StreamError(where, "it is a set of registers but has to be bytes")
            self._check_registers(where, part)
        elif not self.largest:
            raise StreamError(where, "it is bytes but has to be a set of registers")
        elif not self.smallest <= len(part) <= self.largest:
            least = "" if self.smallest == self.largest else f"{self.smallest} to "
            raise StreamError(where, f"it has {len(part)} bytes and not {least}{self.largest}")
        elif len(part) % self.unit:
            raise StreamError(where, f"{len(part)} bytes are not whole entries of {self.unit} bytes")

    def _check_registers(self, where: str, registers: Mapping[int, bytes]) -> None:
        if not 0 < len(registers) <= MOST_REGISTERS:
            raise StreamError(where, f"it has {len(registers)} registers and not 1 to {MOST_REGISTERS}")
        for number, value in registers.items():
            if not 0 <= number < 1 << 64 or (self.register and len(value) != self.register):
                raise StreamError(where, f"register {number:#x} has {len(value)} bytes and not {self.register}")
