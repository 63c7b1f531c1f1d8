# SPDX-License-Identifier: Apache-2.0
"""Lies about pending events: lost, kept, taken otherwise."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import EVENTS, INIT, guest_left
from tests.mutations.lies import RUN, after, answer, assign, before, nth, once, refuse
from tests.mutations.registry import lies
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer

_SET_EVENTS = "KVM_SET_VCPU_EVENTS"


def _field(name: str, change: int, entry: str = "unmask", payload: str = "registers") -> Interposer:
    """A field of an exception that the guest took is another."""
    return guest_left(entry, lambda guest: guest.set(name, guest.get(name) ^ change), payload=payload)


def _inject(call: Call, field: str = "serror_pending") -> None:
    """An event is pending, behind the clause's back."""
    events = ffi.new("struct kvm_vcpu_events *", {"exception": {field: 1}})
    lib.vmm_ioctl(call.fd, lib.KVM_SET_VCPU_EVENTS, events)


def _told(field: str, value: int, turn: int) -> Interposer:
    """KVM_GET_VCPU_EVENTS tells something else, at one of its calls."""
    return after(EVENTS, assign(f"exception.{field}", value), nth(turn))


lies(
    "vm.serror-is-taken",
    a_run_loses_a_pending_serror=lambda: _told("serror_pending", 0, 2),
    a_run_loses_its_syndrome=lambda: _told("serror_esr", 0, 3),
    an_serror_that_was_taken_is_still_pending=lambda: _told("serror_pending", 1, 4),
    an_serror_comes_twice=lambda: before(RUN, _inject, nth(3)),
    an_serror_is_a_synchronous_exception=lambda: _field("vector", 3),
    an_serror_has_another_class=lambda: _field("esr", 1 << 26),
    an_serror_has_another_syndrome=lambda: _field("esr", 1 << 9),
)

lies(
    "vm.serror-is-taken",
    "vm.serror-withdrawn-by-init",
    a_pending_serror_is_refused=lambda: refuse(_SET_EVENTS, errno.EINVAL),
    a_pending_serror_is_forgotten=lambda: answer(_SET_EVENTS, 0),
)

lies(
    "vm.serror-withdrawn-by-init",
    init_leaves_an_serror_pending=lambda: once(INIT, after(INIT, _inject)),
    init_leaves_what_nobody_is_told=lambda: before(RUN, _inject),
    init_is_refused=lambda: once(INIT, refuse(INIT, errno.EINVAL)),
)

lies(
    "vm.external-abort",
    an_abort_is_refused=lambda: refuse(_SET_EVENTS, errno.EINVAL),
    an_abort_is_forgotten=lambda: answer(_SET_EVENTS, 0),
    an_abort_is_told_as_pending=lambda: _told("ext_dabt_pending", 1, 1),
    an_abort_is_told_as_an_serror=lambda: _told("serror_pending", 1, 2),
    an_abort_is_an_serror=lambda: _field("vector", 3, "ticks", "hello"),
    an_abort_is_one_of_instructions=lambda: _field("esr", 4 << 26, "ticks", "hello"),
    an_abort_is_a_translation_fault=lambda: _field("esr", 0x17, "ticks", "hello"),
    an_abort_comes_an_instruction_later=lambda: _field("elr", 4, "ticks", "hello"),
    an_abort_comes_twice=lambda: before(RUN, lambda call: _inject(call, "ext_dabt_pending"), nth(2)),
)
