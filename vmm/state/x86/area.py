# SPDX-License-Identifier: Apache-2.0
"""The parts CPUID and XSAVE of an x86 vCPU's state: the one says what the other may hold, and where."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from vmm._kvm import ffi, lib
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.state.errors import StreamError
from vmm.state.piece import ANY, Change, Follows, Piece, Reading, Row, Stale, raw
from vmm.state.shape import Shape
from vmm.state.value import Part, VcpuState
from vmm.x86 import xfeature
from vmm.x86.cpuid import MAX_ENTRIES, Cpuid, get_cpuid
from vmm.x86.fields import Xcr0
from vmm.x86.msr_names import Msr
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import Layout, XsaveArea, get_xsave, largest_size

__all__ = ["CpuidTable", "Xsave", "table", "without_disabled"]

_ENTRY = 40  # sizeof(struct kvm_cpuid_entry2)
_BYTES = ffi.typeof("uint8_t[]")
_LEGACY = xfeature.mask(XFeature.FP, XFeature.SSE)
# Bits 0 to 15, and AMD's bit 17 (misaligned SSE); which of them a CPU has the kernel knows.
_MXCSR = 0x2FFFF
# XSTATE_BV in an area.
_XSTATE_BV = slice(512, 520)


def table(parts: Mapping[str, Part]) -> Cpuid:
    """Return the CPUID of a vCPU's parts; StateRefused if it is damaged."""
    return Cpuid.unpack(raw("CPUID", parts["CPUID"]))


class CpuidTable(Piece):
    """The guest's CPUID."""

    chosen = True

    def __init__(self) -> None:
        shape = Shape(_ENTRY, MAX_ENTRIES * _ENTRY, _ENTRY)
        super().__init__("CPUID", ("KVM_GET_CPUID2", "KVM_SET_CPUID2"), shape)

    def read(self, vcpu: Vcpu) -> Reading | None:
        """One call. Linux 6.1 does not tell how many entries it wrote, so that is found out once a table."""
        count = len(get_cpuid(vcpu))
        value = _buffer(count)
        data = ffi.buffer(value.entries, count * _ENTRY)
        return Reading([(lib.KVM_GET_CPUID2, value, ANY)], lambda calls: data[:])

    def unreadable(self, vcpu: Vcpu, row: int, result: int) -> None:
        """E2BIG: the table has grown."""
        if result == -errno.E2BIG:
            raise Stale(KvmError(self.get, -result))
        super().unreadable(vcpu, row, result)

    def write(self, part: Part) -> list[Row]:
        """One call."""
        packed = raw(self.name, part)
        value = _buffer(len(packed) // _ENTRY)
        ffi.memmove(value.entries, packed, len(packed) // _ENTRY * _ENTRY)
        return [(lib.KVM_SET_CPUID2, value, ANY)]

    def why(self, state: VcpuState, name: str) -> str:
        """EPERM is a matter of permission."""
        return ": it names a component without guest permission" if name == "EPERM" else ""

    def describe(self, part: Part, parts: Mapping[str, Part]) -> dict[str, str]:
        """Return the leaves by function and index."""
        entries = Cpuid.unpack(raw(self.name, part))
        return {f"{entry.function:08x}.{entry.index}": str(entry).split(": ")[1] for entry in entries}


def _buffer(count: int) -> Any:
    return ffi.new("struct kvm_cpuid2 *", {"nent": count, "entries": count})


class Xsave(Piece):
    """The XSAVE area, of the length that this vCPU's has."""

    def __init__(self, *after: Follows) -> None:
        super().__init__("XSAVE", ("KVM_GET_XSAVE2", "KVM_SET_XSAVE"), Shape(4096, 1 << 14), *after)

    # The area of a vCPU grows with its CPUID only, and then the calls are made anew: one look at its size will do.
    def read(self, vcpu: Vcpu) -> Reading | None:
        """One call."""
        size = len(get_xsave(vcpu).data)
        value = ffi.new(_BYTES, max(size, largest_size()))
        data = ffi.buffer(value, size)
        return Reading([(lib.KVM_GET_XSAVE2, value, ANY)], lambda calls: data[:])

    def write(self, part: Part) -> list[Row]:
        """One call. KVM reads as many bytes as the vCPU's area has: a shorter one is filled with zeros."""
        data = raw(self.name, part)
        value = ffi.new(_BYTES, max(len(data), largest_size()))
        ffi.memmove(value, data, len(data))
        return [(lib.KVM_SET_XSAVE, value, ANY)]

    def why(self, state: VcpuState, name: str) -> str:
        """Say what the area names that the guest may not have, or what else KVM may mean."""
        offered, area = table(state.parts).xcr0, XsaveArea(raw(self.name, state.parts[self.name]))
        if beyond := area.xstate_bv & ~offered:
            return f": XSTATE_BV has {xfeature.describe(beyond)}, which the guest's CPUID does not offer"
        return ": its CPUID offers all that XSTATE_BV has, so this vCPU has another one yet, or a reserved bit is set"

    def describe(self, part: Part, parts: Mapping[str, Part]) -> dict[str, str]:
        """Return the header, and each register of each component in use by the names of its bytes."""
        area = self._area(part, parts)
        lines = {
            "size": str(len(area.data)), "XSTATE_BV": str(Xcr0(area.xstate_bv)), "XCOMP_BV": f"{area.xcomp_bv:#x}"
        }  # fmt: skip
        for number, component in area.layout.components.items():
            if component.supervisor or component.end > len(area.data) or not area.xstate_bv >> number & 1:
                continue
            # Beyond the legacy region no register is smaller than eight bytes.
            step = 1 if number < XFeature.YMM else 8
            values: dict[str, bytearray] = {}
            for start, length in component.ranges:
                for offset in range(start, start + length, step):
                    where = area.where(offset).rsplit(" byte ", 1)[0]
                    values.setdefault(where, bytearray()).extend(
                        area.data[offset : min(offset + step, start + length)]
                    )
            lines.update({where: data.hex() for where, data in values.items()})
        return lines

    def different(self, first: Part, second: Part, parts: Mapping[str, Part]) -> Iterator[Change]:
        """Yield each byte that differs in what both areas say."""
        for line in self._area(first, parts).same_state(self._area(second, parts)):
            where, _, values = line.partition(" (byte ")
            yield Change(where, f"byte {values.replace('):', ':', 1)}" if values else line)

    def _area(self, part: Part, parts: Mapping[str, Part]) -> XsaveArea:
        """Read an area with the layout of the CPUID beside it, without one with that of this CPU."""
        layout = Layout.from_cpuid(table(parts)) if "CPUID" in parts else None
        return XsaveArea(raw(self.name, part), layout)

    def check(self, where: str, parts: Mapping[str, Part]) -> None:
        """The area has room for what CPUID offers, and names no more than that and IA32_XFD allow."""
        cpuid, data = table(parts), raw(self.name, parts[self.name])
        offered, area = cpuid.xcr0, XsaveArea(data, _layout(where, cpuid, len(data)))
        if stray := area.xstate_bv & ~(offered | _LEGACY):
            raise StreamError(
                where, f"XSTATE_BV has {xfeature.describe(stray)}, and CPUID offers {xfeature.describe(offered)} only"
            )
        if area.xcomp_bv:
            raise StreamError(
                where, f"XCOMP_BV is {area.xcomp_bv:#x}: KVM's areas are never compacted, it has to be 0"
            )
        if any(area.reserved):
            raise StreamError(where, "the header's reserved bytes are not zero")
        if stray := area.mxcsr & ~_MXCSR:
            raise StreamError(where, f"MXCSR is {area.mxcsr:#x}, its bits {stray:#x} are reserved")
        if clash := _disabled(parts):
            raise StreamError(
                where, f"XSTATE_BV has {xfeature.describe(clash)}, which IA32_XFD disables: a vCPU never has that"
            )

    def check_readable(self, where: str, parts: Mapping[str, Part]) -> None:
        """The area can have the layout that CPUID gives it."""
        if "CPUID" in parts:
            _layout(where, table(parts), len(parts[self.name]))


def _layout(where: str, offered: Cpuid, size: int) -> Layout:
    """Return the layout that a CPUID gives an area; StreamError if one of this size cannot have it."""
    layout = Layout.from_cpuid(offered, offered.xcr0)
    if size < layout.size():
        raise StreamError(where, f"it has {size} bytes, and by CPUID leaf 0xD its components end at {layout.size()}")
    ranges = sorted((start, length, c.name) for c in layout.components.values() for start, length in c.ranges)
    for (start, length, first), (behind, _, second) in pairwise(ranges):
        if behind < start + length:
            raise StreamError(where, f"by CPUID leaf 0xD {second} lies inside {first}, which no CPU has")
    return layout


def _disabled(parts: Mapping[str, Part]) -> int:
    """What XSTATE_BV names although IA32_XFD disables it."""
    area, xfd = parts["XSAVE"], parts.get("XFD", {})
    assert isinstance(area, bytes) and not isinstance(xfd, bytes)
    return int.from_bytes(area[_XSTATE_BV], "little") & int.from_bytes(xfd.get(Msr.XFD, b""), "little")


def without_disabled(vcpu: VcpuState) -> tuple[VcpuState, list[str]]:
    """Return the vCPU without the XSTATE_BV bits that its IA32_XFD disables, and a sentence about each.

    A KVM with the fix of CVE-2026-23005 drops such a component's contents by itself; without it such a state must
    never get there. Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave.
    """
    area = vcpu.parts.get("XSAVE")
    shaped = isinstance(area, bytes) and not isinstance(vcpu.parts.get("XFD", {}), bytes)
    if not shaped or len(area or b"") < _XSTATE_BV.stop or not (clash := _disabled(vcpu.parts)):
        return vcpu, []
    data = bytearray(raw("XSAVE", vcpu.parts["XSAVE"]))
    for bit in bits(clash):
        data[_XSTATE_BV.start + bit // 8] &= ~(1 << bit % 8)
    notes = [
        f"vCPU {vcpu.identifier}: {xfeature.name(bit)} is dropped, XSTATE_BV named it while IA32_XFD disables it"
        for bit in bits(clash)
    ]
    return vcpu.with_part("XSAVE", bytes(data)), notes
