# SPDX-License-Identifier: Apache-2.0
"""Sets of SVE vector lengths, and the pseudo-register KVM_REG_ARM64_SVE_VLS that holds one.

A length is counted in quadwords of 128 bits (vq): bit vq - 1 of the 512-bit register says that it is
available. Source: Documentation/virt/kvm/api.rst, 4.68 KVM_SET_ONE_REG.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ARCHITECTURAL_MAX", "MAX", "QUADWORD", "REGISTER_BYTES", "VectorLengths"]

# KVM_ARM64_SVE_VQ_MAX: what the register has bits for; the architecture ends at 2048 bits.
MAX, ARCHITECTURAL_MAX = 512, 16
QUADWORD = 16
REGISTER_BYTES = MAX // 8


class VectorLengths(frozenset[int]):
    """A set of vector lengths in quadwords; prints as ``{1,2,4}``.

    >>> VectorLengths.decode(bytes([0b1011]) + bytes(63))
    {1,2,4}
    """

    __slots__ = ()

    def __new__(cls, lengths: Iterable[int] = ()) -> VectorLengths:
        chosen = frozenset(lengths)
        if wrong := sorted(vq for vq in chosen if not 1 <= vq <= MAX):
            raise ValueError(f"vector lengths {wrong} are not 1 to {MAX} quadwords")
        return super().__new__(cls, chosen)

    @classmethod
    def decode(cls, register: bytes) -> VectorLengths:
        """Return the set that 64 bytes of the pseudo-register hold."""
        if len(register) != REGISTER_BYTES:
            raise ValueError(f"the register has {REGISTER_BYTES} bytes, not {len(register)}")
        bits = int.from_bytes(register, "little")
        return cls(vq for vq in range(1, MAX + 1) if bits >> vq - 1 & 1)

    @classmethod
    def parse(cls, text: str) -> VectorLengths:
        """Return the set that ``1,2,4`` names, with or without braces."""
        return cls(int(part) for part in text.strip("{} ").split(",") if part)

    def encode(self) -> bytes:
        """Return the 64 bytes of the pseudo-register."""
        return sum(1 << vq - 1 for vq in self).to_bytes(REGISTER_BYTES, "little")

    @property
    def maximum(self) -> int:
        """The largest length in quadwords, 0 if there is none."""
        return max(self, default=0)

    @property
    def size(self) -> int:
        """The largest length in bytes."""
        return QUADWORD * self.maximum

    def up_to(self, vq: int) -> VectorLengths:
        """Return the lengths that are not above ``vq``: a set that KVM can give to a guest of this host."""
        return VectorLengths(length for length in self if length <= vq)

    def granted(self, vq: int) -> int:
        """Return what a request for ``vq`` gets: the largest length that is not above it."""
        return self.up_to(vq).maximum

    def __str__(self) -> str:
        return "{" + ",".join(str(vq) for vq in sorted(self)) + "}"

    __repr__ = __str__
