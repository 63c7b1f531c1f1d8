# SPDX-License-Identifier: Apache-2.0
"""What rows ask of a vCPU: its features, its registers, its vector length, and what its VM lets be written."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from vmm.arm64.registers import SYSTEM, Register
from vmm.arm64.vcpu import Feature, features, get_vls, read
from vmm.arm64.vls import VectorLengths
from vmm.kvm.vcpu import Vcpu

__all__ = ["ALL", "PATTERN", "UNKNOWN", "has", "lengths", "masks", "own", "remember_masks"]

ALL = (1 << 64) - 1
# What KVM gives registers whose value after a reset is UNKNOWN: arch/arm64/kvm/sys_regs.h, reset_unknown.
PATTERN = 0x1DE7EC7EDBADC0DE
UNKNOWN = "arch/arm64/kvm/sys_regs.h, reset_unknown"
_MASKS = "ID_MASKS"


def own(register: Register) -> Callable[[Vcpu], int]:
    """Return what reads a register as it is now."""
    return lambda vcpu: read(vcpu, register)


def has(feature: Feature) -> Callable[[Vcpu], bool]:
    """Return what tells whether a vCPU has a feature."""
    return lambda vcpu: feature in features(vcpu)


def lengths(vcpu: Vcpu) -> VectorLengths:
    """Return a vCPU's vector lengths; that of FPSIMD without SVE."""
    return get_vls(vcpu) if Feature.SVE in features(vcpu) else VectorLengths({1})


def remember_masks(vcpu: Vcpu, masks: Iterable[int]) -> None:
    """Keep with a vCPU which bits of the ID registers its VM lets be written."""
    found = tuple(masks)
    vcpu.chosen[_MASKS] = struct.pack(f"<{len(found)}Q", *found)


def masks(vcpu: Vcpu) -> tuple[int, ...]:
    """Return what was kept with a vCPU; nothing if its KVM does not tell (before Linux 6.7)."""
    kept = vcpu.chosen.get(_MASKS, b"")
    return struct.unpack(f"<{len(kept) // 8}Q", kept)


def has_ras(vcpu: Vcpu) -> bool:
    """Tell whether the CPU reports the syndrome of SErrors, as its ID register has it."""
    return bool(read(vcpu, SYSTEM["ID_AA64PFR0_EL1"]) >> 28 & 0xF)
