# SPDX-License-Identifier: Apache-2.0
"""What rows ask of a vCPU: its features, its registers, its vector length, and what its VM lets be written."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import cache
from weakref import WeakKeyDictionary

from vmm.arm64 import registers as caches
from vmm.arm64.registers import SYSTEM, Register
from vmm.arm64.vcpu import Feature, features, get_vls, read
from vmm.arm64.vls import QUADWORD
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu

__all__ = [
    "ALL",
    "EVERY_CACHE",
    "PATTERN",
    "UNKNOWN",
    "every_cache",
    "has",
    "has_aarch32",
    "has_ras",
    "masks",
    "own",
    "remember_aarch32",
    "remember_masks",
    "vector_size",
]

ALL = (1 << 64) - 1
# What KVM gives registers whose value after a reset is UNKNOWN: arch/arm64/kvm/sys_regs.h, reset_unknown.
PATTERN = 0x1DE7EC7EDBADC0DE
# How many caches CSSELR_EL1 can select: arch/arm64/kvm/sys_regs.c, CSSELR_MAX.
EVERY_CACHE = 14
UNKNOWN = "arch/arm64/kvm/sys_regs.h, reset_unknown"
_MASKS, _AARCH32 = "ID_MASKS", "ID_AARCH32"


def own(register: Register) -> Callable[[Vcpu], int]:
    """Return what reads a register as it is now."""
    return lambda vcpu: read(vcpu, register)


def has(feature: Feature) -> Callable[[Vcpu], bool]:
    """Return what tells whether a vCPU has a feature."""
    return lambda vcpu: feature in features(vcpu)


_SIZES: WeakKeyDictionary[Vcpu, int] = WeakKeyDictionary()


def vector_size(vcpu: Vcpu) -> int:
    """Return how many bytes a vCPU's longest vector has, which FINALIZE has fixed; that of FPSIMD without SVE."""
    if Feature.SVE not in features(vcpu):
        return QUADWORD
    size = _SIZES.get(vcpu)
    if size is None:
        size = _SIZES[vcpu] = get_vls(vcpu).size
    return size


def remember_masks(vcpu: Vcpu, masks: Iterable[int]) -> None:
    """Keep with a vCPU which bits of the ID registers its VM lets be written."""
    found = tuple(masks)
    vcpu.chosen[_MASKS] = struct.pack(f"<{len(found)}Q", *found)


def remember_aarch32(vcpu: Vcpu) -> None:
    """Keep with a fresh vCPU whether its EL0 has AArch32, which its ID register can be told to hide."""
    vcpu.chosen[_AARCH32] = bytes([read(vcpu, SYSTEM["ID_AA64PFR0_EL1"]) & 0xF == 2])


def has_aarch32(vcpu: Vcpu) -> bool:
    """Return what was kept with a vCPU."""
    return vcpu.chosen.get(_AARCH32) != b"\0"


def masks(vcpu: Vcpu) -> tuple[int, ...]:
    """Return what was kept with a vCPU; nothing if its KVM does not tell (before Linux 6.7)."""
    return _unpacked(vcpu.chosen.get(_MASKS, b""))


@cache
def _unpacked(kept: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(kept) // 8}Q", kept)


def every_cache(vcpu: Vcpu) -> bool:
    """Tell whether KVM has CCSIDR_EL1 of every cache that CSSELR_EL1 can select: only then they and CLIDR_EL1 change.

    Source: arch/arm64/kvm/sys_regs.c, write_demux_regids, set_ccsidr, set_clidr; Linux 6.3.
    """
    try:
        vcpu.get_one_reg(caches.cache(EVERY_CACHE - 1))
    except KvmError:
        return False
    return True


def has_ras(vcpu: Vcpu) -> bool:
    """Tell whether the CPU reports the syndrome of SErrors, as its ID register has it."""
    return bool(read(vcpu, SYSTEM["ID_AA64PFR0_EL1"]) >> 28 & 0xF)
