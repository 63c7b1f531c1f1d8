# SPDX-License-Identifier: Apache-2.0
"""Registers by their fields: a class per register, bit positions as attributes, values that print by name.

>>> str(Xfd(1 << 18))
'0x40000 (XTILEDATA)'
>>> Cr4(0x40620).OSXSAVE
1

A field is a bit number, or a (highest, lowest) pair of bit numbers. Source: Intel SDM volume 3, 2.5 (CR4),
2.6 (XCR0); volume 1, 13.14 (XFD), 17.1.2 (U_CET, S_CET); volume 2, CPUID leaves 0x1D and 0x1E.
"""

from __future__ import annotations

from typing import Any, ClassVar

from vmm.x86.msr_names import Msr
from vmm.x86.xfeature import XFeature

__all__ = [
    "BY_MSR",
    "Cet",
    "Cr4",
    "Register",
    "TileInfo",
    "TmulInfo",
    "Xcr0",
    "Xfd",
    "Xss",
    "describe_msr",
]


class Register(int):
    """A register's value; subclasses name their fields, which are then attributes of a value."""

    fields: ClassVar[dict[str, int | tuple[int, int]]] = {}

    def __getattr__(self, name: str) -> int:
        try:
            field = type(self).fields[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no field {name}") from None
        return self._value(field)

    def _value(self, field: int | tuple[int, int]) -> int:
        high, low = (field, field) if isinstance(field, int) else field
        return self >> low & (1 << high - low + 1) - 1

    def __str__(self) -> str:
        shown, named = [], 0
        for name, field in self.fields.items():
            high, low = (field, field) if isinstance(field, int) else field
            named |= ((1 << high + 1) - 1) & ~((1 << low) - 1)
            value = self._value(field)
            if value:
                shown.append(name if isinstance(field, int) else f"{name}={value:#x}")
        rest = int(self) & ~named
        shown += [f"bit {bit}" for bit in range(rest.bit_length()) if rest >> bit & 1]
        return f"{int(self):#x} ({' '.join(shown) or 'none'})"

    def compare(self, other: int) -> list[str]:
        """Return the names of the fields whose values differ, ``bit n`` for those without a name."""
        theirs = type(self)(other)
        names = [name for name in self.fields if getattr(self, name) != getattr(theirs, name)]
        rest = Register(int(self) ^ other)
        for field in self.fields.values():
            high, low = (field, field) if isinstance(field, int) else field
            rest = Register(int(rest) & ~(((1 << high + 1) - 1) & ~((1 << low) - 1)))
        return names + [f"bit {bit}" for bit in range(rest.bit_length()) if rest >> bit & 1]


def _components(*numbers: XFeature) -> dict[str, int | tuple[int, int]]:
    return {number.name: int(number) for number in numbers}


class Xcr0(Register):
    """XCR0: the user state components that are enabled."""

    fields = _components(
        XFeature.FP, XFeature.SSE, XFeature.YMM, XFeature.BNDREGS, XFeature.BNDCSR, XFeature.OPMASK,
        XFeature.ZMM_HI256, XFeature.HI16_ZMM, XFeature.PKRU, XFeature.XTILECFG, XFeature.XTILEDATA, XFeature.APX,
    )  # fmt: skip


class Xss(Register):
    """IA32_XSS: the supervisor state components that are enabled."""

    fields = _components(
        XFeature.PT, XFeature.PASID, XFeature.CET_U, XFeature.CET_S, XFeature.HDC, XFeature.UINTR, XFeature.LBR,
        XFeature.HWP,
    )  # fmt: skip


class Xfd(Register):
    """IA32_XFD and IA32_XFD_ERR: components that are disabled, or whose use raised #NM."""

    fields = _components(XFeature.XTILEDATA)


class Cet(Register):
    """IA32_U_CET and IA32_S_CET."""

    fields: ClassVar[dict[str, int | tuple[int, int]]] = {
        "SH_STK_EN": 0, "WR_SHSTK_EN": 1, "ENDBR_EN": 2, "LEG_IW_EN": 3, "NO_TRACK_EN": 4, "SUPPRESS_DIS": 5,
        "SUPPRESS": 10, "TRACKER": 11, "EB_LEG_BITMAP_BASE": (63, 12),
    }  # fmt: skip


class Cr4(Register):
    """CR4."""

    fields: ClassVar[dict[str, int | tuple[int, int]]] = {
        "VME": 0, "PVI": 1, "TSD": 2, "DE": 3, "PSE": 4, "PAE": 5, "MCE": 6, "PGE": 7, "PCE": 8, "OSFXSR": 9,
        "OSXMMEXCPT": 10, "UMIP": 11, "LA57": 12, "VMXE": 13, "SMXE": 14, "FSGSBASE": 16, "PCIDE": 17, "OSXSAVE": 18,
        "KL": 19, "SMEP": 20, "SMAP": 21, "PKE": 22, "CET": 23, "PKS": 24, "UINTR": 25, "FRED": 32,
    }  # fmt: skip


class TileInfo(Register):
    """CPUID 0x1D.1 as one number, EBX:EAX in the low half and EDX:ECX in the high half."""

    fields: ClassVar[dict[str, int | tuple[int, int]]] = {
        "total_tile_bytes": (15, 0), "bytes_per_tile": (31, 16), "bytes_per_row": (47, 32), "max_names": (63, 48),
        "max_rows": (79, 64),
    }  # fmt: skip

    @classmethod
    def from_registers(cls, registers: tuple[int, int, int, int]) -> TileInfo:
        """Return the value of EAX, EBX, ECX, EDX."""
        return cls(sum(value << 32 * position for position, value in enumerate(registers)))


class TmulInfo(Register):
    """CPUID 0x1E.0 EBX: the limits of the tile multiplier."""

    fields: ClassVar[dict[str, int | tuple[int, int]]] = {"tmul_maxk": (7, 0), "tmul_maxn": (23, 8)}


# Which class describes which MSR.
BY_MSR: dict[int, type[Register]] = {Msr.XFD: Xfd, Msr.XFD_ERR: Xfd, Msr.U_CET: Cet, Msr.S_CET: Cet, Msr.XSS: Xss}


def describe_msr(index: int, value: Any) -> str:
    """Return an MSR's value by its fields where they have names, else in hexadecimal; None as ``unreadable``."""
    if value is None:
        return "unreadable"
    kind = BY_MSR.get(index)
    return str(kind(value)) if kind else f"{value:#x}"
