# SPDX-License-Identifier: Apache-2.0
"""The state components of XSAVE: their numbers, names and initial values.

Source: Intel SDM volume 1, 13.1 "XSAVE-supported features and state-component bitmaps", 13.6 for the
initial configurations.
"""

from __future__ import annotations

from enum import IntEnum

from vmm.kvm.bits import bits

__all__ = [
    "AVX512",
    "DYNAMIC",
    "MPX",
    "SUPERVISOR",
    "XTILE",
    "XFeature",
    "describe",
    "mask",
    "name",
]


class XFeature(IntEnum):
    """State component numbers, that is, bit numbers in XCR0, IA32_XSS and XSTATE_BV."""

    FP = 0
    SSE = 1
    YMM = 2
    BNDREGS = 3
    BNDCSR = 4
    OPMASK = 5
    ZMM_HI256 = 6
    HI16_ZMM = 7
    PT = 8
    PKRU = 9
    PASID = 10
    CET_U = 11
    CET_S = 12
    HDC = 13
    UINTR = 14
    LBR = 15
    HWP = 16
    XTILECFG = 17
    XTILEDATA = 18
    APX = 19


def mask(*features: int) -> int:
    """Return the bitmap that names ``features``."""
    value = 0
    for feature in features:
        value |= 1 << feature
    return value


MPX = mask(XFeature.BNDREGS, XFeature.BNDCSR)
AVX512 = mask(XFeature.OPMASK, XFeature.ZMM_HI256, XFeature.HI16_ZMM)
XTILE = mask(XFeature.XTILECFG, XFeature.XTILEDATA)
# What IA32_XSS and not XCR0 enables.
SUPERVISOR = mask(
    XFeature.PT, XFeature.PASID, XFeature.CET_U, XFeature.CET_S, XFeature.HDC, XFeature.UINTR,
    XFeature.LBR, XFeature.HWP,
)  # fmt: skip
# What needs a permission: arch/x86/include/asm/fpu/xstate.h, XFEATURE_MASK_USER_DYNAMIC.
DYNAMIC = mask(XFeature.XTILEDATA)


def name(feature: int) -> str:
    """Return the name of one component, such as ZMM_HI256; ``bit 42`` where it has none."""
    try:
        return XFeature(feature).name
    except ValueError:
        return f"bit {feature}"


def describe(value: int) -> str:
    """Return a bitmap as ``0xe7 (FP SSE YMM ...)``."""
    return f"{value:#x} ({' '.join(name(bit) for bit in bits(value)) or 'none'})"
