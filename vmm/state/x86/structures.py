# SPDX-License-Identifier: Apache-2.0
"""The parts of an x86 vCPU's state that are one structure, and how their fields are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.state.errors import StreamError
from vmm.state.piece import Change, Reading, Row, Structure, raw
from vmm.state.value import Part
from vmm.state.x86.area import table
from vmm.x86 import xfeature
from vmm.x86.fields import Cr4, Xcr0

__all__ = ["Fields", "Lapic", "Sregs", "Xcrs", "in_smm"]

_U64 = 8
_MAX_XCRS = 16
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_CR4, _EFER = 248, 264  # their offsets in struct kvm_sregs2
_VMXE, _SVME = 1 << 13, 1 << 12
_FLAGS, _SMM, _SMI_PENDING = 20, 24, 25  # in struct kvm_vcpu_events
_VALID_SMM = 1 << 3  # KVM_VCPUEVENT_VALID_SMM


class Fields(Structure):
    """A structure that is shown field by field."""

    def describe(self, part: Part, parts: Mapping[str, Part]) -> dict[str, str]:
        """Return the fields by name; long ones as bytes."""
        data = raw(self.name, part, self.size)
        return {
            field: self.text(field, data[found.offset : found.offset + ffi.sizeof(found.type)])
            for field, found in ffi.typeof(f"struct {self.struct}").fields
        }

    def text(self, field: str, value: bytes) -> str:
        """Return a field's value for people."""
        return value.hex() if len(value) > _U64 else f"{int.from_bytes(value, 'little'):#x}"


class Sregs(Fields):
    """The segments, control registers and EFER."""

    def text(self, field: str, value: bytes) -> str:
        """Return CR4 by the names of its bits."""
        return str(Cr4(int.from_bytes(value, "little"))) if field == "cr4" else super().text(field, value)

    def different(self, first: Part, second: Part, parts: Mapping[str, Part]) -> Iterator[Change]:
        """Compare without what an unusable segment holds."""
        return super().different(self._without_unusable(first), self._without_unusable(second), parts)

    def _without_unusable(self, part: Part) -> bytes:
        """An unusable segment is its selector alone: KVM marks the rest accessed when it is written back."""
        value = self.value(part)
        for name in _SEGMENTS:
            segment = getattr(value, name)
            if segment.unusable:
                setattr(value, name, {"selector": segment.selector, "unusable": 1})
        return bytes(ffi.buffer(value))

    def nested(self, part: Part) -> bool:
        """Tell whether the guest virtualizes: CR4.VMXE or EFER.SVME."""
        data = raw(self.name, part, self.size)
        cr4, efer = (int.from_bytes(data[at : at + _U64], "little") for at in (_CR4, _EFER))
        return bool(cr4 & _VMXE or efer & _SVME)


class Xcrs(Structure):
    """XCR0, in a structure with room for more. A host without XSAVE has none, and takes none."""

    def write(self, part: Part) -> list[Row]:
        """One call, or none."""
        return super().write(part) if any(raw(self.name, part)[:4]) else []

    def describe(self, part: Part, parts: Mapping[str, Part]) -> dict[str, str]:
        """Return each register by its number, XCR0 by the names of its bits."""
        xcrs = self.value(part)
        rows = xcrs.xcrs[0 : min(xcrs.nr_xcrs, _MAX_XCRS)]
        return {f"XCR{row.xcr}": str(Xcr0(row.value)) if row.xcr == 0 else f"{row.value:#x}" for row in rows}

    def check(self, where: str, parts: Mapping[str, Part]) -> None:
        """XCR0 is within what CPUID offers."""
        data, offered = raw(self.name, parts[self.name]), table(parts).xcr0
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


def in_smm(events: Part) -> bool:
    """Tell by EVENTS whether the vCPU is in system management mode, or enters it when it runs next."""
    data = raw("EVENTS", events)
    valid = int.from_bytes(data[_FLAGS : _FLAGS + 4], "little") & _VALID_SMM
    return bool(valid and (data[_SMM] or data[_SMI_PENDING]))


class Lapic(Fields):
    """The local APIC, of a vCPU that has one in the kernel."""

    def read(self, vcpu: Vcpu) -> Reading | None:
        """One call, or none."""
        return super().read(vcpu) if self.present(vcpu) else None

    @staticmethod
    def present(vcpu: Vcpu) -> bool:
        """Tell whether KVM has this vCPU's APIC: it comes with the vCPU or never."""
        if vcpu not in _LAPICS:
            _LAPICS[vcpu] = _answers(vcpu)
        return _LAPICS[vcpu]


_LAPICS: WeakKeyDictionary[Vcpu, bool] = WeakKeyDictionary()


def _answers(vcpu: Vcpu) -> bool:
    try:
        vcpu.ioctl(lib.KVM_GET_LAPIC, ffi.new("struct kvm_lapic_state *"))
    except KvmError:
        return False
    return True
