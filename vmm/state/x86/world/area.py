# SPDX-License-Identifier: Apache-2.0
"""The XSAVE area as fields: the header's, and each register of each component that the host's CPU has.

Source: Intel SDM volume 1, tables 10-2 (legacy region), 13.4.1 to 13.4.3, 13.5 (what each component holds), 18.3.3
(XTILECFG).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from vmm.state.piece import raw
from vmm.state.value import Part
from vmm.state.world.fields import Leaf
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import HEADER, Component, host_layout, largest_size

__all__ = ["AreaCodec", "area_fields"]

_XSTATE_BV = "XSTATE_BV"
# Name, offset and size within the area: x87 and SSE.
_LEGACY: tuple[Leaf, ...] = (
    ("FP.FCW", 0, 2), ("FP.FSW", 2, 2), ("FP.FTW", 4, 1), ("FP.reserved", 5, 1), ("FP.FOP", 6, 2), ("FP.FIP", 8, 8),
    ("FP.FDP", 16, 8), ("SSE.MXCSR", 24, 4), ("SSE.MXCSR_MASK", 28, 4),
    *((f"FP.ST{number}", 32 + 16 * number, 10) for number in range(8)),
    *((f"FP.ST{number}.reserved", 42 + 16 * number, 6) for number in range(8)),
    *((f"SSE.XMM{number}", 160 + 16 * number, 16) for number in range(16)),
    ("padding", 416, 48), ("software", 464, 48),
    (_XSTATE_BV, HEADER, 8), ("XCOMP_BV", HEADER + 8, 8), ("reserved", HEADER + 16, 48),
)  # fmt: skip
# What a component is made of: names, offsets from its start, sizes.
_PARTS: Mapping[int, tuple[Leaf, ...]] = {
    XFeature.YMM: tuple((f"YMM{number}", 16 * number, 16) for number in range(16)),
    XFeature.BNDREGS: tuple((f"BND{number}", 16 * number, 16) for number in range(4)),
    XFeature.BNDCSR: (("BNDCFGU", 0, 8), ("BNDSTATUS", 8, 8), ("reserved", 16, 48)),
    XFeature.OPMASK: tuple((f"k{number}", 8 * number, 8) for number in range(8)),
    XFeature.ZMM_HI256: tuple((f"ZMM{number}", 32 * number, 32) for number in range(16)),
    XFeature.HI16_ZMM: tuple((f"ZMM{number}", 64 * (number - 16), 64) for number in range(16, 32)),
    XFeature.PKRU: (("PKRU", 0, 4), ("reserved", 4, 4)),
    XFeature.XTILECFG: (
        ("palette", 0, 1), ("start_row", 1, 1), ("reserved", 2, 14),
        *((f"colsb{number}", 16 + 2 * number, 2) for number in range(8)), ("reserved colsb", 32, 16),
        *((f"rows{number}", 48 + number, 1) for number in range(8)), ("reserved rows", 56, 8),
    ),
    XFeature.XTILEDATA: tuple((f"TMM{number}", 1024 * number, 1024) for number in range(8)),
    XFeature.APX: tuple((f"R{number}", 8 * (number - 16), 8) for number in range(16, 32)),
}  # fmt: skip


def _component(component: Component) -> Iterator[Leaf]:
    """Yield a component's fields; those of one that this version does not know are quads."""
    (start, size), *_ = component.ranges
    parts = _PARTS.get(component.number, tuple((f"quad{at // 8}", at, 8) for at in range(0, size, 8)))
    for name, offset, length in parts:
        if offset + length <= size:
            yield f"{component.name}.{name}", start + offset, length


@cache
def area_fields(size: int) -> tuple[Leaf, ...]:
    """Return the fields of an area of so many bytes on this host."""
    found = list(_LEGACY)
    for component in host_layout().components.values():
        if component.number > XFeature.SSE and not component.supervisor and component.end <= size:
            found += _component(component)
    return tuple(found)


class AreaCodec:
    """The part XSAVE. A component of which a field is written is in use: its bit in XSTATE_BV is set."""

    def names(self) -> Iterable[str]:
        """Return all fields of the largest area that this host has."""
        return [name for name, _, _ in area_fields(largest_size())]

    def bits(self, field: str) -> int:
        """Return how wide a field is."""
        return next(8 * size for name, _, size in area_fields(largest_size()) if name == field)

    def split(self, part: Part) -> dict[str, int]:
        """Return the fields by their names."""
        data = raw("XSAVE", part)
        return {
            name: int.from_bytes(data[offset : offset + size], "little")
            for name, offset, size in area_fields(len(data))
        }

    def join(self, part: Part, values: Mapping[str, int]) -> Part:
        """Return the whole area."""
        data = bytearray(raw("XSAVE", part))
        used = 0
        for name, offset, size in area_fields(len(data)):
            if name in values:
                data[offset : offset + size] = values[name].to_bytes(size, "little")
                used |= _bit(name)
        if _XSTATE_BV not in values:
            named = int.from_bytes(data[HEADER : HEADER + 8], "little")
            data[HEADER : HEADER + 8] = (named | used).to_bytes(8, "little")
        return bytes(data)


def _bit(field: str) -> int:
    """Return the bit in XSTATE_BV of the component that a field is of."""
    component, dot, _ = field.partition(".")
    return 1 << XFeature[component] if dot and component in XFeature.__members__ else 0
