# SPDX-License-Identifier: Apache-2.0
"""Lies about machine-check banks."""

from __future__ import annotations

import errno

from tests.mutations.lies import Change, accept, after, answer, before, drift, toggle
from tests.mutations.registry import lies
from vmm.kvm.ioctl import Call

SET_UP, GET_MSRS = "KVM_X86_SETUP_MCE", "KVM_GET_MSRS"


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
