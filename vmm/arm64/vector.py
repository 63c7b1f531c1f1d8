# SPDX-License-Identifier: Apache-2.0
"""A vCPU's vector state as a value: Z, P, FFR, FPSR and FPCR at one vector length.

``image`` is the layout of guest_payloads/arm64/area.h, the same for every length.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from vmm.arm64.registers import FFR, FPCR, FPSR, p, v, z
from vmm.arm64.vcpu import read, write
from vmm.arm64.vls import QUADWORD
from vmm.kvm.vcpu import Vcpu

__all__ = ["AREA_SIZE", "FPCR_BITS", "FPSR_BITS", "VectorState", "differences", "name"]

_Z_STRIDE, _P_STRIDE = 256, 32
_P_AT, _FFR_AT, _FPSR_AT, _FPCR_AT, AREA_SIZE = 8192, 8704, 8736, 8744, 8752
# Bits that every implementation keeps: cumulative exceptions and QC; FZ, DN, AHP and the rounding mode.
FPSR_BITS, FPCR_BITS = 0x0800009F, 0x07C00000


@dataclass(frozen=True, slots=True)
class VectorState:
    """``z`` are 32 and ``p`` 16 registers, each as many bytes as the vector length has (a Pn an eighth)."""

    z: tuple[bytes, ...]
    p: tuple[bytes, ...] = ()
    ffr: bytes = b""
    fpsr: int = 0
    fpcr: int = 0

    @classmethod
    def random(cls, size: int, seed: int, *, sve: bool = True) -> VectorState:
        """Return a state of ``size`` bytes a vector in which every byte of Z is its own, and FFR a legal value."""
        source = random.Random(seed)
        z = tuple(source.randbytes(size) for _ in range(32))
        p = tuple(source.randbytes(size // 8) for _ in range(16)) if sve else ()
        # FFR is a run of ones from bit 0: what a first-fault load leaves.
        ones = source.randrange(1, size) if sve else 0
        ffr = ((1 << ones) - 1).to_bytes(size // 8, "little") if sve else b""
        fpcr = source.getrandbits(32) & FPCR_BITS
        return cls(z, p, ffr, source.getrandbits(32) & FPSR_BITS, fpcr)

    @classmethod
    def zero(cls, size: int) -> VectorState:
        """Return the state after reset."""
        return cls((bytes(size),) * 32, (bytes(size // 8),) * 16, bytes(size // 8))

    @property
    def size(self) -> int:
        """Bytes of a vector."""
        return len(self.z[0])

    def image(self) -> bytes:
        """Return the payload's image of this state."""
        parts = [value.ljust(_Z_STRIDE, b"\0") for value in self.z]
        parts += [value.ljust(_P_STRIDE, b"\0") for value in (*(self.p or (b"",) * 16), self.ffr)]
        return b"".join(parts) + self.fpsr.to_bytes(8, "little") + self.fpcr.to_bytes(8, "little")

    @classmethod
    def from_image(cls, image: bytes, size: int) -> VectorState:
        """Return the state that an image holds at ``size`` bytes a vector."""
        z = tuple(image[at : at + size] for at in range(0, _P_AT, _Z_STRIDE))
        p = tuple(image[at : at + size // 8] for at in range(_P_AT, _FFR_AT, _P_STRIDE))
        fpsr, fpcr = (int.from_bytes(image[at : at + 8], "little") for at in (_FPSR_AT, _FPCR_AT))
        return cls(z, p, image[_FFR_AT : _FFR_AT + size // 8], fpsr, fpcr)

    @classmethod
    def get(cls, vcpu: Vcpu, size: int) -> VectorState:
        """Read the state of a finalized vCPU with SVE whose largest vector has ``size`` bytes."""
        z_ = tuple(vcpu.get_one_reg(z(n))[:size] for n in range(32))
        p_ = tuple(vcpu.get_one_reg(p(n))[: size // 8] for n in range(16))
        return cls(z_, p_, vcpu.get_one_reg(FFR)[: size // 8], read(vcpu, FPSR), read(vcpu, FPCR))

    def set(self, vcpu: Vcpu) -> None:
        """Write the state to a finalized vCPU with SVE."""
        for number, value in enumerate(self.z):
            vcpu.set_one_reg(z(number), value.ljust(_Z_STRIDE, b"\0"))
        for number, value in enumerate(self.p):
            vcpu.set_one_reg(p(number), value.ljust(_P_STRIDE, b"\0"))
        vcpu.set_one_reg(FFR, self.ffr.ljust(_P_STRIDE, b"\0"))
        write(vcpu, FPSR, self.fpsr)
        write(vcpu, FPCR, self.fpcr)

    @classmethod
    def get_fpsimd(cls, vcpu: Vcpu) -> VectorState:
        """Read the 128-bit state of a vCPU without SVE."""
        return cls(tuple(vcpu.get_one_reg(v(n)) for n in range(32)), (), b"", read(vcpu, FPSR), read(vcpu, FPCR))

    def set_fpsimd(self, vcpu: Vcpu) -> None:
        """Write the 128-bit state to a vCPU without SVE."""
        for number, value in enumerate(self.z):
            vcpu.set_one_reg(v(number), value)
        write(vcpu, FPSR, self.fpsr)
        write(vcpu, FPCR, self.fpcr)

    def low(self, *, predicates: bool = False) -> VectorState:
        """Return what is left of it with vectors of 128 bits: the V registers, without P and FFR if not asked for."""
        z = tuple(value[:QUADWORD] for value in self.z)
        if not predicates:
            return replace(self, z=z, p=(), ffr=b"")
        size = QUADWORD // 8
        return replace(self, z=z, p=tuple(value[:size] for value in self.p), ffr=self.ffr[:size])


def name(offset: int) -> str:
    """Say which register and byte an offset of the image is."""
    if offset < _P_AT:
        return f"Z{offset // _Z_STRIDE} byte {offset % _Z_STRIDE}"
    if offset < _FFR_AT:
        return f"P{(offset - _P_AT) // _P_STRIDE} byte {(offset - _P_AT) % _P_STRIDE}"
    if offset < _FPSR_AT:
        return f"FFR byte {offset - _FFR_AT}"
    return f"FPSR byte {offset - _FPSR_AT}" if offset < _FPCR_AT else f"FPCR byte {offset - _FPCR_AT}"


def differences(expected: bytes, observed: bytes) -> list[str]:
    """Return where two images differ: register, byte, and both values."""
    if expected == observed:
        return []
    pairs = enumerate(zip(expected, observed, strict=True))
    return [f"{name(at)}: {right:#04x} and not {left:#04x}" for at, (left, right) in pairs if left != right]
