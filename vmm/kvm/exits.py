# SPDX-License-Identifier: Apache-2.0
"""Why a vCPU came back, as values.

A closed set of classes with :class:`Unsupported` for what this package has no name for. They are named
tuples because one is made at every exit: immutable, comparable, and built in a fraction of a microsecond.
Unlike plain tuples, two of them are equal only if they are of one class.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from vmm._kvm import ffi, lib

__all__ = [
    "Budget",
    "Deadline",
    "Debug",
    "Exit",
    "FailEntry",
    "Hlt",
    "InternalError",
    "IoIn",
    "IoOut",
    "MmioRead",
    "MmioWrite",
    "MsrRead",
    "MsrWrite",
    "Shutdown",
    "Stopped",
    "SystemEvent",
    "Unsupported",
    "decode",
]


T = TypeVar("T", bound=tuple[object, ...])


def _equal(self: tuple[object, ...], other: object) -> bool:
    return type(self) is type(other) and tuple.__eq__(self, other)


def _differ(self: tuple[object, ...], other: object) -> bool:
    return not _equal(self, other)


def _hash(self: tuple[object, ...]) -> int:
    return hash((type(self), *self))


def _show(self: tuple[object, ...]) -> str:
    """The exit's name with its fields in words: IoOut (port 0x3f8, size 1, value 0), Shutdown."""
    names: tuple[str, ...] = getattr(self, "_fields", ())
    shown = (f"{value:#x}" if isinstance(value, int) and value > 9 else str(value) for value in self)
    fields = ", ".join(f"{name} {value}" for name, value in zip(names, shown, strict=True))
    return f"{type(self).__name__} ({fields})" if fields else type(self).__name__


def _exit(kind: type[T]) -> type[T]:
    """Make equality of a named tuple depend on its class: Hlt() is not Shutdown(). It prints in words."""
    for name, method in (("__eq__", _equal), ("__ne__", _differ), ("__hash__", _hash), ("__str__", _show)):
        setattr(kind, name, method)
    return kind


@_exit
class IoOut(NamedTuple):
    """The guest wrote ``value`` (``size`` bytes) to I/O port ``port``."""

    port: int
    size: int
    value: int


@_exit
class IoIn(NamedTuple):
    """The guest reads ``size`` bytes from ``port``; Vcpu.reply answers before the next run."""

    port: int
    size: int


@_exit
class MmioWrite(NamedTuple):
    """The guest wrote ``value`` (``size`` bytes) to unbacked guest physical address ``address``."""

    address: int
    size: int
    value: int


@_exit
class MmioRead(NamedTuple):
    """The guest reads ``size`` bytes at unbacked ``address``; Vcpu.reply answers before the next run."""

    address: int
    size: int


@_exit
class Hlt(NamedTuple):
    """The guest halted and no in-kernel interrupt controller waits for it."""


@_exit
class Shutdown(NamedTuple):
    """The guest triple-faulted."""


@_exit
class Debug(NamedTuple):
    """A debug event that KVM_SET_GUEST_DEBUG asked for."""


@_exit
class FailEntry(NamedTuple):
    """The CPU refused to enter the guest; ``reason`` is the hardware's."""

    reason: int
    cpu: int


@_exit
class InternalError(NamedTuple):
    """KVM gave up on the guest; ``suberror`` 1 is an instruction it cannot emulate."""

    suberror: int
    data: tuple[int, ...]


@_exit
class MsrRead(NamedTuple):
    """KVM_EXIT_X86_RDMSR of MSR number ``msr``."""

    msr: int


@_exit
class MsrWrite(NamedTuple):
    """KVM_EXIT_X86_WRMSR of ``value`` to MSR number ``msr``."""

    msr: int
    value: int


@_exit
class SystemEvent(NamedTuple):
    """KVM_EXIT_SYSTEM_EVENT: shutdown (1), reset (2), crash (3), ..."""

    kind: int


@_exit
class Unsupported(NamedTuple):
    """An exit reason without a class of its own."""

    reason: int


@_exit
class Deadline(NamedTuple):
    """The time given to ``run`` passed; the guest may continue in another run."""


@_exit
class Stopped(NamedTuple):
    """``kick`` asked the vCPU to stop."""


@_exit
class Budget(NamedTuple):
    """``ticks`` tick exits were absorbed, as many as ``run`` was asked to."""

    ticks: int


Exit = (
    IoOut | IoIn | MmioWrite | MmioRead | Hlt | Shutdown | Debug | FailEntry | InternalError
    | MsrRead | MsrWrite | SystemEvent | Unsupported | Deadline | Stopped | Budget
)  # fmt: skip

_UNION = ffi.offsetof("struct kvm_run", "io")
_REASON_AT = ffi.offsetof("struct kvm_run", "exit_reason")
# The reason and, as if it were one, the I/O exit: one look at the page serves the most frequent exits.
_REASON_AND_IO = struct.Struct(f"=I{_UNION - _REASON_AT - 4}xBBHIQ")
_MMIO = struct.Struct("=Q8sIB")
_MSR = struct.Struct("=B7xIIQ")
_PAIR32 = struct.Struct("=II")
_FAIL = struct.Struct("=QI")
_IO, _IO_IN = lib.KVM_EXIT_IO, lib.KVM_EXIT_IO_IN
_from_bytes = int.from_bytes
_new = tuple.__new__  # a named tuple without the Python function in between


def _mmio(page: memoryview) -> Exit:
    address, data, length, is_write = _MMIO.unpack_from(page, _UNION)
    if is_write:
        return MmioWrite(address, length, _from_bytes(data[:length], "little"))
    return MmioRead(address, length)


def _internal(page: memoryview) -> Exit:
    suberror, ndata = _PAIR32.unpack_from(page, _UNION)
    return InternalError(suberror, struct.unpack_from(f"={min(ndata, 16)}Q", page, _UNION + 8))


def _rdmsr(page: memoryview) -> Exit:
    return MsrRead(_MSR.unpack_from(page, _UNION)[2])


def _wrmsr(page: memoryview) -> Exit:
    _, _, msr, value = _MSR.unpack_from(page, _UNION)
    return MsrWrite(msr, value)


_HLT, _SHUTDOWN, _DEBUG = Hlt(), Shutdown(), Debug()

_DECODERS: dict[int, Callable[[memoryview], Exit]] = {
    lib.KVM_EXIT_MMIO: _mmio,
    lib.KVM_EXIT_HLT: lambda page: _HLT,
    lib.KVM_EXIT_SHUTDOWN: lambda page: _SHUTDOWN,
    lib.KVM_EXIT_DEBUG: lambda page: _DEBUG,
    lib.KVM_EXIT_FAIL_ENTRY: lambda page: FailEntry(*_FAIL.unpack_from(page, _UNION)),
    lib.KVM_EXIT_INTERNAL_ERROR: _internal,
    lib.KVM_EXIT_X86_RDMSR: _rdmsr,
    lib.KVM_EXIT_X86_WRMSR: _wrmsr,
    lib.KVM_EXIT_SYSTEM_EVENT: lambda page: SystemEvent(_PAIR32.unpack_from(page, _UNION)[0]),
}


def decode(page: memoryview) -> Exit:
    """Return the exit that a mapped ``struct kvm_run`` describes."""
    reason, direction, size, port, count, offset = _REASON_AND_IO.unpack_from(page, _REASON_AT)
    if reason == _IO:
        if direction == _IO_IN:
            return IoIn(port, size)
        # A string instruction may bring several items at once; they count as one wide value.
        return _new(IoOut, (port, size, _from_bytes(page[offset : offset + size * count], "little")))
    decoder = _DECODERS.get(reason)
    return decoder(page) if decoder else Unsupported(reason)
