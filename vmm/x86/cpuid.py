# SPDX-License-Identifier: Apache-2.0
"""CPUID as a value: what KVM supports, what a vCPU is given, what the host's CPU says.

>>> table = supported(kvm)
>>> table = table.edit(0xD, 0, eax=0x7)
>>> set_cpuid(vcpu, table)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Self

from vmm._kvm import ffi, lib
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.x86.cpuid_names import FEATURES

__all__ = [
    "MAX_ENTRIES",
    "REGISTERS",
    "Cpuid",
    "Entry",
    "enlightened",
    "get_cpuid",
    "given",
    "has_leaf",
    "host",
    "model",
    "set_cpuid",
    "supported",
    "vendor",
]

# KVM_MAX_CPUID_ENTRIES, arch/x86/include/asm/kvm_host.h.
MAX_ENTRIES = 256
REGISTERS = ("eax", "ebx", "ecx", "edx")
# struct kvm_cpuid_entry2: function, index, flags, the four registers, padding.
_ENTRY = struct.Struct("=7I12x")
_POISON = b"\xff" * _ENTRY.size
# Where a hypervisor has its leaves, and the next one on the same CPU.
_HYPERVISOR, _NEXT_HYPERVISOR = 0x4000_0000, 0x100


@dataclass(frozen=True, slots=True)
class Entry:
    """One leaf (``function``) and subleaf (``index``) with its four 32-bit registers.

    ``flags`` has bit 0 (SIGNIFCANT_INDEX) where the subleaf counts.
    """

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0

    @property
    def registers(self) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX."""
        return self.eax, self.ebx, self.ecx, self.edx

    def __str__(self) -> str:
        values = " ".join(f"{name}={value:08x}" for name, value in zip(REGISTERS, self.registers, strict=True))
        return f"{self.function:08x}.{self.index}: {values}"

    def features(self) -> list[str]:
        """Return the names of the feature bits that are set."""
        found = []
        for name, value in zip(REGISTERS, self.registers, strict=True):
            names = FEATURES.get((self.function, self.index, name), {})
            found += [feature for bit, feature in names.items() if value >> bit & 1]
        return found


class Cpuid:
    """An immutable, ordered CPUID table: its ``entries``, and ``packed`` the same as KVM's array of them.

    Each is made of the other when it is first asked for, so that a table from KVM goes back as it came.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries = tuple(entries)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Return the table of an array of ``struct kvm_cpuid_entry2``."""
        table = cls.__new__(cls)
        table.packed = packed
        return table

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The entries, in KVM's order."""
        return tuple(Entry(*row) for row in _ENTRY.iter_unpack(self.packed))

    @cached_property
    def packed(self) -> bytes:
        """The entries as an array of ``struct kvm_cpuid_entry2``."""
        return b"".join(_ENTRY.pack(e.function, e.index, e.flags, *e.registers) for e in self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cpuid) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def find(self, function: int, index: int = 0) -> Entry | None:
        """Return the first entry of a leaf and subleaf, as KVM looks it up, or None."""
        for entry in self.entries:
            if entry.function == function and (entry.index == index or not entry.flags & 1):
                return entry
        return None

    def get(self, function: int, index: int = 0) -> Entry:
        """Like find, but an absent leaf reads as zeros, as it does for a guest."""
        return self.find(function, index) or Entry(function, index)

    def has(self, feature: str) -> bool:
        """Tell whether a feature bit is set, by its name in cpuid_names (such as ``XSAVE``)."""
        for (function, index, register), names in FEATURES.items():
            for bit, name in names.items():
                if name == feature:
                    return bool(getattr(self.get(function, index), register) >> bit & 1)
        raise KeyError(f"no CPUID feature is called {feature!r}")

    def with_apic_id(self, identifier: int) -> Cpuid:
        """Return a copy for the vCPU with this APIC id, in all the leaves that have one.

        Source: Intel SDM volume 2A, CPUID, leaves 1, 0xB and 0x1F; AMD APM volume 3, appendix E, 0x8000_001E.
        """
        changed = []
        for entry in self.entries:
            if entry.function == 1:
                entry = replace(entry, ebx=entry.ebx & 0xFFFFFF | (identifier & 0xFF) << 24)
            elif entry.function in (0xB, 0x1F):
                entry = replace(entry, edx=identifier)
            elif entry.function == 0x8000_001E:
                entry = replace(entry, eax=identifier)
            changed.append(entry)
        return Cpuid(changed)

    def edit(self, function: int, index: int = 0, **registers: int) -> Cpuid:
        """Return a copy with registers of one entry set; the entry is added if it is not there."""
        old = self.find(function, index)
        if old is None:
            flags = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX if index or function in (4, 7, 0xB, 0xD) else 0
            return Cpuid((*self.entries, replace(Entry(function, index, flags), **registers)))
        position = self.entries.index(old)
        return Cpuid((*self.entries[:position], replace(old, **registers), *self.entries[position + 1 :]))

    def without(self, function: int, index: int | None = None) -> Cpuid:
        """Return a copy without a leaf, or without one subleaf of it."""
        return Cpuid(e for e in self.entries if e.function != function or index not in (None, e.index))

    @property
    def xcr0(self) -> int:
        """The xfeatures that XCR0 may enable: leaf 0xD.0, EDX:EAX."""
        entry = self.get(0xD, 0)
        return entry.edx << 32 | entry.eax

    @property
    def xss(self) -> int:
        """The xfeatures that IA32_XSS may enable: leaf 0xD.1, EDX:ECX."""
        entry = self.get(0xD, 1)
        return entry.edx << 32 | entry.ecx

    def with_xcr0(self, features: int) -> Cpuid:
        """Return a copy whose leaf 0xD.0 offers ``features``."""
        return self.edit(0xD, 0, eax=features & 0xFFFFFFFF, edx=features >> 32)

    def compare(self, other: Cpuid) -> list[str]:
        """Return one line per difference: leaf, register, both values, and the features that differ."""
        lines = []
        places = dict.fromkeys((e.function, e.index) for table in (self, other) for e in table)
        for function, index in places:
            ours, theirs = self.find(function, index), other.find(function, index)
            if ours is None or theirs is None:
                lines.append(f"{function:08x}.{index}: only in the {'second' if ours is None else 'first'} table")
                continue
            lines += _compare_registers(ours, theirs)
        return lines


def _compare_registers(ours: Entry, theirs: Entry) -> list[str]:
    lines = []
    for register in REGISTERS:
        a, b = getattr(ours, register), getattr(theirs, register)
        if a == b:
            continue
        names = FEATURES.get((ours.function, ours.index, register), {})
        changed = " ".join(feature for bit, feature in names.items() if (a ^ b) >> bit & 1)
        where = f"{ours.function:08x}.{ours.index} {register}"
        lines.append(f"{where}: {a:08x} {b:08x}" + (f" ({changed})" if changed else ""))
    return lines


def _buffer(entries: Iterable[Entry] | int) -> Any:
    if isinstance(entries, int):
        return ffi.new("struct kvm_cpuid2 *", {"nent": entries, "entries": entries})
    packed = (entries if isinstance(entries, Cpuid) else Cpuid(entries)).packed
    buffer = _buffer(len(packed) // _ENTRY.size)
    ffi.memmove(buffer.entries, packed, len(packed))
    return buffer


def _table(buffer: Any) -> Cpuid:
    return Cpuid.unpack(bytes(ffi.buffer(buffer.entries, buffer.nent * _ENTRY.size)))


def supported(kvm: Kvm) -> Cpuid:
    """KVM_GET_SUPPORTED_CPUID: what a guest of this process may be given.

    It depends on the guest permission this process has: ask after requesting it.
    """
    buffer = _buffer(MAX_ENTRIES)
    kvm.ioctl(lib.KVM_GET_SUPPORTED_CPUID, buffer)
    return _table(buffer)


def enlightened(kvm: Kvm) -> Cpuid:
    """What a guest may be given, with Hyper-V's leaves where KVM's are, and KVM's behind them.

    Source: Documentation/virt/kvm/api.rst, KVM_GET_SUPPORTED_HV_CPUID; arch/x86/kvm/cpuid.c,
    kvm_get_hypervisor_cpuid.
    """
    buffer = _buffer(MAX_ENTRIES)
    kvm.ioctl(lib.KVM_GET_SUPPORTED_HV_CPUID, buffer)
    moved = (
        replace(entry, function=entry.function + _NEXT_HYPERVISOR)
        if entry.function >> 8 == _HYPERVISOR >> 8
        else entry
        for entry in supported(kvm)
    )
    return Cpuid((*moved, *_table(buffer)))


def set_cpuid(vcpu: Vcpu, table: Cpuid) -> None:
    """KVM_SET_CPUID2. EPERM: an xfeature without guest permission; EINVAL: the vCPU has run."""
    vcpu.ioctl(lib.KVM_SET_CPUID2, _buffer(table))
    vcpu.chosen["CPUID"] = table.packed


def given(vcpu: Vcpu) -> Cpuid:
    """Return the table that a vCPU was given; KeyError if that was not by set_cpuid or a restore."""
    return _unpacked(vcpu.chosen["CPUID"])


@lru_cache(maxsize=8)
def _unpacked(packed: bytes) -> Cpuid:
    return Cpuid.unpack(packed)


def get_cpuid(vcpu: Vcpu, room: int = MAX_ENTRIES) -> Cpuid:
    """KVM_GET_CPUID2 with room for so many entries: the vCPU's table, with the bits that KVM keeps up to date.

    Linux 6.1 leaves nent as it was on success, so the entries written are told apart from poison.
    """
    buffer = _buffer(room)
    ffi.memmove(buffer.entries, _POISON * room, _ENTRY.size * room)
    vcpu.ioctl(lib.KVM_GET_CPUID2, buffer)
    packed = bytes(ffi.buffer(buffer.entries, buffer.nent * _ENTRY.size))
    while packed.endswith(_POISON):
        packed = packed[: -_ENTRY.size]
    return Cpuid.unpack(packed)


def host(function: int, index: int = 0) -> Entry:
    """Execute CPUID on this CPU."""
    registers = ffi.new("uint32_t[4]")
    lib.vmm_cpuid(function, index, registers)
    return Entry(function, index, 0, *registers)


def has_leaf(function: int) -> bool:
    """Has this CPU an extended leaf (0x80000000 on)? One above the highest answers as the highest basic leaf does."""
    return host(0x80000000).eax >= function


def vendor(leaf: Callable[[int], Entry]) -> str:
    """Return the vendor that CPUID 0 spells; ``leaf`` gives a leaf's entry, such as host or a table's get."""
    first = leaf(0)
    return _text(first.ebx, first.edx, first.ecx)


def model(leaf: Callable[[int], Entry]) -> str:
    """Return the brand string in the leaves 0x80000002 to 0x80000004, empty where they are zeros."""
    words = [word for function in (0x80000002, 0x80000003, 0x80000004) for word in leaf(function).registers]
    return _text(*words).split("\0")[0].strip()


def _text(*words: int) -> str:
    return b"".join(word.to_bytes(4, "little") for word in words).decode("ascii", "replace")
