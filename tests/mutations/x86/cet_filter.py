# SPDX-License-Identifier: Apache-2.0
"""Lies about MSR filters against CET registers that are passed through."""

from __future__ import annotations

from tests.mutations.lies import answer, assign, before, given, nth, toggle
from tests.mutations.registry import lies
from tests.mutations.x86.lies import (
    MSR_FILTER,
    UD,
    at_msr_exit,
    before_msr_answer,
    guest_did_not_fault,
    in_cet_guest,
    set_in_guest,
)
from vmm.kvm.ioctl import Interposer
from vmm.x86.msr_names import Msr


def _passed_through(entry: str, msr: int) -> Interposer:
    """An access is not intercepted any more, whatever the filter says."""
    return in_cet_guest(entry, guest_did_not_fault, given(msr))


lies(
    "cet.msr-filter",
    the_filter_is_ignored=lambda: answer(MSR_FILTER, 0, nth(1)),
    the_filter_leaves_out_u_cet=lambda: before(
        MSR_FILTER, lambda call: setattr(call.argument.ranges[0], "nmsrs", 0), nth(1)
    ),
    u_cet_is_read_past_the_filter=lambda: _passed_through("rdmsr", Msr.U_CET),
    u_cet_is_written_past_the_filter=lambda: _passed_through("wrmsr", Msr.U_CET),
    s_cet_is_read_past_the_filter=lambda: _passed_through("rdmsr", Msr.S_CET),
    s_cet_is_written_past_the_filter=lambda: _passed_through("wrmsr", Msr.S_CET),
    pl0_ssp_is_read_past_the_filter=lambda: _passed_through("rdmsr", Msr.PL0_SSP),
    pl0_ssp_is_written_past_the_filter=lambda: _passed_through("wrmsr", Msr.PL0_SSP),
    pl3_ssp_is_read_past_the_filter=lambda: _passed_through("rdmsr", Msr.PL3_SSP),
    pl3_ssp_is_written_past_the_filter=lambda: _passed_through("wrmsr", Msr.PL3_SSP),
    a_denied_read_is_ud=lambda: in_cet_guest("rdmsr", lambda guest: guest.set("vector", UD)),
    a_denied_write_is_ud=lambda: in_cet_guest("wrmsr", lambda guest: guest.set("vector", UD)),
    a_denied_write_is_done=lambda: in_cet_guest("wrmsr", set_in_guest(Msr.PL3_SSP, 0), given(Msr.PL3_SSP, 0)),
    nothing_is_forwarded=lambda: answer("KVM_ENABLE_CAP", 0),
    the_exit_has_no_reason=lambda: at_msr_exit(assign("run.msr.reason", 0)),
    the_exit_is_about_another_msr=lambda: at_msr_exit(toggle("run.msr.index", 1)),
    the_guest_does_not_get_the_answer=lambda: before_msr_answer(assign("run.msr.data", 0)),
    the_vmm_cannot_refuse=lambda: before_msr_answer(assign("run.msr.error", 0)),
    a_forwarded_write_is_done=lambda: in_cet_guest("wrmsr", set_in_guest(Msr.PL0_SSP, 0), given(Msr.PL0_SSP, 0)),
    the_filter_cannot_be_removed=lambda: answer(MSR_FILTER, 0, nth(2)),
)
