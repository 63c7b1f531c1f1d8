# SPDX-License-Identifier: Apache-2.0
"""Handles on the buffers of the state calls: XSAVE areas, CPUID tables, MSR lists and batches, XCR0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.mutations.lies import Change, Condition, after, top_component
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.xsave import host_layout

__all__ = [
    "FCW",
    "FSW",
    "FTW",
    "MXCSR",
    "RESERVED",
    "ST7",
    "XCOMP_BV",
    "XMM3",
    "XSTATE_BV",
    "area",
    "bits_of",
    "change_entry",
    "change_list",
    "change_msr",
    "clear_now",
    "entry",
    "flip",
    "flip_now",
    "get_msr_now",
    "leaf",
    "lengthen",
    "lists",
    "msr_values",
    "of_msr",
    "offers",
    "place",
    "put",
    "rows",
    "set_msr_now",
    "sets",
    "shorten",
    "spoil",
    "struct_now",
    "top_byte",
    "with_bits",
    "without_bits",
    "xcr0_of",
    "xcr0_reads",
    "xsave_lie",
]

# Offsets in the area.
FCW, FSW, FTW, MXCSR, ST7, XMM3 = 0, 2, 4, 24, 32 + 16 * 7, 160 + 16 * 3
XSTATE_BV, XCOMP_BV, RESERVED = 512, 520, 528
_LARGEST = 65536


def area(call: Call) -> memoryview:
    """The bytes of an XSAVE call's buffer, all that the caller allocated."""
    return memoryview(ffi.buffer(call.argument)).cast("B")


def flip(offset: int, bits: int = 1) -> Change:
    """Change some bits of one byte of the area."""

    def change(call: Call) -> None:
        area(call)[offset] ^= bits

    return change


def put(offset: int, value: int, size: int = 8) -> Change:
    """Put a number into the area."""

    def change(call: Call) -> None:
        area(call)[offset : offset + size] = value.to_bytes(size, "little")

    return change


def bits_of(call: Call, offset: int = XSTATE_BV) -> int:
    """Return a 64-bit number of the area, by default XSTATE_BV."""
    return int.from_bytes(area(call)[offset : offset + 8], "little")


def with_bits(bits: int) -> Change:
    """Set bits of the area's XSTATE_BV."""
    return lambda call: put(XSTATE_BV, bits_of(call) | bits)(call)


def without_bits(bits: int) -> Change:
    """Clear bits of the area's XSTATE_BV."""
    return lambda call: put(XSTATE_BV, bits_of(call) & ~bits)(call)


def place(component: int, byte: int = 0) -> int:
    """Return the offset of a byte of a component (of its registers, for SSE and x87)."""
    return int(host_layout()[component].ranges[-1][0] + byte)


def top_byte() -> int:
    """Return the offset of a byte in the middle of the highest component that KVM offers."""
    component = host_layout()[top_component()]
    return place(component.number, component.size // 2 + 1)


def xsave_lie(change: Change, when: Condition | None = None) -> Interposer:
    """Spoil what KVM_GET_XSAVE2 answers."""
    return after("KVM_GET_XSAVE2", change) if when is None else after("KVM_GET_XSAVE2", change, when)


def shorten(count: int) -> Change:
    """Make the written part of the area ``count`` bytes shorter: what was in the buffer is there again."""

    def change(call: Call) -> None:
        view = area(call)
        # The caller may ask a second time with another poison: nothing is written to the last byte.
        written = lib.vmm_written_length(call.argument, len(view), view[-1])
        view[written - count : written] = bytes(view[-1:]) * count

    return change


def lengthen(count: int) -> Change:
    """Write ``count`` bytes behind the written part of the area."""

    def change(call: Call) -> None:
        view = area(call)
        # The caller may ask a second time with another poison: nothing is written to the last byte.
        written = lib.vmm_written_length(call.argument, len(view), view[-1])
        view[written : written + count] = bytes(count)

    return change


def spoil(fd: int, change: Callable[[memoryview], object]) -> None:
    """Change the XSAVE state that a vCPU really has."""
    buffer = ffi.new("uint8_t[]", _LARGEST)
    if lib.vmm_ioctl(fd, lib.KVM_GET_XSAVE2, buffer) >= 0:
        change(memoryview(ffi.buffer(buffer)).cast("B"))
        lib.vmm_ioctl(fd, lib.KVM_SET_XSAVE, buffer)


def flip_now(offset: int, bits: int = 1) -> Callable[[int], None]:
    """Change some bits of one byte of the XSAVE state that a vCPU really has."""

    def change(view: memoryview) -> None:
        view[offset] ^= bits

    return lambda fd: spoil(fd, change)


def clear_now(fd: int) -> None:
    """Bring the x87 and vector registers of a vCPU into their initial state."""

    def change(view: memoryview) -> None:
        view[XSTATE_BV] = 0

    spoil(fd, change)


def rows(call: Call) -> list[tuple[int, ...]]:
    """Return a CPUID table's entries as tuples: function, index, flags, eax, ebx, ecx, edx."""
    table = call.argument
    return [
        (e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
        for e in (table.entries[number] for number in range(table.nent))
    ]


def entry(call: Call, function: int, index: int = 0) -> Any:
    """Return the entry of a leaf in the table, a new one at its end if there is none."""
    table = call.argument
    for number in range(table.nent):
        found = table.entries[number]
        if found.function == function and (found.index == index or not found.flags & 1):
            return found
    new = table.entries[table.nent]
    new.function, new.index, new.flags = function, index, 1
    new.eax = new.ebx = new.ecx = new.edx = 0
    table.nent += 1
    return new


def change_entry(function: int, index: int = 0, /, **changes: Callable[[int], int]) -> Change:
    """Change fields of the entry of a leaf in the table, each a number of 32 bits."""

    def change(call: Call) -> None:
        found = entry(call, function, index)
        for field, value in changes.items():
            setattr(found, field, value(getattr(found, field)) & 0xFFFFFFFF)

    return change


def leaf(call: Call, function: int, index: int = 0) -> tuple[int, ...]:
    """Return eax, ebx, ecx, edx of a leaf in the table, zeros if it has none."""
    return next((row[3:] for row in rows(call) if row[:2] == (function, index)), (0, 0, 0, 0))


def offers(call: Call) -> int:
    """Return the components that a table's leaf 0xD.0 offers (0 without the leaf)."""
    eax, _, _, edx = leaf(call, 0xD)
    return edx << 32 | eax


def lists(call: Call) -> list[int]:
    """Return the MSRs that the answer of KVM_GET_MSR_INDEX_LIST lists."""
    return [call.argument.indices[number] for number in range(call.argument.nmsrs)]


def change_list(index: int) -> Interposer:
    """Take an MSR out of KVM's list if it is there, put it in if it is not. The length stays."""

    def change(call: Call) -> None:
        listed = lists(call)
        if index in listed:
            call.argument.indices[listed.index(index)] = listed[0]
        else:
            call.argument.indices[len(listed) - 1] = index

    return after("KVM_GET_MSR_INDEX_LIST", change)


def msr_values(call: Call) -> list[tuple[int, int]]:
    """Return (index, value) of all entries of a batch."""
    return [(e.index, e.data) for e in (call.argument.entries[number] for number in range(call.argument.nmsrs))]


def change_msr(index: int, value: Callable[[int], int]) -> Change:
    """Change one MSR's value in a batch."""

    def change(call: Call) -> None:
        for number in range(call.argument.nmsrs):
            found = call.argument.entries[number]
            if found.index == index:
                found.data = value(found.data)

    return change


def of_msr(*indices: int) -> Condition:
    """Met by a batch that begins with one of these MSRs."""
    return lambda call: call.argument.nmsrs > 0 and call.argument.entries[0].index in indices


def sets(index: int, value: int) -> Condition:
    """Met by a batch that sets only this MSR, to this value."""
    return lambda call: msr_values(call) == [(index, value)]


def get_msr_now(fd: int, index: int) -> int:
    """Return an MSR's value, read behind the clause's back."""
    batch = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": [(index, 0, 0)]})
    lib.vmm_ioctl(fd, lib.KVM_GET_MSRS, batch)
    return int(batch.entries[0].data)


def struct_now(fd: int, get: int, set_: int, kind: str, change: Callable[[Any], object]) -> None:
    """Read a structure, change it and write it back, behind the clause's back."""
    value = ffi.new(f"struct {kind} *")
    lib.vmm_ioctl(fd, get, value)
    change(value)
    lib.vmm_ioctl(fd, set_, value)


def set_msr_now(fd: int, index: int, value: int) -> None:
    """Set an MSR behind the clause's back."""
    batch = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": [(index, 0, value)]})
    lib.vmm_ioctl(fd, lib.KVM_SET_MSRS, batch)


def xcr0_of(call: Call) -> int:
    """Return the value that the first entry of a KVM_SET_XCRS for XCR0 has."""
    for number in range(min(call.argument.nr_xcrs, 16)):
        if call.argument.xcrs[number].xcr == 0:
            return int(call.argument.xcrs[number].value)
    return 0


def xcr0_reads(value: int, mask: int = 0) -> Interposer:
    """Let the host read XCR0 & mask | value."""

    def change(call: Call) -> None:
        call.argument.xcrs[0].value = call.argument.xcrs[0].value & mask | value

    return after("KVM_GET_XCRS", change)
