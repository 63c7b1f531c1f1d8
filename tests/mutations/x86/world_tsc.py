# SPDX-License-Identifier: Apache-2.0
"""Lies about the time stamp counter: writes that are lost, counters that jump, frequencies that are others."""

from __future__ import annotations

import errno
from typing import Any

from tests.mutations.lies import Condition, accept, after, answer, drift, refuse, succeed_with
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import change_msr, of_msr
from tests.mutations.x86.lies import in_lists
from vmm.kvm.ioctl import Call
from vmm.x86.msr_names import Msr

GET, SET, GET_KHZ, SET_KHZ = "KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_GET_TSC_KHZ", "KVM_SET_TSC_KHZ"
_FAR = 1 << 40


def _later() -> Condition:
    """Not the first time, in which the clause learns what the frequency is."""
    seen = 0

    def condition(call: Call) -> bool:
        nonlocal seen
        seen += 1
        return seen > 1

    return condition


def _guest_reads_more(operand: int, found: Any) -> None:
    found[1] += _FAR >> 32


lies(
    "world.tsc-kept",
    a_write_is_lost=lambda: answer(SET, 1, of_msr(Msr.TSC)),
    a_write_is_refused=lambda: answer(SET, 0, of_msr(Msr.TSC)),
    the_host_reads_less=lambda: after(GET, change_msr(Msr.TSC, lambda value: value - _FAR)),
    the_host_reads_more=lambda: after(GET, change_msr(Msr.TSC, lambda value: value + _FAR)),
    the_guest_reads_more=lambda: in_lists("rdmsr_list", _guest_reads_more),
    the_adjustment_changes=lambda: after(GET, change_msr(Msr.TSC_ADJUST, lambda value: value + 1)),
)
lies(
    "world.tsc-written-by-guest",
    the_counter_is_not_as_written=lambda: after(GET, change_msr(Msr.TSC, lambda value: value + _FAR)),
    the_adjustment_stays=lambda: after(GET, change_msr(Msr.TSC_ADJUST, lambda value: 0)),
)
lies(
    "world.tsc-khz-kept",
    another_frequency_is_shown=lambda: succeed_with(GET_KHZ, lambda call, khz: khz + 1, _later()),
    none_is_taken=lambda: refuse(SET_KHZ, errno.EINVAL),
    every_one_is_taken=lambda: accept(SET_KHZ),
    a_wrong_one_is_another_error=lambda: drift(SET_KHZ, errno.ENOTTY),
)
