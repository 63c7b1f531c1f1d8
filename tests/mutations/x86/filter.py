# SPDX-License-Identifier: Apache-2.0
"""Lies about MSR filters: what they deny, allow and forward."""

from __future__ import annotations

import errno

from tests.mutations.lies import (
    Change,
    accept,
    after_entry,
    answer,
    assign,
    before,
    drift,
    given,
    nth,
    on_refusal,
    once,
    refuse,
    toggle,
)
from tests.mutations.registry import lies
from tests.mutations.x86.lies import (
    MSR_FILTER,
    UD,
    at_msr_exit,
    before_msr_answer,
    guest_did_not_fault,
    guest_faulted,
    host_reads,
    set_in_guest,
)
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

CS, ESP, EIP = Msr.SYSENTER_CS, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP


def _of_range(field: str, value: int) -> Change:
    """Give the first range another value."""
    return lambda call: setattr(call.argument.ranges[0], field, value)


def _allowed(bits: int) -> Change:
    """Allow and deny others in the first range."""

    def change(call: Call) -> None:
        call.argument.ranges[0].bitmap[0] = bits

    return change


def _undenied(entry: str, *parameters: int) -> Interposer:
    return after_entry(entry, guest_did_not_fault, when=given(*parameters))


def _faults(entry: str, *parameters: int) -> Interposer:
    return after_entry(entry, guest_faulted, when=given(*parameters))


def _is_ud(entry: str) -> Interposer:
    return after_entry(entry, lambda guest: guest.set("vector", UD))


def _takes(msr: int, value: int, taken: int) -> Interposer:
    """WRMSR leaves something else in the register."""
    return after_entry("wrmsr", set_in_guest(msr, taken), when=given(msr, value))


lies(
    "filter.bitmap",
    "filter.default",
    "filter.ends",
    "filter.to-userspace",
    "filter.refused",
    filters_are_ignored=lambda: answer(MSR_FILTER, 0),
    filters_cannot_be_set=lambda: refuse(MSR_FILTER, errno.EINVAL),
)

lies(
    "filter.bitmap",
    "filter.default",
    "filter.ends",
    "filter.refused",
    a_denied_read_is_ud=lambda: _is_ud("rdmsr"),
    a_denied_write_is_ud=lambda: _is_ud("wrmsr"),
)

lies(
    "filter.bitmap",
    a_clear_bit_allows=lambda: before(MSR_FILTER, _allowed(0b101), nth(1)),
    a_range_begins_one_msr_later=lambda: before(MSR_FILTER, _of_range("base", ESP), nth(1)),
    a_range_has_one_msr_less=lambda: before(MSR_FILTER, _of_range("nmsrs", 2), nth(1)),
    a_set_bit_denies=lambda: before(MSR_FILTER, _allowed(0), nth(1)),
    a_filter_of_reads_is_one_of_writes_too=lambda: before(MSR_FILTER, _of_range("flags", 3), nth(2)),
    a_filter_of_reads_is_one_of_writes=lambda: before(MSR_FILTER, _of_range("flags", 2), nth(2)),
    a_filter_of_writes_is_one_of_reads_too=lambda: before(MSR_FILTER, _of_range("flags", 3), nth(3)),
    a_filter_of_writes_is_one_of_reads=lambda: before(MSR_FILTER, _of_range("flags", 1), nth(3)),
    a_filter_adds_to_the_one_before=lambda: _faults("wrmsr", CS, 0x40),
    a_write_that_is_gp_is_done=lambda: _takes(CS, 0x20, 0x20),
    a_write_that_is_gp_clears_the_register=lambda: _takes(EIP, 0x5550, 0),
    a_write_that_is_allowed_is_lost=lambda: _takes(CS, 0x30, 0x10),
    a_read_that_is_allowed_has_another_value=lambda: after_entry(
        "rdmsr", lambda guest: guest.set("values", 0), when=given(EIP, 0x5550)
    ),
)

lies(
    "filter.default",
    what_has_no_range_is_allowed=lambda: before(MSR_FILTER, assign("flags", 0), nth(1)),
    what_has_no_range_is_denied=lambda: before(MSR_FILTER, assign("flags", 1), nth(2)),
    a_range_that_allows_is_denied_too=lambda: before(MSR_FILTER, _allowed(0), nth(1)),
    a_range_that_denies_is_allowed_too=lambda: before(MSR_FILTER, _allowed(1), nth(2)),
    the_host_cannot_set_what_its_guest_may_not=lambda: once(MSR_FILTER, answer("KVM_SET_MSRS", 0)),
    the_host_reads_0_where_its_guest_may_not=lambda: once(
        MSR_FILTER, host_reads(EIP, lambda value: 0 if value == 0x6660 else value)
    ),
    a_write_that_is_gp_is_done=lambda: _takes(EIP, 0x4440, 0x4440),
    the_guest_reads_what_it_wrote_last=lambda: after_entry(
        "rdmsr", lambda guest: guest.set("values", 0x2220), when=given(EIP)
    ),
)


lies(
    "filter.ends",
    a_filter_cannot_be_removed=lambda: answer(MSR_FILTER, 0, nth(2)),
    removing_a_filter_is_refused=lambda: refuse(MSR_FILTER, errno.EINVAL, nth(2)),
    a_second_filter_is_ignored=lambda: answer(MSR_FILTER, 0, nth(3)),
    a_second_filter_cannot_be_removed=lambda: answer(MSR_FILTER, 0, nth(4)),
    the_second_msr_stays_denied=lambda: _faults("rdmsr", EIP),
    a_write_that_is_gp_is_done=lambda: _takes(ESP, 0x4440, 0x4440),
)

lies(
    "filter.to-userspace",
    what_is_denied_is_gp_all_the_same=lambda: answer("KVM_ENABLE_CAP", 0),
    the_exit_has_no_reason=lambda: at_msr_exit(assign("run.msr.reason", 0)),
    the_exit_is_about_another_msr=lambda: at_msr_exit(toggle("run.msr.index", 1)),
    the_exit_does_not_say_what_is_written=lambda: at_msr_exit(assign("run.msr.data", 0)),
    a_read_exits_as_a_write=lambda: at_msr_exit(assign("run.exit_reason", lib.KVM_EXIT_X86_WRMSR)),
    the_guest_does_not_get_the_answer=lambda: before_msr_answer(assign("run.msr.data", 0)),
    the_vmm_cannot_refuse=lambda: before_msr_answer(assign("run.msr.error", 0)),
    every_answer_is_gp=lambda: before_msr_answer(assign("run.msr.error", 1)),
    a_refused_read_is_ud=lambda: _is_ud("rdmsr"),
    a_refused_write_is_ud=lambda: _is_ud("wrmsr"),
    the_register_is_written_too=lambda: _takes(ESP, 0x3330, 0x3330),
    what_is_not_denied_exits_too=lambda: before(MSR_FILTER, _of_range("nmsrs", 2), nth(1)),
    the_filter_cannot_be_removed=lambda: answer(MSR_FILTER, 0, nth(2)),
)


def _allow_all_now(call: Call) -> None:
    lib.vmm_ioctl(call.fd, lib.KVM_X86_SET_MSR_FILTER, ffi.new("struct kvm_msr_filter *"))


lies(
    "filter.refused",
    an_unknown_flag_is_taken=lambda: accept(MSR_FILTER, nth(2)),
    a_range_for_no_access_is_taken=lambda: accept(MSR_FILTER, nth(3)),
    an_unknown_access_is_taken=lambda: accept(MSR_FILTER, nth(4)),
    a_range_too_long_is_taken=lambda: accept(MSR_FILTER, nth(5)),
    default_deny_without_ranges_is_taken=lambda: accept(MSR_FILTER, nth(6)),
    a_bitmap_at_a_bad_address_is_taken=lambda: accept(MSR_FILTER, nth(7)),
    an_unknown_flag_is_eperm=lambda: drift(MSR_FILTER, errno.EPERM, nth(2)),
    a_bitmap_at_a_bad_address_is_einval=lambda: drift(MSR_FILTER, errno.EINVAL, nth(7)),
    a_refused_filter_ends_the_one_before=lambda: on_refusal(MSR_FILTER, _allow_all_now),
    a_refused_filter_is_in_effect=lambda: _faults("wrmsr", ESP, 0x3330),
    the_longest_range_is_refused=lambda: refuse(MSR_FILTER, errno.EINVAL, nth(8)),
    the_longest_range_denies=lambda: answer(MSR_FILTER, 0, nth(8)),
)
