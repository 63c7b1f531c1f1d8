# SPDX-License-Identifier: Apache-2.0
"""Lies about machine-check banks."""

from __future__ import annotations

import errno

from tests.mutations.lies import Change, accept, after, answer, before, drift, once, toggle
from tests.mutations.registry import lies
from vmm.kvm.ioctl import Call

SET_UP, GET_MSRS, REPORT, EVENTS = "KVM_X86_SETUP_MCE", "KVM_GET_MSRS", "KVM_X86_SET_MCE", "KVM_GET_VCPU_EVENTS"


def _msr(index: int) -> Change:
    def change(call: Call) -> None:
        for entry in call.argument.entries[0 : call.argument.nmsrs]:
            if entry.index == index:
                entry.data ^= 1 << 4

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


def _is_uncorrected(call: Call) -> bool:
    return bool(call.argument[0] >> 61 & 1)


def _not_lost(call: Call) -> None:
    for entry in call.argument.entries[0 : call.argument.nmsrs]:
        if entry.index == 0x40D:
            entry.data &= ~(1 << 62)


lies(
    "world.mce-reported",
    an_error_is_lost=lambda: answer(REPORT, 0),
    an_uncorrected_error_is_lost=lambda: answer(REPORT, 0, _is_uncorrected),
    what_is_not_valid_is_taken=lambda: accept(REPORT),
    what_is_not_valid_is_eperm=lambda: drift(REPORT, errno.EPERM),
    another_bank_has_it_too=lambda: after(GET_MSRS, _msr(0x405)),
    the_address_is_another=lambda: after(GET_MSRS, _msr(0x40E)),
    what_else_there_is_is_another=lambda: after(GET_MSRS, _msr(0x40F)),
    the_first_of_two_is_not_said_to_be_lost=lambda: after(GET_MSRS, _not_lost),
    an_error_is_reported_although_it_may_not_be=lambda: once(REPORT, after(GET_MSRS, _msr(0x401))),
    the_status_of_all_is_another=lambda: after(GET_MSRS, _msr(0x17A)),
    the_exception_is_another=lambda: after(EVENTS, toggle("exception.nr", 1)),
)
