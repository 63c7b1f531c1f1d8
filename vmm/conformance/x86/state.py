# SPDX-License-Identifier: Apache-2.0
"""A vCPU's whole state as the clauses on save and restore see it: named pieces, captured and restored one by one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from vmm._kvm import ffi
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged
from vmm.kvm.ioctl import Refused
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import msr, registers
from vmm.x86.fields import describe_msr
from vmm.x86.guest import Guest
from vmm.x86.msr_names import Msr
from vmm.x86.xsave import XsaveArea, get_xsave, set_xsave

__all__ = [
    "NEEDS_APIC",
    "PIECES",
    "VOLATILE_MSRS",
    "State",
    "assign",
    "capture",
    "compare",
    "hold",
    "peek",
    "rdmsrs",
    "read_cr8",
    "restore",
    "saved_msrs",
    "saved_xfd_msrs",
    "set_msrs",
    "twin",
]

# State that changes by itself, or is written by KVM at each run.
VOLATILE_MSRS = frozenset({Msr.TSC, Msr.TSC_DEADLINE, Msr.HV_VP_RUNTIME, Msr.HV_TIME_REF_COUNT})
# Cannot be written, not even with the value read, while the local APIC is not in the kernel.
NEEDS_APIC = frozenset({Msr.KVM_ASYNC_PF_INT})


@dataclass(frozen=True, slots=True)
class _Piece:
    """One kind of state: how it is read and how it is written back."""

    get: Callable[[Vcpu, tuple[int, ...]], Any]
    set: Callable[[Vcpu, Any], None]


def saved_msrs(kvm: Kvm) -> tuple[int, ...]:
    """Return the MSRs whose values a restore has to bring back, for a vCPU without an in-kernel local APIC."""
    return tuple(index for index in msr.index_list(kvm) if index not in VOLATILE_MSRS | NEEDS_APIC)


def saved_xfd_msrs(kvm: Kvm) -> tuple[int, ...]:
    """Return those of them that are XFD's: whether all others come over is what the clauses on migration look at."""
    return tuple(index for index in saved_msrs(kvm) if index in (Msr.XFD, Msr.XFD_ERR))


def _get_msrs(vcpu: Vcpu, indices: tuple[int, ...]) -> dict[int, int]:
    """Return the values of the MSRs that can be read and stay as they are while nothing runs."""
    first, second = msr.get_readable(vcpu, indices), msr.get_readable(vcpu, indices)
    return {index: value for index, value in first.items() if second.get(index) == value}


def set_msrs(vcpu: Vcpu, values: dict[int, int]) -> None:
    """Set MSRs; Refused, with its name and value, for the first that KVM does not take."""
    pairs = list(values.items())
    done = msr.set_msrs(vcpu, pairs)
    if done < len(pairs):
        raise Refused(f"{msr.name(pairs[done][0])} = {pairs[done][1]:#x} was refused")


def _set_mp_state(vcpu: Vcpu, value: int) -> None:
    vcpu.mp_state = value


def _set_xcr0(vcpu: Vcpu, value: int) -> None:
    registers.set_xcr0(vcpu, value)


def _struct(kind: str, getter: Callable[[Vcpu], Any], setter: Callable[[Vcpu, Any], None]) -> _Piece:
    """A piece that is one struct, kept as bytes."""

    def write(vcpu: Vcpu, data: bytes) -> None:
        value = ffi.new(f"struct {kind} *")
        ffi.memmove(value, data, len(data))
        setter(vcpu, value)

    return _Piece(lambda vcpu, _: registers.raw(getter(vcpu)), write)


PIECES: dict[str, _Piece] = {
    "MP_STATE": _Piece(lambda vcpu, _: vcpu.mp_state, _set_mp_state),
    "SREGS": _struct("kvm_sregs", registers.get_sregs, registers.set_sregs),
    "REGS": _struct("kvm_regs", registers.get_regs, registers.set_regs),
    "XCRS": _Piece(lambda vcpu, _: registers.get_xcr0(vcpu), _set_xcr0),
    "XSAVE": _Piece(lambda vcpu, _: get_xsave(vcpu), set_xsave),
    "MSRS": _Piece(_get_msrs, set_msrs),
    "DEBUGREGS": _struct("kvm_debugregs", registers.get_debugregs, registers.set_debugregs),
    "EVENTS": _struct("kvm_vcpu_events", Vcpu.get_events, Vcpu.set_events),
}

State = dict[str, Any]


def capture(vcpu: Vcpu, msrs: tuple[int, ...], pieces: Iterable[str] = tuple(PIECES)) -> State:
    """Return pieces of a vCPU's state, by default all; a pending exit has to be completed before."""
    return {name: PIECES[name].get(vcpu, msrs) for name in pieces}


def restore(vcpu: Vcpu, state: State, order: Iterable[str] | None = None) -> None:
    """Write the pieces in ``order``, by default that of PIECES."""
    for name in order or state:
        PIECES[name].set(vcpu, state[name])


def twin(context: Context, guest: Guest, saved: State, what: str) -> Guest:
    """A new VM with the guest's memory and state, which its KVM has to take."""
    copy = context.own(
        Guest(context.kvm, guest.payload, cpuid=guest.cpuid, cr4=guest.cr4, capabilities=guest.capabilities)
    )
    copy.take_memory(guest)
    with judged(f"restoring {what}"):
        restore(copy.vcpu, saved)
    return copy


def assign(structure: Any, values: Mapping[str, int]) -> None:
    """Give fields of a structure of KVM's values; dots lead into its parts."""
    for path, value in values.items():
        *outer, last = path.split(".")
        setattr(reduce(getattr, outer, structure), last, value)


def hold(what: str, structure: Any, meant: Mapping[str, int]) -> None:
    """Fields of a structure of KVM's have to have the values that they were given; dots lead into its parts."""
    for path, value in meant.items():
        equal(f"{path} {what}", int(reduce(getattr, path.split("."), structure)), value)


_ROW = struct.Struct("<QQQ")


def rdmsrs(context: Context, guest: Guest, indices: Iterable[int]) -> list[int]:
    """What a guest with the state payload reads by RDMSR, which may not fault."""
    found = _rows(context, guest, "rdmsrs", indices)
    equal("MSRs whose RDMSR faults", [msr.name(index) for index, _, fault in found if fault], [])
    return [value for _, value, _ in found]


def peek(context: Context, guest: Guest, addresses: Iterable[int]) -> list[int]:
    """What a guest with the state payload loads from these addresses, 32 bits each."""
    return [value for _, value, _ in _rows(context, guest, "peek", addresses)]


def read_cr8(context: Context, guest: Guest) -> int:
    """What a guest with the state payload reads as CR8."""
    with judged("MOV from CR8 in the guest", "an end without a fault"):
        _enter(guest, "cr8")
        guest.finish(guest.resume(context.timeout), "state.cr8")
    return guest.mailbox.read("values")


def _rows(context: Context, guest: Guest, entry: str, keys: Iterable[int]) -> list[tuple[int, int, int]]:
    """Run an entry point over the rows of the payload; the copy's registers are not kept."""
    data = b"".join(_ROW.pack(key, 0, 0) for key in keys)
    rows = guest.payload.symbol("rows")
    guest.memory.write(rows, data)
    with judged(f"{entry} in the guest", "an end without a fault"):
        _enter(guest, entry, len(data) // _ROW.size)
        guest.finish(guest.resume(context.timeout), f"state.{entry}")
    return [(a, b, c) for a, b, c in _ROW.iter_unpack(guest.memory.read(rows, len(data)))]


def _enter(guest: Guest, entry: str, *parameters: int) -> None:
    """Move a guest to another entry point, and leave all but RIP as it was restored."""
    guest.complete()
    for number, value in enumerate(parameters):
        guest.mailbox.write("params", value, number)
    regs = registers.get_regs(guest.vcpu)
    regs.rip = guest.payload.symbol(entry)
    registers.set_regs(guest.vcpu, regs)


def compare(first: State, second: State) -> list[str]:
    """Return what differs, by piece and, where known, by register."""
    lines: list[str] = []
    for name in PIECES:
        ours, theirs = first[name], second[name]
        if isinstance(ours, XsaveArea):
            lines += [f"{name}: {difference}" for difference in ours.same_state(theirs)]
        elif ours != theirs:
            lines += [f"{name}: {text}" for text in _explain(name, ours, theirs)]
    return lines


def _explain(name: str, ours: Any, theirs: Any) -> list[str]:
    if isinstance(ours, dict):
        changed = sorted(index for index in {*ours, *theirs} if ours.get(index) != theirs.get(index))
        return [
            f"{msr.name(index)} {describe_msr(index, ours.get(index))}, {describe_msr(index, theirs.get(index))}"
            for index in changed
        ]
    if isinstance(ours, int):
        return [f"{ours:#x} {theirs:#x}"]
    return _fields(name, ours, theirs)


def _fields(name: str, ours: bytes, theirs: bytes) -> list[str]:
    """Name the struct fields whose bytes differ."""
    kind = ffi.typeof({"SREGS": "struct kvm_sregs", "REGS": "struct kvm_regs", "DEBUGREGS": "struct kvm_debugregs",
                       "EVENTS": "struct kvm_vcpu_events"}[name])  # fmt: skip
    lines = []
    for field, description in kind.fields:
        part = slice(description.offset, description.offset + ffi.sizeof(description.type))
        if ours[part] != theirs[part] and not _both_unusable(description.type, ours[part], theirs[part]):
            lines.append(f"{field} {ours[part].hex()} {theirs[part].hex()}")
    return lines


def _both_unusable(kind: Any, ours: bytes, theirs: bytes) -> bool:
    """An unusable segment has a selector and nothing else: KVM marks the rest accessed when it is written back."""
    if kind.cname != "struct kvm_segment":
        return False
    first, second = (ffi.from_buffer("struct kvm_segment *", data) for data in (ours, theirs))
    return bool(first.unusable and second.unusable and first.selector == second.selector)
