# SPDX-License-Identifier: Apache-2.0
"""Names for the bytes of a state component: which register, which byte of it.

Source: Intel SDM volume 1, 13.5 "XSAVE-managed state" and table 10-2 (the FXSAVE image).
"""

from __future__ import annotations

from vmm.x86.xfeature import XFeature

__all__ = ["describe_byte"]

# (first offset in the legacy region, length, name); offsets count from the start of the area.
_LEGACY = (
    (0, 2, "FCW"),
    (2, 2, "FSW"),
    (4, 1, "FTW"),
    (5, 1, "reserved"),
    (6, 2, "FOP"),
    (8, 8, "FIP"),
    (16, 8, "FDP"),
    (24, 4, "MXCSR"),
    (28, 4, "MXCSR_MASK"),
)

# component: (register name, bytes per register, number of the first, first byte within the register)
_REGISTERS = {
    XFeature.YMM: ("YMM", 16, 0, 16),
    XFeature.BNDREGS: ("BND", 16, 0, 0),
    XFeature.OPMASK: ("k", 8, 0, 0),
    XFeature.ZMM_HI256: ("ZMM", 32, 0, 32),
    XFeature.HI16_ZMM: ("ZMM", 64, 16, 0),
}


def describe_byte(component: int, offset: int, name: str) -> str:
    """Name byte ``offset`` of a component (of the whole area for x87, relative to its start for others).

    Examples: ``SSE XMM3 byte 7``, ``ZMM_HI256 ZMM0 byte 40``, ``XTILEDATA TMM2 row 5 byte 63``.
    """
    if component in (XFeature.FP, XFeature.SSE):
        return f"{name} {_legacy(offset if component == XFeature.FP else offset + 24)}"
    if component == XFeature.XTILEDATA:
        return f"{name} TMM{offset // 1024} row {offset % 1024 // 64} byte {offset % 64}"
    try:
        prefix, size, first, base = _REGISTERS[XFeature(component)]
    except (KeyError, ValueError):
        return f"{name} byte {offset}"
    return f"{name} {prefix}{first + offset // size} byte {base + offset % size}"


def _legacy(offset: int) -> str:
    for start, length, name in _LEGACY:
        if start <= offset < start + length:
            return f"{name} byte {offset - start}"
    if offset < 160:
        return f"ST{(offset - 32) // 16} byte {offset % 16}"
    return f"XMM{(offset - 160) // 16} byte {offset % 16}"
