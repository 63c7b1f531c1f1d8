# SPDX-License-Identifier: Apache-2.0
"""Lies about MSR filters against IA32_XFD and IA32_XFD_ERR."""

from __future__ import annotations

from tests.mutations.lies import after_entry, answer, assign, before, given, nth, toggle
from tests.mutations.registry import lies
from tests.mutations.x86.lies import (
    MSR_FILTER,
    UD,
    at_msr_exit,
    before_msr_answer,
    guest_did_not_fault,
    set_in_guest,
)
from vmm.kvm.ioctl import Interposer
from vmm.x86.msr_names import Msr


def _passed_through(entry: str, msr: int) -> Interposer:
    """An access is not intercepted any more, whatever the filter says."""
    return after_entry(entry, guest_did_not_fault, when=given(msr))


lies(
    "xfd.msr-filter",
    the_filter_is_ignored=lambda: answer(MSR_FILTER, 0, nth(1)),
    the_filter_leaves_out_xfd_err=lambda: before(
        MSR_FILTER, lambda call: setattr(call.argument.ranges[0], "nmsrs", 1), nth(1)
    ),
    xfd_is_read_past_the_filter=lambda: _passed_through("rdmsr", Msr.XFD),
    xfd_is_written_past_the_filter=lambda: _passed_through("wrmsr", Msr.XFD),
    xfd_err_is_read_past_the_filter=lambda: _passed_through("rdmsr", Msr.XFD_ERR),
    xfd_err_is_written_past_the_filter=lambda: _passed_through("wrmsr", Msr.XFD_ERR),
    a_denied_read_is_ud=lambda: after_entry("rdmsr", lambda guest: guest.set("vector", UD)),
    a_denied_write_is_ud=lambda: after_entry("wrmsr", lambda guest: guest.set("vector", UD)),
    a_write_past_the_filter_is_done=lambda: after_entry("wrmsr", set_in_guest(Msr.XFD, 0), when=given(Msr.XFD, 0)),
    nothing_is_forwarded=lambda: answer("KVM_ENABLE_CAP", 0),
    the_exit_has_no_reason=lambda: at_msr_exit(assign("run.msr.reason", 0)),
    the_exit_is_about_another_msr=lambda: at_msr_exit(toggle("run.msr.index", 1)),
    the_guest_does_not_get_the_answer=lambda: before_msr_answer(assign("run.msr.data", 0)),
    the_vmm_cannot_refuse=lambda: before_msr_answer(assign("run.msr.error", 0)),
    the_filter_cannot_be_removed=lambda: answer(MSR_FILTER, 0, nth(2)),
)
