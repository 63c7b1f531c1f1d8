# SPDX-License-Identifier: Apache-2.0
"""Whether the parts of an x86 vCPU's state fit together and stay inside what their own CPUID offers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

from vmm.kvm.bits import bits
from vmm.state.errors import StreamError
from vmm.state.value import Part, VcpuState
from vmm.x86 import xfeature
from vmm.x86.cpuid import Cpuid
from vmm.x86.msr import name
from vmm.x86.msr_names import Msr
from vmm.x86.xsave import Layout, XsaveArea

__all__ = ["allowed_msrs", "check_contents", "check_layout", "check_readable", "without_disabled"]

_MAX_XCRS = 16
_LEGACY = xfeature.mask(xfeature.XFeature.FP, xfeature.XFeature.SSE)
# Bits 0 to 15, and AMD's bit 17 (misaligned SSE); which of them a CPU has the kernel knows.
_MXCSR = 0x2FFFF
# The highest 24 bits of an id (KVM_REG_X86, 64 bits), then its type: arch/x86/include/uapi/asm/kvm.h, KVM_X86_REG_ID.
_ONE_REG, _TYPE_MSR, _TYPE_KVM = 0x20_3000, 2, 3
_GUEST_SSP = 0


@cache
def allowed_msrs() -> frozenset[int]:
    """Return the indices in msrs.toml."""
    found: set[int] = set()
    for entry in tomllib.loads(Path(__file__).with_name("msrs.toml").read_text())["msr"]:
        for indices in entry["indices"]:
            first, last = (indices, indices) if isinstance(indices, int) else indices
            found |= set(range(first, last + 1))
    return frozenset(found)


def check_contents(where: str, parts: Mapping[str, Part]) -> None:
    """Raise StreamError for what no vCPU with this CPUID has; the parts have their shapes already."""
    table = Cpuid.unpack(_bytes(parts, "CPUID"))
    _check_xcrs(f"{where}, XCRS", _bytes(parts, "XCRS"), table.xcr0)
    _check_xsave(f"{where}, XSAVE", parts, table.xcr0)
    if clash := _disabled(parts):
        raise StreamError(
            f"{where}, XSAVE",
            f"XSTATE_BV has {xfeature.describe(clash)}, which IA32_XFD disables: a vCPU never has that",
        )
    _check_msrs(where, "XFD", parts, frozenset({Msr.XFD, Msr.XFD_ERR}))
    _check_msrs(where, "TSC", parts, frozenset({Msr.TSC}))
    _check_msrs(where, "MSRS", parts, allowed_msrs() - {Msr.XFD, Msr.XFD_ERR, Msr.TSC})
    _check_one_regs(f"{where}, ONE_REGS", _registers(parts, "ONE_REGS"))


def _bytes(parts: Mapping[str, Part], name: str) -> bytes:
    part = parts[name]
    assert isinstance(part, bytes)
    return part


def _registers(parts: Mapping[str, Part], name: str) -> Mapping[int, bytes]:
    part = parts.get(name, {})
    assert not isinstance(part, bytes)
    return part


def _check_xcrs(where: str, data: bytes, offered: int) -> None:
    count, flags = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4))
    if count > _MAX_XCRS or flags:
        raise StreamError(where, f"nr_xcrs is {count} and flags {flags:#x}: at most {_MAX_XCRS}, and no flags")
    for row in range(count):
        entry = data[8 + 16 * row : 24 + 16 * row]
        number, value = int.from_bytes(entry[:4], "little"), int.from_bytes(entry[8:], "little")
        if number == 0 and value & ~(offered | 1):
            raise StreamError(
                where, f"XCR0 is {xfeature.describe(value)}, and CPUID offers {xfeature.describe(offered)} only"
            )


def check_layout(where: str, parts: Mapping[str, Part]) -> Layout:
    """Return the layout that CPUID gives the XSAVE area; StreamError if the area cannot have it."""
    table, size = Cpuid.unpack(_bytes(parts, "CPUID")), len(_bytes(parts, "XSAVE"))
    layout = Layout.from_cpuid(table, table.xcr0)
    if size < layout.size():
        raise StreamError(where, f"it has {size} bytes, and by CPUID leaf 0xD its components end at {layout.size()}")
    ranges = sorted((start, length, c.name) for c in layout.components.values() for start, length in c.ranges)
    for (start, length, first), (behind, _, second) in pairwise(ranges):
        if behind < start + length:
            raise StreamError(where, f"by CPUID leaf 0xD {second} lies inside {first}, which no CPU has")
    return layout


def check_readable(where: str, name: str, parts: Mapping[str, Part]) -> None:
    """Raise StreamError for an XSAVE area that cannot have the layout that CPUID gives it."""
    if name == "XSAVE" and "CPUID" in parts:
        check_layout(where, parts)


def _check_xsave(where: str, parts: Mapping[str, Part], offered: int) -> None:
    area = XsaveArea(_bytes(parts, "XSAVE"), check_layout(where, parts))
    if stray := area.xstate_bv & ~(offered | _LEGACY):
        raise StreamError(
            where, f"XSTATE_BV has {xfeature.describe(stray)}, and CPUID offers {xfeature.describe(offered)} only"
        )
    if area.xcomp_bv:
        raise StreamError(where, f"XCOMP_BV is {area.xcomp_bv:#x}: KVM's areas are never compacted, it has to be 0")
    if any(area.reserved):
        raise StreamError(where, "the header's reserved bytes are not zero")
    if stray := area.mxcsr & ~_MXCSR:
        raise StreamError(where, f"MXCSR is {area.mxcsr:#x}, its bits {stray:#x} are reserved")


def _disabled(parts: Mapping[str, Part]) -> int:
    """What XSTATE_BV names although IA32_XFD disables it."""
    xfd = int.from_bytes(_registers(parts, "XFD").get(Msr.XFD, b""), "little")
    return int.from_bytes(_bytes(parts, "XSAVE")[512:520], "little") & xfd


def without_disabled(vcpu: VcpuState) -> tuple[VcpuState, list[str]]:
    """Return the vCPU without the XSTATE_BV bits that its IA32_XFD disables, and a sentence about each.

    A KVM with the fix of CVE-2026-23005 drops such a component's contents by itself; without it such a state must
    never get there. Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave.
    """
    shaped = isinstance(vcpu.parts.get("XSAVE"), bytes) and not isinstance(vcpu.parts.get("XFD", b""), bytes)
    if not shaped or len(_bytes(vcpu.parts, "XSAVE")) < 520 or not (clash := _disabled(vcpu.parts)):
        return vcpu, []
    data = bytearray(_bytes(vcpu.parts, "XSAVE"))
    for bit in bits(clash):
        data[512 + bit // 8] &= ~(1 << bit % 8)
    notes = [
        f"vCPU {vcpu.identifier}: {xfeature.name(bit)} is dropped, XSTATE_BV named it while IA32_XFD disables it"
        for bit in bits(clash)
    ]
    return vcpu.with_part("XSAVE", bytes(data)), notes


def _check_msrs(where: str, part: str, parts: Mapping[str, Part], allowed: frozenset[int]) -> None:
    if stray := [index for index in _registers(parts, part) if index not in allowed]:
        names = ", ".join(name(index) for index in stray[:8])
        raise StreamError(f"{where}, {part}", f"not allowed in this part of a saved state: {names}")


def _check_one_regs(where: str, registers: Mapping[int, bytes]) -> None:
    for identifier, value in registers.items():
        kind, index = identifier >> 32 & 0xFF, identifier & 0xFFFFFFFF
        if identifier >> 40 != _ONE_REG or len(value) != 8:
            raise StreamError(where, f"{identifier:#x} with {len(value)} bytes is not an x86 register of 64 bits")
        known = index in allowed_msrs() if kind == _TYPE_MSR else kind == _TYPE_KVM and index == _GUEST_SSP
        if not known:
            raise StreamError(where, f"register {identifier:#x} is not allowed in a saved state")
