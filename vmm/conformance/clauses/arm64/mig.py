# SPDX-License-Identifier: Apache-2.0
"""Saving a vCPU by KVM_GET_REG_LIST and restoring it into another VM: what a migration stands on."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from vmm._kvm import ffi, lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.registers import VLS, Group, Register, z
from vmm.arm64.vector import VectorState
from vmm.conformance.arm64.common import (
    COUNTERS,
    GUEST_RUNS,
    SVE,
    compare,
    features,
    lengths,
    lengths_to_try,
    plain_guest,
    set_image,
    sve_guest,
    sve_vcpu,
)
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference, refused_indicative, succeeds
from vmm.conformance.registry import clause
from vmm.kvm.exits import Budget
from vmm.kvm.ioctl import Batch, KvmError, request_name
from vmm.kvm.vcpu import Vcpu
from vmm.state.piece import one_reg_calls

_TICKS, _SHUFFLES = 9, 4


@dataclass(frozen=True, slots=True)
class _Saved:
    """A vCPU's registers in the order of KVM_GET_REG_LIST, its MP state and its pending events."""

    registers: dict[Register, bytes]
    mp_state: int
    events: bytes


def _in_a_batch(vcpu: Vcpu, request: int, what: str, registers: Sequence[Register], values: bytes) -> bytes:
    """Make a call for each register, whose values are one after the other; the first that is refused is judged."""
    calls = one_reg_calls(request, registers, values)
    batch = Batch(calls)
    if (at := batch.run(vcpu.fd)) < len(batch):
        with judged(f"{what} {registers[at]}"):
            raise KvmError(request_name(request), -batch.calls[at].result)
    return bytes(ffi.buffer(calls.buffer))


def _read(vcpu: Vcpu, registers: Sequence[Register]) -> dict[Register, bytes]:
    ends = list(accumulate(register.size for register in registers))
    data = _in_a_batch(vcpu, lib.KVM_GET_ONE_REG, "reading", registers, bytes(ends[-1]))
    return {register: data[low:high] for register, low, high in zip(registers, [0, *ends], ends, strict=False)}


def _save(vcpu: Vcpu) -> _Saved:
    with judged("saving a vCPU"):
        registers = _read(vcpu, list(map(Register, vcpu.reg_list())))
        events = bytes(ffi.buffer(vcpu.get_events()))
    return _Saved(registers, vcpu.mp_state, events)


def _restore(vcpu: Vcpu, saved: _Saved, order: Iterable[Register] | None = None) -> None:
    """Write a state to a finalized vCPU that has not run: registers, then events, then the MP state."""
    written = [register for register in (saved.registers if order is None else order) if register != VLS]
    values = b"".join(saved.registers[register] for register in written)
    _in_a_batch(vcpu, lib.KVM_SET_ONE_REG, "writing", written, values)
    events = ffi.new("struct kvm_vcpu_events *")
    ffi.memmove(events, saved.events, len(saved.events))
    succeeds("KVM_SET_VCPU_EVENTS", vcpu.set_events, events)
    succeeds(f"MP state {saved.mp_state}", setattr, vcpu, "mp_state", saved.mp_state)


def _equal(what: str, found: _Saved, expected: _Saved) -> None:
    """All but the counters, which keep counting, has to be the same."""
    listed = list(found.registers), list(expected.registers)
    if listed[0] != listed[1]:
        equal(f"{what}: the list", *([str(register) for register in one] for one in listed))
    no_difference(
        what,
        [
            f"{register}: {found.registers[register].hex()} and not {value.hex()}"
            for register, value in expected.registers.items()
            if found.registers[register] != value and register not in COUNTERS
        ],
        compared=len(expected.registers),
    )
    equal(f"{what}: the MP state", found.mp_state, expected.mp_state)
    equal(f"{what}: the events", found.events, expected.events)


def _in_the_middle(context: Context, guest: Guest, state: VectorState) -> _Saved:
    """Save a guest that holds ``state`` between two of its exits."""
    set_image(guest, state)
    guest.prepare("hold", 2 * _TICKS)
    equal("the exit", guest.resume(context.timeout, _TICKS), Budget(_TICKS))
    guest.complete()
    return _save(guest.vcpu)


def _moved(source: Guest, destination: Guest, saved: _Saved) -> None:
    """Give the destination the source's memory and its state."""
    destination.memory.write(0, bytes(source.memory.view))
    _restore(destination.vcpu, saved)


@clause("mig.sve-idempotent", arch="arm64", needs=(GUEST_RUNS,), timeout=30)
def idempotent(context: Context) -> None:
    """A state written to a vCPU of another VM is what is read from there, register by register, except for counters.

    With SVE at every vector length, and without.

    Source: Documentation/virt/kvm/api.rst, 4.68, 4.69 and 4.84.
    """
    pairs = [(plain_guest(context, "fpsimd"), plain_guest(context, "fpsimd"), 16, False)]
    if features(context):
        for sizes in lengths_to_try(context):
            pairs.append((sve_guest(context, sizes), sve_guest(context, sizes), sizes.size, True))
    for source, destination, size, sve in pairs:
        state = VectorState.random(size, context.options.seed + size, sve=sve)
        saved = _in_the_middle(context, source, state)
        _moved(source, destination, saved)
        _equal(f"the restored state with vectors of {size} bytes", _save(destination.vcpu), saved)


@clause("mig.sve-guest-goes-on", arch="arm64", needs=(SVE, GUEST_RUNS), timeout=30)
def goes_on(context: Context) -> None:
    """A guest that is moved between two exits resumes in the other VM and finds its vector registers.

    It leaves as often as it had to.

    Source: Documentation/virt/kvm/api.rst, 4.68; arch/arm64/kvm/fpsimd.c.
    """
    for sizes in lengths_to_try(context):
        source, destination = sve_guest(context, sizes), sve_guest(context, sizes)
        state = VectorState.random(sizes.size, context.options.seed + sizes.size)
        _moved(source, destination, _in_the_middle(context, source, state))
        what = f"the moved guest with {sizes}"
        with judged(what):
            equal(f"the exits of {what}", destination.resume(context.timeout, _TICKS), Budget(_TICKS))
            event = destination.finish(destination.resume(context.timeout, 1), what)
        compare(destination, what, event, state)


@clause("mig.list-order-fails", arch="arm64", needs=(SVE,))
def list_order(context: Context) -> None:
    """No restore can write the listed registers in the listed order: FINALIZE belongs in their middle.

    Before FINALIZE the first failure is Z0, after it the vector lengths; both are EPERM.

    Source: arch/arm64/kvm/guest.c, copy_sve_reg_indices, set_sve_vls, set_sve_reg.
    """
    saved = _save(sve_vcpu(context))
    for finalized, stops in ((False, z(0)), (True, VLS)):
        vcpu = sve_vcpu(context, finalized=finalized)
        for register, value in saved.registers.items():
            if register == stops:
                what = f"{register} {'after' if finalized else 'before'} FINALIZE"
                refused_indicative(context, what, errno.EPERM, vcpu.set_one_reg, register, value)
                break
            succeeds(f"writing {register}", vcpu.set_one_reg, register, value)


def _identification(register: Register) -> bool:
    return register.group == Group.SYSREG and register.encoding[0] == 3 and register.encoding[2] == 0


@clause("mig.order-free", arch="arm64", needs=(SVE, GUEST_RUNS), timeout=30)
def order_free(context: Context) -> None:
    """After FINALIZE the order of the registers does not matter, if the identification registers come first.

    Forwards, backwards and in random orders, with ZCR_EL1 before and after Z.

    Source: Documentation/virt/kvm/arm/vcpu-features.rst; arch/arm64/kvm/guest.c.
    """
    source = sve_guest(context)
    saved = _in_the_middle(context, source, VectorState.random(lengths(context).size, context.options.seed))
    first = [r for r in saved.registers if _identification(r)]
    rest = [r for r in saved.registers if not _identification(r)]
    orders = [rest, rest[::-1]]
    shuffler = random.Random(context.options.seed)
    orders += [shuffler.sample(rest, len(rest)) for _ in range(_SHUFFLES)]
    for number, order in enumerate(orders):
        vcpu = context.vcpu()
        vcpus.init(vcpu, *source.features)
        vcpus.finalize(vcpu)
        _restore(vcpu, saved, first + order)
        _equal(f"the state after order {number}", _save(vcpu), saved)
