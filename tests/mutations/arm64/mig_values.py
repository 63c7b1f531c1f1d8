# SPDX-License-Identifier: Apache-2.0
"""Lies about system registers, SErrors and run states: lost in writing, in reading, on the way, or in the guest."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import (
    EVENTS,
    SET,
    VBAR,
    flip,
    forget,
    guest_left,
    list_without,
    number,
    of,
    reading,
    values,
)
from tests.mutations.lies import RUN, Change, Proceed, Shared, after, assign, before, both, nth, refuse
from tests.mutations.registry import lies
from vmm._kvm import ffi, lib
from vmm.arm64.registers import SYSTEM, sysreg
from vmm.kvm.ioctl import Call, Interposer

SET_EVENTS, GET_MP, SET_MP = "KVM_SET_VCPU_EVENTS", "KVM_GET_MP_STATE", "KVM_SET_MP_STATE"
_RUNNABLE, _STOPPED = int(lib.KVM_MP_STATE_RUNNABLE), int(lib.KVM_MP_STATE_STOPPED)
_CNTKCTL = sysreg(3, 0, 14, 1, 0)


def _lost_in_the_copy(register: int) -> Interposer:
    """The second write of a register, which is the copy's, succeeds and does nothing."""
    of_it, second = of(register), nth(2)

    def interposer(call: Call, proceed: Proceed) -> int:
        return 0 if call.name == SET and of_it(call) and second(call) else proceed()

    return interposer


def _in_the_guest(at: int) -> Interposer:
    """The guest reads another value."""
    return guest_left("sysregs", values(at, lambda old: old ^ 1), payload="state")


lies(
    "mig.sysregs-changed",
    tpidr_el0_loses_what_is_written=lambda: forget(SYSTEM["TPIDR_EL0"]),
    tpidrro_el0_loses_what_is_written=lambda: forget(SYSTEM["TPIDRRO_EL0"]),
    tpidr_el1_loses_what_is_written=lambda: forget(SYSTEM["TPIDR_EL1"]),
    far_el1_loses_what_is_written=lambda: forget(SYSTEM["FAR_EL1"]),
    ttbr0_el1_loses_what_is_written=lambda: forget(SYSTEM["TTBR0_EL1"]),
    ttbr1_el1_loses_what_is_written=lambda: forget(SYSTEM["TTBR1_EL1"]),
    mair_el1_loses_what_is_written=lambda: forget(SYSTEM["MAIR_EL1"]),
    vbar_el1_loses_what_is_written=lambda: forget(VBAR),
    mair_el1_is_refused=lambda: refuse(SET, errno.EINVAL, of(SYSTEM["MAIR_EL1"])),
    vbar_el1_reads_with_another_byte=lambda: reading(flip(5), VBAR),
    far_el1_does_not_come_over=lambda: _lost_in_the_copy(SYSTEM["FAR_EL1"]),
    tcr_el1_does_not_come_over=lambda: _lost_in_the_copy(SYSTEM["TCR_EL1"]),
    the_list_lacks_ttbr1_el1=lambda: list_without(SYSTEM["TTBR1_EL1"]),
)


lies(
    "mig.sysregs-in-guest",
    far_el1_loses_what_is_written=lambda: forget(SYSTEM["FAR_EL1"]),
    esr_el1_does_not_come_over=lambda: _lost_in_the_copy(SYSTEM["ESR_EL1"]),
    contextidr_el1_is_refused=lambda: refuse(SET, errno.EINVAL, of(SYSTEM["CONTEXTIDR_EL1"])),
    cntkctl_el1_reads_as_0=lambda: reading(number(0), _CNTKCTL),
    the_guest_reads_another_tpidr_el0=lambda: _in_the_guest(0),
    the_guest_reads_another_tpidrro_el0=lambda: _in_the_guest(1),
    the_guest_reads_another_tpidr_el1=lambda: _in_the_guest(2),
    the_guest_reads_another_far_el1=lambda: _in_the_guest(3),
    the_guest_reads_another_esr_el1=lambda: _in_the_guest(4),
    the_guest_reads_another_contextidr_el1=lambda: _in_the_guest(5),
    the_guest_reads_another_cntkctl_el1=lambda: _in_the_guest(6),
    the_guest_reads_another_csselr_el1=lambda: _in_the_guest(7),
)


def _events_now(pending: int) -> Change:
    """Really change whether an SError is pending."""

    def change(call: Call) -> None:
        events = ffi.new("struct kvm_vcpu_events *")
        events.exception.serror_pending = pending
        lib.vmm_ioctl(call.fd, lib.KVM_SET_VCPU_EVENTS, events)

    return change


def _another_entry(guest: Shared) -> None:
    guest.set("vector", 4)


lies(
    "mig.serror",
    a_pending_serror_is_lost_when_it_is_written=lambda: before(SET_EVENTS, assign("exception.serror_pending", 0)),
    a_pending_serror_does_not_come_over=lambda: before(SET_EVENTS, assign("exception.serror_pending", 0), nth(2)),
    a_pending_serror_is_not_shown=lambda: after(EVENTS, assign("exception.serror_pending", 0)),
    the_copys_serror_is_not_shown=lambda: after(EVENTS, assign("exception.serror_pending", 0), nth(3)),
    events_are_refused=lambda: refuse(SET_EVENTS, errno.EINVAL),
    the_copy_refuses_events=lambda: refuse(SET_EVENTS, errno.EINVAL, nth(2)),
    it_is_never_taken=lambda: both(
        before(SET_EVENTS, assign("exception.serror_pending", 0)),
        after(EVENTS, assign("exception.serror_pending", 1)),
    ),
    it_does_not_wait=lambda: guest_left("unmask", values(0, lambda old: 0), payload="state"),
    another_entry_takes_it=lambda: guest_left("unmask", _another_entry, payload="state"),
    it_stays_pending=lambda: after(RUN, _events_now(1)),
)


def _to(value: int, when: int) -> Interposer:
    return before(SET_MP, assign("mp_state", value), nth(when))


def _state_now(value: int) -> Change:
    def change(call: Call) -> None:
        lib.vmm_ioctl(call.fd, lib.KVM_SET_MP_STATE, ffi.new("struct kvm_mp_state *", {"mp_state": value}))

    return change


lies(
    "mig.stopped",
    stopped_is_lost_when_it_is_written=lambda: _to(_RUNNABLE, 1),
    stopped_does_not_come_over=lambda: _to(_RUNNABLE, 2),
    stopped_is_not_shown=lambda: after(GET_MP, assign("mp_state", _RUNNABLE)),
    stopped_is_refused=lambda: refuse(SET_MP, errno.EINVAL),
    runnable_does_not_come_over=lambda: _to(_STOPPED, 5),
    a_stopped_copy_runs=lambda: before(RUN, _state_now(_RUNNABLE), nth(1)),
    a_copy_that_is_made_runnable_stays_stopped=lambda: before(RUN, _state_now(_STOPPED), nth(2)),
    a_runnable_copy_does_not_run=lambda: before(RUN, _state_now(_STOPPED), nth(3)),
)
