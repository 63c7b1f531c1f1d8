# SPDX-License-Identifier: Apache-2.0
"""The XSAVE area as a value: where components lie, what they hold, how two areas differ.

A vCPU's area comes in the host's standard (never compacted) format, components at the offsets of the
host's CPUID leaf 0xD, whatever the guest's CPUID says. Source: Documentation/virt/kvm/api.rst 4.134,
KVM_GET_XSAVE2; Intel SDM volume 1, 13.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from vmm._kvm import ffi, lib
from vmm.kvm.bits import bits
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import cpuid, xfeature
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave_registers import describe_byte

__all__ = [
    "HEADER",
    "INITIAL_FCW",
    "INITIAL_MXCSR",
    "LEGACY_SIZE",
    "MINIMUM",
    "POISON",
    "Component",
    "Difference",
    "Layout",
    "XsaveArea",
    "get_xsave",
    "get_xsave_raw",
    "host_layout",
    "largest_size",
    "set_xsave",
]

# sizeof(struct kvm_xsave): what KVM_GET_XSAVE and KVM_SET_XSAVE move unless the vCPU's area is larger.
LEGACY_SIZE = 4096
HEADER = 512
MINIMUM = HEADER + 64
POISON, _OTHER_POISON = 0xAA, 0x55
_XSTATE_BV, _XCOMP_BV = slice(512, 520), slice(520, 528)
_FCW, _MXCSR, _MXCSR_MASK = slice(0, 2), slice(24, 28), slice(28, 32)
_SOFTWARE = slice(464, 512)
# Bytes that are compared at once: most are equal.
_LINE = 64
INITIAL_FCW = 0x37F
INITIAL_MXCSR = 0x1F80


@dataclass(frozen=True, slots=True)
class Component:
    """Where a state component lies: ``ranges`` are (offset, length) in the standard format, in order."""

    number: int
    ranges: tuple[tuple[int, int], ...]
    aligned: bool = False
    supervisor: bool = False

    @property
    def name(self) -> str:
        """The component's name."""
        return xfeature.name(self.number)

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return sum(length for _, length in self.ranges)

    @property
    def end(self) -> int:
        """The first offset beyond it."""
        return sum(self.ranges[-1])


# The legacy region's two components: x87 without MXCSR, and MXCSR with the XMM registers.
_FP = Component(0, ((0, 24), (32, 128)))
_SSE = Component(1, ((24, 8), (160, 256)))


class Layout:
    """The components of a standard-format area, by number."""

    def __init__(self, components: Iterable[Component] = ()) -> None:
        self.components = {c.number: c for c in (_FP, _SSE, *components)}

    @classmethod
    def from_cpuid(cls, table: cpuid.Cpuid, features: int | None = None) -> Layout:
        """Read leaf 0xD of ``table``; ``features`` limits it to some components."""
        wanted = table.xcr0 | table.xss if features is None else features
        components = []
        for number in bits(wanted & ~3):
            entry = table.find(0xD, number)
            if entry is not None and entry.eax:
                components.append(_component(number, entry))
        return cls(components)

    def __getitem__(self, number: int) -> Component:
        return self.components[number]

    def __contains__(self, number: object) -> bool:
        return number in self.components

    @property
    def features(self) -> int:
        """The bitmap of all components here."""
        return xfeature.mask(*self.components)

    def size(self, features: int | None = None) -> int:
        """Bytes of a standard-format area that holds the user components in ``features`` (default all)."""
        ends = [c.end for c in self._chosen(features) if not c.supervisor]
        return max([MINIMUM, *ends])

    def compacted_size(self, features: int | None = None) -> int:
        """Bytes of a compacted area that holds the components in ``features`` (default all)."""
        size = MINIMUM
        for component in sorted(self._chosen(features), key=lambda c: c.number):
            if component.number >= 2:
                size = (size + 63 & ~63 if component.aligned else size) + component.size
        return size

    def _chosen(self, features: int | None) -> list[Component]:
        return [c for c in self.components.values() if features is None or features >> c.number & 1]

    def at(self, offset: int) -> Component | None:
        """Return the component that the byte at ``offset`` belongs to, or None for header and gaps."""
        for component in self.components.values():
            if not component.supervisor and any(s <= offset < s + n for s, n in component.ranges):
                return component
        return None


def _component(number: int, entry: cpuid.Entry) -> Component:
    return Component(number, ((entry.ebx, entry.eax),), bool(entry.ecx & 2), bool(entry.ecx & 1))


@cache
def host_layout() -> Layout:
    """Return the layout of the host's CPU (and so of every vCPU's area)."""
    top = cpuid.host(0xD, 0)
    found = []
    for number in bits((top.edx << 32 | top.eax) & ~3):
        found.append(_component(number, cpuid.host(0xD, number)))
    return Layout(found)


@dataclass(frozen=True, slots=True)
class Difference:
    """One byte that differs between two areas, and what it is part of."""

    offset: int
    first: int
    second: int
    where: str

    def __str__(self) -> str:
        return f"{self.where} (byte {self.offset}): {self.first:02x} {self.second:02x}"


class XsaveArea:
    """The bytes of one area with the header's fields by name.

    ``data`` is a bytearray that callers may change; its length is what KVM moved (4096 or more).
    """

    def __init__(self, data: bytes | bytearray, layout: Layout | None = None) -> None:
        if len(data) < MINIMUM:
            raise ValueError(f"an XSAVE area has at least {MINIMUM} bytes, not {len(data)}")
        self.data = bytearray(data)
        self.layout = layout or host_layout()

    @classmethod
    def initial(cls, size: int = LEGACY_SIZE, layout: Layout | None = None) -> XsaveArea:
        """Return an area with every component in its initial configuration and XSTATE_BV 0."""
        area = cls(bytes(size), layout)
        area.data[_FCW] = INITIAL_FCW.to_bytes(2, "little")
        area.mxcsr = INITIAL_MXCSR
        return area

    def copy(self) -> XsaveArea:
        """Return an independent copy."""
        return XsaveArea(self.data, self.layout)

    def _get(self, where: slice) -> int:
        return int.from_bytes(self.data[where], "little")

    def _set(self, where: slice, value: int) -> None:
        self.data[where] = value.to_bytes(where.stop - where.start, "little")

    @property
    def xstate_bv(self) -> int:
        """XSTATE_BV: the components that are not (known to be) in their initial configuration."""
        return self._get(_XSTATE_BV)

    @xstate_bv.setter
    def xstate_bv(self, value: int) -> None:
        self._set(_XSTATE_BV, value)

    @property
    def xcomp_bv(self) -> int:
        """XCOMP_BV: 0 in the standard format."""
        return self._get(_XCOMP_BV)

    @xcomp_bv.setter
    def xcomp_bv(self, value: int) -> None:
        self._set(_XCOMP_BV, value)

    @property
    def fcw(self) -> int:
        """The x87 control word."""
        return self._get(_FCW)

    @property
    def mxcsr(self) -> int:
        """MXCSR."""
        return self._get(_MXCSR)

    @mxcsr.setter
    def mxcsr(self, value: int) -> None:
        self._set(_MXCSR, value)

    @property
    def mxcsr_mask(self) -> int:
        """MXCSR_MASK: the bits of MXCSR that the CPU has."""
        return self._get(_MXCSR_MASK)

    @property
    def reserved(self) -> bytes:
        """The 48 reserved bytes of the header."""
        return bytes(self.data[528:576])

    @property
    def software(self) -> bytes:
        """Bytes 464 to 511, which hardware leaves to software."""
        return bytes(self.data[_SOFTWARE])

    def _component(self, number: int) -> Component:
        component = self.layout[number]
        if component.supervisor:
            raise ValueError(f"{component.name} is a supervisor component: it has no place in a standard area")
        if component.end > len(self.data):
            raise ValueError(f"{component.name} ends at {component.end}, beyond this area of {len(self.data)} bytes")
        return component

    def component(self, number: int) -> bytes:
        """Return the bytes of one component; ValueError if the area has no room for it."""
        ranges = self._component(number).ranges
        return b"".join(bytes(self.data[start : start + length]) for start, length in ranges)

    def set_component(self, number: int, data: bytes, *, mark: bool = True) -> None:
        """Put ``data`` into one component, and its bit into XSTATE_BV if ``mark``."""
        component = self._component(number)
        if len(data) != component.size:
            raise ValueError(f"{component.name} has {component.size} bytes, not {len(data)}")
        at = 0
        for start, length in component.ranges:
            self.data[start : start + length] = data[at : at + length]
            at += length
        if mark:
            self.xstate_bv |= 1 << number

    def normalised(self) -> XsaveArea:
        """Return the same state in one canonical form: XSTATE_BV names what differs from its initial state.

        Whether the CPU noticed that a component is in its initial configuration is its own affair (the INIT
        optimisation), and MXCSR_MASK describes the CPU. Source: Intel SDM volume 1, 13.6.
        """
        area = self.copy()
        area.data[_MXCSR_MASK] = bytes(4)
        initial = XsaveArea.initial(len(area.data), area.layout)
        in_use = 0
        has_mxcsr = area.xstate_bv & 6  # SSE or AVX
        mxcsr = area.mxcsr
        for number, component in area.layout.components.items():
            if not component.supervisor and component.end <= len(area.data):
                if not area.xstate_bv >> number & 1:  # then its bytes mean nothing
                    area.set_component(number, initial.component(number), mark=False)
                if number == XFeature.SSE and has_mxcsr:
                    area.mxcsr = mxcsr
                in_use |= (area.component(number) != initial.component(number)) << number
        area.xstate_bv = area.xstate_bv & ~area.layout.features | in_use
        return area

    def stale(self) -> list[str]:
        """Name the components whose bit is clear while their bytes are not initial, which KVM never hands out."""
        initial = XsaveArea.initial(len(self.data), self.layout)
        found = []
        for number, component in self.layout.components.items():
            if component.supervisor or component.end > len(self.data) or self.xstate_bv >> number & 1:
                continue
            skip = 8 if number == XFeature.SSE else 0  # MXCSR comes with AVX too
            if self.component(number)[skip:] != initial.component(number)[skip:]:
                found.append(f"bytes of {component.name} without its bit in XSTATE_BV")
        return found

    def same_state(self, other: XsaveArea) -> list[str]:
        """Return how the state that ``other`` (from KVM) stands for differs from this one's; empty if it does not."""
        if self.data == other.data:  # nearly always, and normalising costs more than all the rest
            return []
        return other.stale() + [str(found) for found in self.normalised().compare(other.normalised(), limit=4)]

    def compare(self, other: XsaveArea, limit: int = 16) -> list[Difference]:
        """Return the bytes that differ, each with component, register and byte; at most ``limit``.

        The software-available bytes are left out: KVM writes the host's features there.
        """
        return self.compare_bytes(bytes(other.data), limit)

    def compare_bytes(self, other: bytes, limit: int = 16) -> list[Difference]:
        """Like compare, against raw bytes; a missing byte differs from everything."""
        found: list[Difference] = []
        if self.data == other:
            return found
        for line in range(0, max(len(self.data), len(other)), _LINE):
            if self.data[line : line + _LINE] == other[line : line + _LINE]:
                continue
            for offset in range(line, min(line + _LINE, max(len(self.data), len(other)))):
                ours = self.data[offset] if offset < len(self.data) else -1
                theirs = other[offset] if offset < len(other) else -1
                if ours != theirs and not _SOFTWARE.start <= offset < _SOFTWARE.stop:
                    found.append(Difference(offset, ours, theirs, self.where(offset)))
                    if len(found) >= limit:
                        return found
        return found

    def where(self, offset: int) -> str:
        """Name the byte at ``offset``: component, register and byte, or the header's field."""
        if HEADER <= offset < MINIMUM:
            field = "XSTATE_BV" if offset < 520 else "XCOMP_BV" if offset < 528 else "reserved header"
            return f"{field} byte {(offset - HEADER) % 8 if offset < 528 else offset - HEADER}"
        component = self.layout.at(offset)
        if component is None:
            return f"gap at {offset}"
        return describe_byte(component.number, offset - component.ranges[0][0], component.name)


# Room beyond the largest area that this CPU has, so that a byte too many is counted and does no harm.
_CANARY = 4096


@cache
def largest_size() -> int:
    """Return the size of the largest area any vCPU of this host can have: the CPU's own, never below 4096."""
    return max(LEGACY_SIZE, host_layout().size())


def get_xsave(vcpu: Vcpu, *, legacy: bool = False) -> XsaveArea:
    """KVM_GET_XSAVE2 (or, with ``legacy``, KVM_GET_XSAVE) as a value of the length KVM wrote.

    The buffer has room for the largest area of this CPU and is poisoned, and what was written is counted: no
    call says how large a vCPU's area is, and KVM_CAP_XSAVE2 reflects the process's permission. State that ends
    with the poison's byte is told from it by a second read with another poison.
    """
    data = get_xsave_raw(vcpu, largest_size() + _CANARY, legacy=legacy)
    written = max(lib.vmm_written_length(data, len(data), POISON), LEGACY_SIZE)
    area = XsaveArea(ffi.buffer(data, written)[:])
    if not _plausible(area):
        data = get_xsave_raw(vcpu, largest_size() + _CANARY, legacy=legacy, poison=_OTHER_POISON)
        again = lib.vmm_written_length(data, len(data), _OTHER_POISON)
        area = XsaveArea(ffi.buffer(data, max(written, again))[:])
    return area


def _plausible(area: XsaveArea) -> bool:
    """Tell whether an area ends where a component does, and beyond all that its XSTATE_BV names."""
    size, named = len(area.data), area.xstate_bv
    user = [component for component in area.layout.components.values() if not component.supervisor]
    whole = size == LEGACY_SIZE or any(component.end == size for component in user)
    return whole and all(component.end <= size for component in user if named >> component.number & 1)


def get_xsave_raw(vcpu: Vcpu, size: int, *, legacy: bool = False, poison: int = POISON) -> Any:
    """Return a poisoned ``uint8_t[size]`` after KVM_GET_XSAVE2 (or KVM_GET_XSAVE) wrote into it."""
    data = ffi.new("uint8_t[]", size)
    ffi.memmove(data, bytes([poison]) * size, size)
    vcpu.ioctl(lib.KVM_GET_XSAVE if legacy else lib.KVM_GET_XSAVE2, data)
    return data


def set_xsave(vcpu: Vcpu, area: XsaveArea) -> None:
    """KVM_SET_XSAVE. The kernel reads as many bytes as the vCPU's area has: a shorter ``area`` is filled with zeros.

    EINVAL: a component this vCPU may not have, a non-zero XCOMP_BV or reserved byte, or a bad MXCSR.
    """
    data = ffi.new("uint8_t[]", max(len(area.data), largest_size()))
    ffi.memmove(data, area.data, len(area.data))
    vcpu.ioctl(lib.KVM_SET_XSAVE, data)
