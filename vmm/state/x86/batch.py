# SPDX-License-Identifier: Apache-2.0
"""All calls of a capture or of a restore in one go, because two dozen of them take little longer than Python does.

The steps of vmm.state.x86.steps say what is read and written, and in which order. This is a short cut for the case
that nothing is refused: it makes the same calls. Whatever is out of the ordinary, a refusal, a part of another
length, somebody who observes the calls, is left to the steps, which know how to name it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import batch
from vmm.kvm.vcpu import Vcpu
from vmm.state.value import Packed, Part
from vmm.state.x86.names import STRUCTURES, requests
from vmm.x86.cpuid import MAX_ENTRIES
from vmm.x86.xsave import largest_size

__all__ = ["capture", "learn", "restore"]

_CALLS = ffi.typeof("struct vmm_call[]")
_MSRS, _CPUID, _ONE_REG = (ffi.typeof(f"struct {name} *") for name in ("kvm_msrs", "kvm_cpuid2", "kvm_one_reg"))
_BYTES = ffi.typeof("uint8_t[]")
_KINDS = {name: ffi.typeof(f"struct {kind} *") for name, kind in STRUCTURES.items()}
_SIZES = {name: ffi.sizeof(f"struct {kind}") for name, kind in STRUCTURES.items()}
_GET = {name: getattr(lib, requests(name)[0]) for name in STRUCTURES}
_SET = {name: getattr(lib, requests(name)[1]) for name in STRUCTURES}
_MSR_PARTS = frozenset({"MSRS", "XFD", "TSC"})
_ENTRY = ffi.sizeof("struct kvm_cpuid_entry2")
_MOST_ROWS = 255

_Row = tuple[int, Any, int]
_Take = Callable[[], Part]


# --- capture --------------------------------------------------------------------------------------


class _Reader:
    """The calls that read a vCPU's parts, with the buffers they fill: made for one vCPU as it was captured once."""

    def __init__(self, cpuid: bytes, parts: Mapping[str, Part], order: Sequence[str]) -> None:
        self.cpuid = cpuid
        rows: list[_Row] = []
        self._counts: list[tuple[int, int]] = []  # (call, result it has to have)
        self._takes: list[tuple[str, _Take]] = []
        self._table: Any = None
        self._kept: list[Any] = []
        for name in order:
            if name in parts:
                self._add(name, parts[name], rows)
        self._calls = ffi.new(_CALLS, rows)
        self._size = len(rows)

    def _add(self, name: str, part: Part, rows: list[_Row]) -> None:
        if name in STRUCTURES:
            value = ffi.new(_KINDS[name])
            rows.append((_GET[name], value, 0))
            structure = ffi.buffer(value)
            self._takes.append((name, lambda: structure[:]))
        elif name == "XSAVE":
            value = ffi.new(_BYTES, largest_size())
            rows.append((lib.KVM_GET_XSAVE2, value, 0))
            held = ffi.buffer(value, len(part))
            self._takes.append((name, lambda: held[:]))
        elif name == "CPUID":
            self._table = value = ffi.new(_CPUID, {"nent": MAX_ENTRIES, "entries": MAX_ENTRIES})
            rows.append((lib.KVM_GET_CPUID2, value, 0))
            entries = ffi.buffer(value.entries, len(part))
            self._takes.append((name, lambda: entries[:]))
        elif name == "TSC_KHZ":
            number = len(rows)
            value = ffi.NULL
            rows.append((lib.KVM_GET_TSC_KHZ, value, 0))
            self._takes.append((name, lambda: self._calls[number].result.to_bytes(4, "little")))
        elif name in _MSR_PARTS:
            assert isinstance(part, Packed)
            value, count = _msrs(part.rows)
            self._counts.append((len(rows), count))
            rows.append((lib.KVM_GET_MSRS, value, 0))
            found = ffi.buffer(value.entries, len(part.rows))
            self._takes.append((name, lambda: Packed(found[:])))
        else:
            raise _NotHere
        self._kept.append(value)

    def read(self, vcpu: Vcpu) -> dict[str, Part] | None:
        """Return the parts in the order of the capture; None if anything is not as it was."""
        self._table.nent = MAX_ENTRIES
        if batch(vcpu.fd, self._calls, self._size) != self._size:
            return None
        if any(self._calls[number].result != count for number, count in self._counts):
            return None
        parts = {name: take() for name, take in self._takes}
        # Linux 6.1 does not change nent.
        return parts if self._table.nent in (MAX_ENTRIES, len(parts["CPUID"]) // _ENTRY) else None


class _NotHere(Exception):
    """A part that is not one call."""


_READERS: WeakKeyDictionary[Vcpu, _Reader] = WeakKeyDictionary()


def learn(vcpu: Vcpu, parts: Mapping[str, Part]) -> None:
    """Remember what a capture by steps found, so that the next one of this vCPU can be made in one go."""
    try:
        _READERS[vcpu] = _Reader(vcpu.chosen["CPUID"], parts, tuple(parts))
    except (_NotHere, KeyError):
        _READERS.pop(vcpu, None)


def capture(vcpu: Vcpu) -> dict[str, Part] | None:
    """Return a vCPU's parts, None where the steps have to be gone through one by one."""
    reader = _READERS.get(vcpu)
    return reader.read(vcpu) if reader is not None and reader.cpuid == vcpu.chosen["CPUID"] else None


# --- restore --------------------------------------------------------------------------------------


def restore(vcpu: Vcpu, parts: Mapping[str, Part], order: Sequence[str]) -> bool:
    """Write all parts in this order; False if something was refused or cannot be written in one go.

    Then some may have been written, and the steps have to be gone through from the first on.
    """
    rows: list[_Row] = []
    counts: list[tuple[int, int]] = []
    for name in order:
        part = parts[name]
        row = _written(name, part)
        if row is None:
            return False
        if name in _MSR_PARTS:
            counts.append((len(rows), row[1].nmsrs))
        elif name == "TSC_KHZ":
            counts.append((len(rows), int.from_bytes(part, "little")))
        rows.append(row)
    calls = ffi.new(_CALLS, rows)
    if batch(vcpu.fd, calls, len(rows)) != len(rows):
        return False
    if "CPUID" in parts:
        vcpu.chosen["CPUID"] = parts["CPUID"]  # type: ignore[assignment]
    return all(calls[number].result == count for number, count in counts)


def _written(name: str, part: Part) -> _Row | None:
    """Return the call that writes a part; the row keeps its buffer alive."""
    if name in _MSR_PARTS:
        if not isinstance(part, Packed) or len(part) > _MOST_ROWS:
            return None
        return lib.KVM_SET_MSRS, _msrs(part.rows)[0], 0
    if not isinstance(part, bytes):
        return None
    if name in STRUCTURES:
        value = ffi.new(_KINDS[name])
        if len(part) != _SIZES[name]:
            return None
        request = _SET[name]
    elif name == "XSAVE":
        value = ffi.new(_BYTES, max(len(part), largest_size()))
        request = lib.KVM_SET_XSAVE
    elif name == "CPUID":
        count = len(part) // _ENTRY
        value = ffi.new(_CPUID, {"nent": count, "entries": count})
        ffi.memmove(value.entries, part, count * _ENTRY)
        return lib.KVM_SET_CPUID2, value, 0
    elif name == "TSC_KHZ":
        return lib.KVM_GET_TSC_KHZ, ffi.NULL, 0  # it is set only if it is another
    else:
        return None
    ffi.memmove(value, part, len(part))
    return request, value, 0


def _msrs(rows: bytes) -> tuple[Any, int]:
    count = len(rows) // Packed.ROW.size
    value = ffi.new(_MSRS, {"nmsrs": count, "entries": count})
    ffi.memmove(value.entries, rows, len(rows))
    return value, count
