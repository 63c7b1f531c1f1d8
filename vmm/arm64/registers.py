# SPDX-License-Identifier: Apache-2.0
"""The ids of KVM_GET_ONE_REG and KVM_SET_ONE_REG as numbers that print by name.

>>> print(z(7), SYSTEM["ZCR_EL1"], Register(0x6030000000100000))
Z7 ZCR_EL1 X0

Source: arch/arm64/include/uapi/asm/kvm.h; Documentation/virt/kvm/api.rst, 4.68. The numbers are ours to
spell, so that ids can be read on a host of any architecture.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

from vmm.arm64.system_registers import NAMES

__all__ = [
    "FFR",
    "FPCR",
    "FPSR",
    "PC",
    "PSTATE",
    "SP",
    "SVE",
    "SYSTEM",
    "VLS",
    "Group",
    "Register",
    "cache",
    "core",
    "ffr",
    "firmware",
    "p",
    "sysreg",
    "v",
    "x",
    "z",
]

_ARM64 = 0x6000_0000_0000_0000
_SIZE_SHIFT = 52
_U32, _U64, _U128, _U256, _U512, _U2048 = 2, 3, 4, 5, 6, 8
SLICES = 32

# Where the core registers lie in struct kvm_regs, in units of 32 bits; V0 to V31 follow at 0x54.
_CORE_NAMES = {
    **{2 * n: f"X{n}" for n in range(31)},
    0x3E: "SP", 0x40: "PC", 0x42: "PSTATE", 0x44: "SP_EL1", 0x46: "ELR_EL1", 0x48: "SPSR_EL1",
    0x4A: "SPSR_ABT", 0x4C: "SPSR_UND", 0x4E: "SPSR_IRQ", 0x50: "SPSR_FIQ",
    **{0x54 + 4 * n: f"V{n}" for n in range(32)},
    0xD4: "FPSR", 0xD5: "FPCR",
}  # fmt: skip
_CORE_OFFSETS = {name: offset for offset, name in _CORE_NAMES.items()}
_FIRMWARE_NAMES = {0: "PSCI_VERSION", 1: "WORKAROUND_1", 2: "WORKAROUND_2", 3: "WORKAROUND_3"}
_BITMAP_NAMES = {0: "STD_BMAP", 1: "STD_HYP_BMAP", 2: "VENDOR_HYP_BMAP", 3: "VENDOR_HYP_BMAP_2"}


class Group(IntEnum):
    """KVM_REG_ARM_COPROC: which kind of register an id is of."""

    CORE = 0x10
    DEMUX = 0x11
    SYSREG = 0x13
    FIRMWARE = 0x14
    SVE = 0x15
    BITMAP = 0x16


_GROUP_NAMES: dict[int, dict[int, str]] = {
    Group.CORE: _CORE_NAMES, Group.FIRMWARE: _FIRMWARE_NAMES, Group.BITMAP: _BITMAP_NAMES,
}  # fmt: skip


class Register(int):
    """A register id: an int that knows its name and size."""

    __slots__ = ()

    @property
    def size(self) -> int:
        """How many bytes the register has."""
        return 1 << (self >> _SIZE_SHIFT & 0xF)

    @property
    def group(self) -> int:
        """The number of the register's group, a Group unless it is unknown."""
        return self >> 16 & 0xFFF

    @property
    def slice(self) -> int:
        """The slice of an SVE register."""
        return self & SLICES - 1

    @property
    def encoding(self) -> tuple[int, int, int, int, int]:
        """op0, op1, CRn, CRm, op2 of a system register."""
        return self >> 14 & 3, self >> 11 & 7, self >> 7 & 15, self >> 3 & 15, self & 7

    @property
    def name(self) -> str:
        """The register's name; its number where nobody gave it one."""
        return _name(self)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{self.name} {int(self):#018x}>"

    def __format__(self, specification: str) -> str:
        return format(int(self) if specification[-1:] in ("x", "d", "X", "b") else self.name, specification)


@lru_cache(4096)
def _name(register: Register) -> str:
    low, group = register & 0xFFFF, register.group
    known = _GROUP_NAMES.get(group, {})
    if low in known:
        return known[low]
    if group == Group.SYSREG:
        return NAMES.get(register.encoding) or "S{}_{}_C{}_C{}_{}".format(*register.encoding)
    if group == Group.SVE:
        return _sve_name(register, low)
    if group == Group.DEMUX:
        return f"CCSIDR[{low & 0xFF}]"
    return f"{int(register):#018x}"


def _sve_name(register: Register, low: int) -> str:
    if low == 0xFFFF:
        return "VLS"
    number, suffix = low >> 5 & 31, f"[{register.slice}]" if register.slice else ""
    if low < 0x400:
        return f"Z{number}{suffix}"
    if 0x400 <= low < 0x600:
        return f"P{number}{suffix}"
    return f"FFR{suffix}" if 0x600 <= low < 0x620 else f"{int(register):#018x}"


def _register(group: int, size: int, low: int) -> Register:
    return Register(_ARM64 | size << _SIZE_SHIFT | group << 16 | low)


def core(name: str) -> Register:
    """Return a core register by its name: X0 to X30, SP, PC, PSTATE, V0 to V31, FPSR, FPCR, ..."""
    offset = _CORE_OFFSETS[name]
    size = _U32 if offset >= 0xD4 else _U128 if offset >= 0x54 else _U64
    return _register(Group.CORE, size, offset)


def x(number: int) -> Register:
    """Return X0 to X30."""
    return core(f"X{number}")


def v(number: int) -> Register:
    """Return V0 to V31, which a vCPU with SVE does not have."""
    return core(f"V{number}")


def z(number: int, slice: int = 0) -> Register:
    """Return a slice of Z0 to Z31: 256 bytes of which a vCPU uses as many as its largest vector length."""
    return _register(Group.SVE, _U2048, number << 5 | slice)


def p(number: int, slice: int = 0) -> Register:
    """Return a slice of P0 to P15: 32 bytes, one bit for each byte of a Z register."""
    return _register(Group.SVE, _U256, 0x400 | number << 5 | slice)


def ffr(slice: int = 0) -> Register:
    """Return a slice of the first-fault register."""
    return _register(Group.SVE, _U256, 0x600 | slice)


def sysreg(op0: int, op1: int, crn: int, crm: int, op2: int) -> Register:
    """Return a system register by its encoding."""
    return _register(Group.SYSREG, _U64, op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)


def cache(number: int) -> Register:
    """Return CCSIDR_EL1 of the cache that CSSELR_EL1 selects by ``number``: its level less 1, twice, and InD."""
    return _register(Group.DEMUX, _U32, number)


def firmware(number: int, *, bitmap: bool = False) -> Register:
    """Return a firmware pseudo-register: 0 is PSCI_VERSION, or a bitmap of the hypercalls offered."""
    return _register(Group.BITMAP if bitmap else Group.FIRMWARE, _U64, number)


SP, PC, PSTATE, FPSR, FPCR = core("SP"), core("PC"), core("PSTATE"), core("FPSR"), core("FPCR")
FFR = ffr()
VLS = _register(Group.SVE, _U512, 0xFFFF)
# Z, P and FFR as a vCPU with SVE has them.
SVE = (*(z(n) for n in range(32)), *(p(n) for n in range(16)), FFR)
SYSTEM = {name: sysreg(*encoding) for encoding, name in NAMES.items()}
