# SPDX-License-Identifier: Apache-2.0
"""Lies about machine-check banks."""

from __future__ import annotations

import errno

from tests.mutations.lies import Change, Condition, accept, after, answer, assign, before, drift, toggle
from tests.mutations.registry import lies
from vmm.kvm.ioctl import Call

SET_UP, REPORT, GET_MSRS = "KVM_X86_SETUP_MCE", "KVM_X86_SET_MCE", "KVM_GET_MSRS"


def _msr(index: int, bits: int = 1 << 4) -> Change:
    def change(call: Call) -> None:
        for entry in call.argument.entries[0 : call.argument.nmsrs]:
            if entry.index == index:
                entry.data ^= bits

    return change


def _lvt(call: Call) -> None:
    call.argument.regs[0x32] = b"\x07"


lies(
    "world.mce-kept",
    nothing_is_set_up=lambda: answer(SET_UP, 0),
    another_count_of_banks_is_set_up=lambda: before(SET_UP, toggle("", 2)),
    what_is_unknown_is_taken=lambda: accept(SET_UP),
    what_is_unknown_is_eperm=lambda: drift(SET_UP, errno.EPERM),
    a_bank_is_not_enabled=lambda: after(GET_MSRS, _msr(0x400)),
    the_version_is_another=lambda: after("KVM_GET_LAPIC", _lvt),
)


def _reports(**fields: int) -> Condition:
    return lambda call: all(getattr(call.argument, name) == value for name, value in fields.items())


lies(
    "world.mce-reported",
    a_bank_beyond_the_last_is_taken=lambda: accept(REPORT, _reports(bank=3)),
    what_is_not_valid_is_taken=lambda: accept(REPORT, _reports(status=0x151)),
    what_is_not_valid_is_enoent=lambda: drift(REPORT, errno.ENOENT),
    no_error_is_reported=lambda: answer(REPORT, 0, lambda call: call.argument.bank < 3),
    the_address_is_lost=lambda: before(REPORT, assign("addr", 0)),
    no_overflow_is_shown=lambda: after(GET_MSRS, _msr(0x405, 1 << 62)),
    the_status_is_another=lambda: after(GET_MSRS, _msr(0x17A)),
    a_second_one_is_no_shutdown=lambda: after("KVM_GET_VCPU_EVENTS", assign("triple_fault.pending", 0)),
    it_is_another_exception=lambda: after("KVM_GET_VCPU_EVENTS", assign("exception.nr", 13)),
)
