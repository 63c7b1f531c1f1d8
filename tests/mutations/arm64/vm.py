# SPDX-License-Identifier: Apache-2.0
"""Lies about exits, the address size, firmware registers, events and the timer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from tests.mutations.arm64.lies import (
    COUNTER,
    EVENTS,
    GET,
    SET,
    forget,
    get_now,
    group,
    guest_left,
    number,
    reading,
    set_now,
    spoiled_exit,
    value,
    values,
)
from tests.mutations.lies import (
    COMPLETE,
    RUN,
    Proceed,
    accept,
    after,
    answer,
    assign,
    before,
    nth,
    once,
    refuse,
    toggle,
)
from tests.mutations.registry import lies, mutation
from vmm.arm64.registers import PC, SYSTEM, firmware
from vmm.kvm.ioctl import Call, Interposer

_BITMAPS = 0x16
SET_EVENTS = "KVM_SET_VCPU_EVENTS"


lies("vm.mmio-exit", a_store_leaves_with_another_address=lambda: spoiled_exit(toggle("run.mmio.phys_addr", 8)))


@mutation("vm.mmio-exit")
def a_store_leaves_with_another_value() -> Interposer:
    def change(call: Call) -> None:
        call.argument.run.mmio.data[7] ^= 1

    return spoiled_exit(change)


lies("vm.mmio-exit", completing_a_store_does_not_move_pc=lambda: answer(COMPLETE, -errno.EINTR))


@mutation("vm.mmio-exit")
def the_guest_reads_something_else_than_the_answer() -> Interposer:
    def change(call: Call) -> None:
        call.argument.run.mmio.data[0] ^= 1

    return before(RUN, change, nth(3))


lies(
    "vm.mmio-read-signext",
    a_signed_byte_is_not_extended=lambda: guest_left("load", values(0, lambda old: old & 0xFFFFFFFF)),
    a_load_without_sign_is_extended=lambda: guest_left(
        "load", values(0, lambda old: old | 0xFF << 56), when=lambda guest: guest.get("params", 1) == 1
    ),
)

lies("vm.immediate-exit", immediate_exit_is_ignored=lambda: answer(COMPLETE, 0))


@mutation("vm.immediate-exit")
def immediate_exit_comes_one_instruction_late() -> Interposer:
    def interposer(call: Call, proceed: Callable[[], int]) -> int:
        result = proceed()
        if call.name == "KVM_RUN" and call.kind != "run":
            set_now(call.fd, PC, int.from_bytes(get_now(call.fd, PC), "little") + 4)
        return result

    return interposer


lies(
    "vm.ipa-size",
    an_address_space_of_40_bits_is_refused=lambda: refuse(
        "KVM_CREATE_VM", errno.EINVAL, lambda call: call.argument == 40
    ),
)


@mutation("vm.ipa-size")
def an_address_space_of_31_bits_is_granted() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        granted = call.name == "KVM_CREATE_VM" and call.argument == 31
        return os.open(os.devnull, os.O_RDONLY) if granted else proceed()

    return interposer


lies(
    "vm.ipa-size",
    there_is_no_default_size=lambda: refuse("KVM_CREATE_VM", errno.EINVAL, lambda call: call.argument == 0),
    more_than_the_limit_is_refused_with_another_errno=lambda: refuse(
        "KVM_CREATE_VM", errno.E2BIG, lambda call: call.argument == 64
    ),
)

lies(
    "vm.fw-bitmaps",
    a_hypercall_that_is_not_offered_is_accepted=lambda: accept(SET, group(_BITMAPS)),
    hypercalls_cannot_be_reduced=lambda: answer(SET, 0, lambda call: group(_BITMAPS)(call) and not any(value(call))),
    no_hypercalls_are_offered=lambda: reading(number(0), firmware(2, bitmap=True)),
    the_same_hypercalls_are_refused_after_a_run=lambda: once(
        COMPLETE, refuse(SET, errno.EBUSY, group(_BITMAPS)), refused=True
    ),
)

lies(
    "vm.events",
    reserved_fields_of_events_are_ignored=lambda: accept(SET_EVENTS),
    a_pending_serror_is_lost=lambda: answer(SET_EVENTS, 0, lambda call: call.argument.exception.serror_pending == 1),
    a_pending_serror_loses_its_syndrome=lambda: after(EVENTS, assign("exception.serror_esr", 0)),
    an_external_abort_is_pending=lambda: after(EVENTS, assign("exception.ext_dabt_pending", 1)),
)


@mutation("vm.timer-swapped-ids")
def the_comparator_has_the_counters_id() -> Interposer:
    other = {int(COUNTER): SYSTEM["CNTV_CVAL_EL0"], int(SYSTEM["CNTV_CVAL_EL0"]): COUNTER}

    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name in (GET, SET) and int(call.argument.id) in other:
            call.argument.id = int(other[int(call.argument.id)])
        return proceed()

    return interposer


lies(
    "vm.timer-swapped-ids",
    the_guests_counter_does_not_begin_where_it_was_set=lambda: forget(COUNTER),
    the_counter_stands_still=lambda: reading(number(1 << 40), COUNTER),
)
