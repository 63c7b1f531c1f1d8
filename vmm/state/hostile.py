# SPDX-License-Identifier: Apache-2.0
"""Streams and states that must not be taken: each is refused with the name of what is wrong, and nothing runs.

A variant changes a good stream, or the state in it, in one way. What is done with each is what a receiver
does: read, validate, restore, compare.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from vmm.arch import ARCHITECTURE
from vmm.kvm.ioctl import Call, interpose
from vmm.kvm.system import Kvm
from vmm.state.capture import prepare, restore
from vmm.state.compare import vcpu_differences
from vmm.state.errors import StateRefused, StreamError
from vmm.state.roundtrip import from_stream, to_stream
from vmm.state.stream.container import Reader
from vmm.state.value import Part, VcpuState, VmState
from vmm.state.vcpu import capture_vcpu, restore_vcpu

__all__ = ["Outcome", "run"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one variant: ``expected`` is a word that the refusal has to contain."""

    name: str
    good: bool
    expected: str
    observed: str

    def __str__(self) -> str:
        return f"{'ok' if self.good else 'NOT AS EXPECTED'}: {self.name}: {self.observed}"


def _take(kvm: Kvm, data: bytes) -> None:
    restore(kvm, from_stream(data)).close()


def _take_state(kvm: Kvm, state: VmState) -> None:
    _take(kvm, to_stream(state))


def _refused(name: str, expected: str, act: Callable[[], None]) -> Outcome:
    """Run what has to be refused with ``expected`` in the message, and before any call if it is as a stream."""
    calls: list[str] = []

    def observe(call: Call, proceed: Callable[[], int]) -> int:
        calls.append(call.name)
        return proceed()

    try:
        with interpose(observe):
            act()
    except StreamError as error:
        late = f", after {calls[0]}" if calls else ""
        return Outcome(name, expected in str(error) and not calls, expected, f"refused: {error}{late}")
    except StateRefused as error:
        return Outcome(name, expected in str(error), expected, f"refused: {error}")
    except Exception as error:
        return Outcome(name, False, expected, f"{type(error).__name__}: {error}")
    return Outcome(name, False, expected, "accepted")


# --- damage to the stream -------------------------------------------------------------------------


def _sections(data: bytes) -> list[tuple[str, int, int]]:
    """Return (kind, begin, end) of each section, END included."""
    reader = Reader(io.BytesIO(data))
    found = [(section.kind, section.offset) for section in reader.sections()]
    ends = [offset for _, offset in found[1:]]
    last = len(data) - _END_BYTES
    bounds = [*ends, last]
    return [(kind, offset, end) for (kind, offset), end in zip(found, bounds, strict=True)] + [
        ("END", last, len(data))
    ]


_END_BYTES = 32 + 40 + 32


def _damaged_streams(kvm: Kvm, data: bytes) -> Iterator[Outcome]:
    sections = _sections(data)
    for kind, begin, end in sections:
        yield _refused(f"section {kind} missing", "section", partial(_take, kvm, data[:begin] + data[end:]))
    for kind, begin, end in sections[:-1]:
        twice = data[:end] + data[begin:end] + data[end:]
        yield _refused(f"section {kind} duplicated", "section", partial(_take, kvm, twice))
    for kind, begin, end in sections:
        middle = (begin + end) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
        yield _refused(f"one bit of section {kind} flipped", "section", partial(_take, kvm, flipped))
    for length in {0, 1, 7, 40, len(data) // 3, len(data) - 1, *(begin for _, begin, _ in sections)}:
        yield _refused(f"truncated after {length} bytes", "", partial(_take, kvm, data[:length]))
    yield _refused("something beyond the end", "", partial(_take, kvm, data + b"\0"))


# --- states that no vCPU has ----------------------------------------------------------------------


def _with(state: VmState, name: str, part: Part) -> VmState:
    return replace(state, vcpus=(state.vcpus[0].with_part(name, part),))


def _bytes(state: VmState, name: str) -> bytearray:
    part = state.vcpus[0].parts[name]
    assert isinstance(part, bytes)
    return bytearray(part)


def _or_bits(state: VmState, name: str, at: int, bits: int, size: int = 8) -> VmState:
    data = _bytes(state, name)
    value = int.from_bytes(data[at : at + size], "little") | bits
    data[at : at + size] = value.to_bytes(size, "little")
    return _with(state, name, bytes(data))


def _x86_states(state: VmState) -> Iterator[tuple[str, str, VmState]]:
    yield "XSTATE_BV names a component the guest may not have", "XSTATE_BV", _or_bits(state, "XSAVE", 512, 1 << 62)
    yield "XCOMP_BV is set", "XCOMP_BV", _or_bits(state, "XSAVE", 520, 1 << 63)
    yield "a reserved byte of the XSAVE header is set", "reserved", _or_bits(state, "XSAVE", 528, 1)
    yield "MXCSR has a reserved bit", "MXCSR", _or_bits(state, "XSAVE", 24, 1 << 31, 4)
    yield "XCR0 names a component the guest may not have", "XCR0", _or_bits(state, "XCRS", 16, 1 << 62)
    yield "the XSAVE area is cut", "XSAVE", _with(state, "XSAVE", bytes(_bytes(state, "XSAVE")[:4032]))
    msrs = state.vcpus[0].parts["MSRS"]
    assert not isinstance(msrs, bytes)
    yield "an MSR that no state has", "MSRS", _with(state, "MSRS", {**msrs, 0x79: bytes(8)})
    yield "CR4 has a reserved bit", "SREGS", _or_bits(state, "SREGS", _CR4_AT, 1 << 63)
    yield "the vCPU is in SMM", "system management mode", _or_bits(state, "EVENTS", _SMI_AT, 1, 1)
    area = _bytes(state, "XSAVE")
    if int.from_bytes(area[512:520], "little") >> 18 & 1 and "XFD" in state.vcpus[0].parts:
        xfd = state.vcpus[0].parts["XFD"]
        assert not isinstance(xfd, bytes)
        armed = {**xfd, 0x1C4: (1 << 18).to_bytes(8, "little")}
        yield "IA32_XFD disables what XSTATE_BV names", "IA32_XFD", _with(state, "XFD", armed)


# struct kvm_sregs2: eight segments of 24 bytes, two tables of 16, CR0, CR2, CR3.
_CR4_AT = 8 * 24 + 2 * 16 + 3 * 8
# struct kvm_vcpu_events: smi.smm.
_SMI_AT = 24


def _arm64_states(state: VmState) -> Iterator[tuple[str, str, VmState]]:
    if "VLS" in state.vcpus[0].parts:
        lengths = int.from_bytes(_bytes(state, "VLS"), "little")
        top = lengths.bit_length()
        wider = (lengths | 1 << top).to_bytes(64, "little")
        yield "a vector length wider than the host's", "VLS", _with(state, "VLS", wider)
        if top > 1:
            hole = (lengths & ~1).to_bytes(64, "little")
            yield "a hole in the vector lengths", "VLS", _with(state, "VLS", hole)
    for name in ("CORE", "SYSREGS", "IDREGS"):
        registers = state.vcpus[0].parts[name]
        assert not isinstance(registers, bytes)
        first = next(iter(registers))
        strange = {number: value for number, value in registers.items() if number != first}
        yield f"a register of {name} is missing", "register", _with(state, name, strange)
    registers = state.vcpus[0].parts["IDREGS"]
    assert not isinstance(registers, bytes)
    pfr0 = next(number for number in registers if number & 0xFFFF == _PFR0)
    raised = int.from_bytes(registers[pfr0], "little") | 0xF << 56
    yield (
        "an ID register with a feature that the host lacks",
        "ID_AA64PFR0_EL1",
        _with(state, "IDREGS", {**registers, pfr0: raised.to_bytes(8, "little")}),
    )

    yield "an external abort is to be injected", "ext_dabt_pending", _or_bits(state, "EVENTS", _ABORT_AT, 1, 1)
    yield "a reserved byte of the events is set", "reserved", _or_bits(state, "EVENTS", _RESERVED_AT, 1, 1)
    yield "an SError is pending that nothing masks", "SError", _with_unmasked_serror(state)


def _with_unmasked_serror(state: VmState) -> VmState:
    core = state.vcpus[0].parts["CORE"]
    assert not isinstance(core, bytes)
    number = next(number for number in core if number & 0xFFFF == _PSTATE)
    unmasked = int.from_bytes(core[number], "little") & ~_SERROR_MASK
    return _with(_or_bits(state, "EVENTS", 0, 1, 1), "CORE", {**core, number: unmasked.to_bytes(8, "little")})


_PFR0 = 3 << 14 | 4 << 3
# struct kvm_vcpu_events: exception.ext_dabt_pending, and the last byte of reserved.
_ABORT_AT, _RESERVED_AT = 2, 63
_PSTATE, _SERROR_MASK = 0x42, 1 << 8  # the register, and its A
_STATES = {"x86": _x86_states, "arm64": _arm64_states}


def _missing_parts(kvm: Kvm, state: VmState) -> Iterator[Outcome]:
    for name in state.vcpus[0].parts:
        less = replace(state, vcpus=(state.vcpus[0].without(name),))
        yield _refused(f"the state lacks {name}", name, partial(_take_state, kvm, less))


# --- restores of a good state where it does not belong --------------------------------------------


def _onto_used_vcpu(kvm: Kvm, state: VmState) -> Outcome:
    """The vCPU has run with this set-up: the state comes back or is refused, nothing between."""
    name = "restored onto a vCPU that has run"
    with restore(kvm, state) as guest:
        guest.resume(timeout=30, ticks=1)
        guest.complete()
        try:
            restore_vcpu(guest.vcpu, _again(state.vcpus[0]))
        except StateRefused as error:
            return Outcome(name, True, "", f"refused: {error}")
        found = vcpu_differences(state.arch, state.vcpus[0], capture_vcpu(guest.vcpu))
        return Outcome(name, not found, "", f"restored, {len(found)} differences")


def _again(vcpu: VcpuState) -> VcpuState:
    """What may be written twice: INIT would reset the vCPU, and lengths are final."""
    for name in ("INIT", "VLS", "FINALIZE"):
        vcpu = vcpu.without(name)
    return vcpu


def _other_setup_on_used_vcpu(kvm: Kvm, state: VmState) -> Outcome:
    name = {"x86": "CPUID", "arm64": "IDREGS"}[ARCHITECTURE]
    with restore(kvm, state) as guest:
        guest.resume(timeout=30, ticks=1)
        guest.complete()
        part = state.vcpus[0].parts[name]
        other: Part
        if isinstance(part, bytes):
            other = part[:12] + bytes([part[12] ^ 1]) + part[13:]
        else:
            pfr0 = next(number for number in part if number & 0xFFFF == _PFR0)
            other = {**part, pfr0: (int.from_bytes(part[pfr0], "little") ^ 1 << 56).to_bytes(8, "little")}
        changed = state.vcpus[0].with_part(name, other)
        return _refused(
            "another CPU onto a vCPU that has run", name, lambda: restore_vcpu(guest.vcpu, _again(changed))
        )


def _twice(kvm: Kvm, state: VmState) -> Outcome:
    """One state, two guests: both continue to the same end."""
    ends = []
    for _ in range(2):
        with restore(kvm, state) as guest:
            guest.finish(guest.resume(timeout=60))
            ends.append(hashlib.sha256(guest.memory.view).hexdigest())
    return Outcome("restored twice", ends[0] == ends[1], "", f"both ended with memory {ends[0][:16]} {ends[1][:16]}")


# struct kvm_vcpu_events: the flags on x86, of which KVM knows some; a reserved word on arm64.
_REFUSED_AT = 20


def _never_ran(kvm: Kvm, state: VmState) -> Outcome:
    with prepare(kvm, state) as guest:
        damaged = _or_bits(state, "EVENTS", _REFUSED_AT, 0xFFFFFFFF, 4).vcpus[0]
        try:
            restore_vcpu(guest.vcpu, damaged)
            observed, good = "accepted", False
        except StateRefused as error:
            observed, good = f"refused: {error}; {guest.vcpu.entries} entries", guest.vcpu.entries == 0
        return Outcome("a refused state is never run", good, "", observed)


def run(kvm: Kvm, state: VmState) -> Iterator[Outcome]:
    """Try all variants of a good state whose guest runs the chain payload, one after the other."""
    data = to_stream(state)
    yield from _damaged_streams(kvm, data)
    yield from _missing_parts(kvm, state)
    for name, expected, changed in _STATES[state.arch](state):
        yield _refused(name, expected, partial(_take_state, kvm, changed))
    yield _onto_used_vcpu(kvm, state)
    yield _other_setup_on_used_vcpu(kvm, state)
    yield _twice(kvm, state)
    yield _never_ran(kvm, state)
