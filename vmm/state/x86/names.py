# SPDX-License-Identifier: Apache-2.0
"""The names inside the parts of an x86 vCPU's state: registers and fields, and which of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmm._kvm import ffi, lib
from vmm.state.errors import StateRefused
from vmm.state.value import Part
from vmm.x86.cpuid import Cpuid
from vmm.x86.fields import Cr4, Xcr0, describe_msr
from vmm.x86.msr_names import saved_name
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import Layout, XsaveArea

__all__ = ["STRUCTURES", "describe", "different", "explain", "one_reg_name", "raw", "requests"]

_U64 = 8
# The parts that are one structure of the kernel's.
STRUCTURES = {
    "SREGS": "kvm_sregs2", "XCRS": "kvm_xcrs", "LAPIC": "kvm_lapic_state", "REGS": "kvm_regs",
    "DEBUGREGS": "kvm_debugregs", "MP_STATE": "kvm_mp_state", "EVENTS": "kvm_vcpu_events",
}  # fmt: skip


def raw(name: str, part: Part, size: int | None = None) -> bytes:
    """Return a part that is bytes, as many as it has to have; StateRefused if it is not."""
    if not isinstance(part, bytes) or (size is not None and len(part) != size):
        raise StateRefused(f"{name} has to be {size or 'a number of'} bytes: the state is damaged")
    return part


def requests(name: str) -> tuple[str, str]:
    """Return the names of the ioctls that read and write a part which is one structure."""
    suffix = {"SREGS": "SREGS2", "EVENTS": "VCPU_EVENTS"}.get(name, name)
    return f"KVM_GET_{suffix}", f"KVM_SET_{suffix}"


def one_reg_name(identifier: int) -> str:
    """Return the name of a register of KVM_GET_REG_LIST."""
    kind, index = identifier >> 32 & 0xFF, identifier & 0xFFFFFFFF
    if kind == lib.KVM_X86_REG_TYPE_KVM:
        return "GUEST_SSP" if index == lib.KVM_REG_GUEST_SSP else f"KVM_{index:#x}"
    return saved_name(index)


def explain(name: str, parts: Mapping[str, Part]) -> dict[str, str]:
    """Return what a part of a vCPU or VM holds; an XSAVE area is read with the layout of the CPUID beside it."""
    if name == "XSAVE" and "CPUID" in parts:
        layout = Layout.from_cpuid(Cpuid.unpack(raw("CPUID", parts["CPUID"])))
        return _describe_xsave(XsaveArea(raw(name, parts[name]), layout))
    return describe(name, parts[name])


def describe(name: str, part: Part) -> dict[str, str]:
    """Return what a part holds, value by field or register name."""
    if name == "CPUID":
        entries = Cpuid.unpack(bytes(raw(name, part)))
        return {f"{entry.function:08x}.{entry.index}": str(entry).split(": ")[1] for entry in entries}
    if name == "CAPS":
        return {f"capability {number}": value.hex() for number, value in _mapping(part).items()}
    if isinstance(part, bytes):
        if name == "XCRS":
            return _describe_xcrs(part)
        if name in STRUCTURES:
            return {field: _text(name, field, value) for field, value in _fields(STRUCTURES[name], part)}
        if name == "XSAVE":
            return _describe_xsave(XsaveArea(part))
        return {name: str(int.from_bytes(part, "little"))}
    if name == "ONE_REGS":
        return {one_reg_name(number): f"{int.from_bytes(value, 'little'):#x}" for number, value in part.items()}
    return {
        saved_name(number): describe_msr(number, int.from_bytes(value, "little")) for number, value in part.items()
    }


def _describe_xcrs(data: bytes) -> dict[str, str]:
    xcrs = ffi.new("struct kvm_xcrs *")
    ffi.memmove(xcrs, raw("XCRS", data, ffi.sizeof("struct kvm_xcrs")), len(data))
    rows = xcrs.xcrs[0 : min(xcrs.nr_xcrs, 16)]
    return {f"XCR{row.xcr}": str(Xcr0(row.value)) if row.xcr == 0 else f"{row.value:#x}" for row in rows}


def _mapping(part: Part) -> Mapping[int, bytes]:
    return {} if isinstance(part, bytes) else part


def _describe_xsave(area: XsaveArea) -> dict[str, str]:
    """One entry for each register of each component that is in use, by the names of its bytes."""
    lines = {"size": str(len(area.data)), "XSTATE_BV": str(Xcr0(area.xstate_bv)), "XCOMP_BV": f"{area.xcomp_bv:#x}"}
    for number, component in area.layout.components.items():
        if component.supervisor or component.end > len(area.data) or not area.xstate_bv >> number & 1:
            continue
        # Beyond the legacy region no register is smaller than eight bytes.
        step = 1 if number < XFeature.YMM else 8
        registers: dict[str, bytearray] = {}
        for start, length in component.ranges:
            for offset in range(start, start + length, step):
                where = area.where(offset).rsplit(" byte ", 1)[0]
                data = area.data[offset : min(offset + step, start + length)]
                registers.setdefault(where, bytearray()).extend(data)
        lines.update({where: data.hex() for where, data in registers.items()})
    return lines


def _fields(kind: str, data: bytes) -> list[tuple[str, bytes]]:
    if len(data) != ffi.sizeof(f"struct {kind}"):
        raise StateRefused(f"struct {kind} has {ffi.sizeof(f'struct {kind}')} bytes, not {len(data)}")
    return [
        (field, data[found.offset : found.offset + ffi.sizeof(found.type)])
        for field, found in ffi.typeof(f"struct {kind}").fields
    ]


def _text(name: str, field: str, value: bytes) -> str:
    if len(value) > _U64:
        return value.hex()
    number = int.from_bytes(value, "little")
    return str(Cr4(number)) if (name, field) == ("SREGS", "cr4") else f"{number:#x}"


def different(name: str, ours: Part, theirs: Part, parts: Mapping[str, Part]) -> list[tuple[str, str]]:
    """Return (register or field, both values) for what differs between two parts of this name.

    ``parts`` are those beside the first: an XSAVE area is read with the layout of their CPUID.
    """
    if ours == theirs:
        return []
    if name == "XSAVE":
        layout = Layout.from_cpuid(Cpuid.unpack(raw("CPUID", parts["CPUID"]))) if "CPUID" in parts else None
        first, second = XsaveArea(raw(name, ours), layout), XsaveArea(raw(name, theirs), layout)
        return [_named_byte(line) for line in first.same_state(second)]
    if name == "SREGS":
        ours, theirs = _without_unusable(raw(name, ours)), _without_unusable(raw(name, theirs))
    first_values, second_values = describe(name, ours), describe(name, theirs)
    names = dict.fromkeys([*first_values, *second_values])
    return [
        (key, f"{first_values.get(key, 'absent')}, {second_values.get(key, 'absent')}")
        for key in names
        if first_values.get(key) != second_values.get(key)
    ]


def _named_byte(line: str) -> tuple[str, str]:
    where, _, values = line.partition(" (byte ")
    return where, f"byte {values.replace('):', ':', 1)}" if values else line


def _without_unusable(data: bytes) -> bytes:
    """An unusable segment has a selector and nothing else: KVM marks the rest accessed when it is written back."""
    value: Any = ffi.new("struct kvm_sregs2 *")
    ffi.memmove(value, data, len(data))
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"):
        segment = getattr(value, name)
        if segment.unusable:
            setattr(value, name, {"selector": segment.selector, "unusable": 1})
    return bytes(ffi.buffer(value))
