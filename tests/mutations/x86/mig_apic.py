# SPDX-License-Identifier: Apache-2.0
"""Lies about local APICs and run states."""

from __future__ import annotations

import errno

from tests.mutations.lies import (
    RUN,
    Change,
    Shared,
    accept,
    after,
    after_entry,
    answer,
    assign,
    before,
    drift,
    nth,
    once,
    refuse,
)
from tests.mutations.registry import lies
from vmm._kvm import ffi, lib
from vmm.conformance.clauses.x86.mig_apic import _REGISTERS
from vmm.kvm.ioctl import Call, Interposer

GET, SET, GET_APIC, SET_APIC = "KVM_GET_MP_STATE", "KVM_SET_MP_STATE", "KVM_GET_LAPIC", "KVM_SET_LAPIC"
_RUNNABLE, _HALTED = int(lib.KVM_MP_STATE_RUNNABLE), int(lib.KVM_MP_STATE_HALTED)


def _to(value: int) -> Interposer:
    """What is set to ``value`` is runnable."""
    return before(SET, assign("mp_state", _RUNNABLE), lambda call: bool(call.argument.mp_state == value))


def _shows(value: int) -> Interposer:
    """What is ``value`` reads as runnable."""

    def change(call: Call) -> None:
        if call.argument.mp_state == value:
            call.argument.mp_state = _RUNNABLE

    return after(GET, change)


def _state_now(call: Call, value: int) -> None:
    lib.vmm_ioctl(call.fd, lib.KVM_SET_MP_STATE, ffi.new("struct kvm_mp_state *", {"mp_state": value}))


def _no_nmi(call: Call) -> None:
    events = ffi.new("struct kvm_vcpu_events *")
    lib.vmm_ioctl(call.fd, lib.KVM_GET_VCPU_EVENTS, events)
    events.nmi.pending, events.exception.injected, events.exception.nr = 0, 1, 6
    events.flags = lib.KVM_VCPUEVENT_VALID_NMI_PENDING
    lib.vmm_ioctl(call.fd, lib.KVM_SET_VCPU_EVENTS, events)


lies(
    "mig.mp-state",
    uninitialized_is_lost_when_it_is_written=lambda: _to(int(lib.KVM_MP_STATE_UNINITIALIZED)),
    init_received_is_lost_when_it_is_written=lambda: _to(int(lib.KVM_MP_STATE_INIT_RECEIVED)),
    halted_is_lost_when_it_is_written=lambda: _to(_HALTED),
    runnable_is_lost_when_it_is_written=lambda: answer(SET, 0, lambda call: bool(call.argument.mp_state == 0)),
    uninitialized_is_not_shown=lambda: _shows(int(lib.KVM_MP_STATE_UNINITIALIZED)),
    init_received_is_not_shown=lambda: _shows(int(lib.KVM_MP_STATE_INIT_RECEIVED)),
    halted_is_not_shown=lambda: _shows(_HALTED),
    halted_is_refused=lambda: refuse(SET, errno.EINVAL, lambda call: bool(call.argument.mp_state == _HALTED)),
    a_halted_copy_runs=lambda: before(RUN, lambda call: _state_now(call, _RUNNABLE), nth(1)),
    a_halted_copy_has_run=lambda: after_entry("step", lambda guest: guest.set("values", 1), payload="state"),
    an_nmi_does_not_wake=lambda: before("KVM_SET_VCPU_EVENTS", assign("nmi.pending", 0)),
    another_exception_wakes=lambda: before(RUN, _no_nmi, nth(2)),
    a_woken_copy_is_halted_still=lambda: after(RUN, lambda call: _state_now(call, _HALTED)),
    a_runnable_copy_does_not_run=lambda: before(RUN, lambda call: _state_now(call, _HALTED), nth(3)),
)

lies(
    "mig.mp-state-refused",
    halted_is_accepted=lambda: accept(SET, lambda call: bool(call.argument.mp_state == _HALTED)),
    uninitialized_is_accepted=lambda: accept(
        SET, lambda call: bool(call.argument.mp_state == lib.KVM_MP_STATE_UNINITIALIZED)
    ),
    init_received_is_accepted=lambda: accept(
        SET, lambda call: bool(call.argument.mp_state == lib.KVM_MP_STATE_INIT_RECEIVED)
    ),
    stopped_is_accepted=lambda: accept(SET, lambda call: bool(call.argument.mp_state == lib.KVM_MP_STATE_STOPPED)),
    any_number_is_accepted=lambda: accept(SET, lambda call: bool(call.argument.mp_state == 0xFFFFFFFF)),
    a_refusal_is_enxio=lambda: drift(SET, errno.ENXIO),
    what_was_refused_is_taken=lambda: after(GET, assign("mp_state", _HALTED)),
    runnable_is_refused=lambda: refuse(SET, errno.EINVAL),
)


def _register(name: str) -> Change:
    """Change the lowest bit of an APIC register's second byte."""
    offset = _REGISTERS[name][0]

    def change(call: Call) -> None:
        buffer = ffi.cast("uint8_t *", call.argument)
        buffer[offset + 1] ^= 1

    return change


def _lost(name: str) -> Interposer:
    """Whatever is written to an APIC register becomes 0."""

    def change(call: Call) -> None:
        ffi.cast("uint32_t *", call.argument)[_REGISTERS[name][0] // 4] = 0

    return before(SET_APIC, change)


def _row(name: str) -> Interposer:
    """The guest loads another value."""

    def change(guest: Shared) -> None:
        guest.at(guest.payload.symbol("rows"))[3 * list(_REGISTERS).index(name) + 1] ^= 1

    return after_entry("peek", change, payload="state")


for _name in _REGISTERS:
    _words = _name.lower().replace(" ", "_")
    lies(
        "mig.lapic",
        **{
            f"{_words}_is_not_shown": lambda name=_name: after(GET_APIC, _register(name), nth(3)),
            f"the_guest_loads_another_{_words}": lambda name=_name: _row(name),
        },
    )

lies(
    "mig.lapic",
    tpr_loses_what_is_written=lambda: _lost("TPR"),
    the_timer_loses_what_is_written=lambda: _lost("TMICT"),
    the_apic_is_refused=lambda: refuse(SET_APIC, errno.EINVAL),
    the_copy_refuses_the_apic=lambda: refuse(SET_APIC, errno.EINVAL, nth(2)),
)


def _tpr(call: Call) -> None:
    ffi.cast("uint32_t *", call.argument)[_REGISTERS["TPR"][0] // 4] ^= 0x10


lies(
    "mig.cr8-in-guest",
    cr8_loses_what_is_written=lambda: before("KVM_SET_SREGS", assign("cr8", 0)),
    the_copy_loses_cr8=lambda: before("KVM_SET_SREGS", assign("cr8", 0), nth(3)),
    cr8_is_not_shown=lambda: after("KVM_GET_SREGS", assign("cr8", 0)),
    cr8_is_not_shown_after_the_run=lambda: once(RUN, after("KVM_GET_SREGS", assign("cr8", 0))),
    cr8_does_not_reach_the_apic=lambda: after(GET_APIC, _tpr, nth(1)),
    cr8_does_not_reach_the_apic_of_the_copy=lambda: after(GET_APIC, _tpr, nth(2)),
    control_registers_are_refused=lambda: refuse("KVM_SET_SREGS", errno.EINVAL, nth(2)),
    the_guest_reads_cr8_of_kvm_run=lambda: after_entry(
        "cr8", lambda guest: guest.set("values", 0xD), payload="state"
    ),
)
