# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE."""

from __future__ import annotations

import errno

from tests.mutations.lies import (
    RUN,
    Condition,
    accept,
    after,
    after_entry,
    always,
    at_the_end,
    before,
    drift,
    nth,
    on_refusal,
    once,
    refuse,
    succeed_with,
)
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import area, change_msr, flip
from vmm.kvm.ioctl import Interposer
from vmm.x86.msr_names import Msr

GET, SET = "KVM_GET_NESTED_STATE", "KVM_SET_NESTED_STATE"
ARMED = 1 << 18
# Offsets in struct kvm_nested_state.
FLAGS, FORMAT, SIZE, VMXON, VMCS, SMM, CONTENTS = 0, 2, 4, 8, 16, 24, 128


def _read(offset: int, bits: int = 1, when: Condition = always) -> Interposer:
    """Spoil a byte of what KVM_GET_NESTED_STATE gives."""
    return after(GET, flip(offset, bits), when)


def _restored(lie: Interposer) -> Interposer:
    """A lie that begins when a state was set."""
    return once(SET, lie)


def _value(index: int, value: int) -> Interposer:
    return at_the_end("nested", lambda guest: guest.set("values", value, index))


lies(
    "nested.state-idle",
    there_are_flags=lambda: _read(FLAGS),
    the_format_is_another=lambda: _read(FORMAT),
    the_size_is_another=lambda: _read(SIZE),
    there_is_a_vmxon_region=lambda: _read(VMXON),
    there_is_a_vmcs=lambda: _read(VMCS),
    smm_has_flags=lambda: _read(SMM),
    too_small_a_buffer_is_taken=lambda: accept(GET),
    too_small_a_buffer_is_einval=lambda: drift(GET, errno.EINVAL),
    the_size_that_is_wanted_is_another=lambda: on_refusal(GET, flip(SIZE)),
    a_byte_is_written_behind_the_buffer=lambda: _read(CONTENTS, when=lambda call: len(area(call)) == 256),
    a_buffer_of_128_bytes_is_too_small=lambda: refuse(GET, errno.E2BIG, lambda call: len(area(call)) == 256),
    there_is_no_room_for_a_vmcs=lambda: succeed_with("KVM_CHECK_EXTENSION", lambda call, result: 128),
)

lies(
    "nested.state-refusals",
    its_own_state_is_refused=lambda: refuse(SET, errno.EINVAL, nth(1)),
    a_size_of_127_is_taken=lambda: accept(SET, nth(2)),
    an_unknown_flag_is_taken=lambda: accept(SET, nth(3)),
    an_entry_may_be_pending_without_l2=lambda: accept(SET, nth(4)),
    l2_needs_no_vmxon=lambda: accept(SET, nth(5)),
    the_other_vendors_format_is_taken=lambda: accept(SET, nth(6)),
    any_format_is_taken=lambda: accept(SET, nth(7)),
    a_refusal_is_ebusy=lambda: drift(SET, errno.EBUSY),
    a_refused_state_leaves_flags=lambda: once(SET, _read(FLAGS, 2), refused=True),
    a_refused_state_leaves_an_address=lambda: once(SET, _read(VMXON), refused=True),
)

lies(
    "nested.state-gif",
    svme_is_refused=lambda: refuse("KVM_SET_SREGS", errno.EINVAL),
    svme_clears_the_flag=lambda: _read(FLAGS + 1, 1, nth(1)),
    clearing_the_flag_is_refused=lambda: refuse(SET, errno.EINVAL, nth(1)),
    the_flag_is_always_set=lambda: _restored(after(GET, lambda call: area(call).__setitem__(FLAGS + 1, 1))),
    the_flag_cannot_be_set_again=lambda: once(
        SET, _restored(after(GET, lambda call: area(call).__setitem__(FLAGS + 1, 0)))
    ),
    l2_may_be_at_no_address=lambda: accept(SET),
    a_refused_l2_is_there=lambda: once(SET, _read(FLAGS), refused=True),
    a_refused_l2_has_another_errno=lambda: drift(SET, errno.EFAULT),
    a_new_vm_refuses_the_state=lambda: refuse(SET, errno.EINVAL, nth(5)),
    the_flag_does_not_come_over=lambda: before(SET, flip(FLAGS + 1), nth(5)),
)

OPERATION = "nested.state-vmx-operation"

lies(
    OPERATION,
    vmxon_fails=lambda: after_entry("vmxon", lambda guest: guest.set("values", 1, 15), payload="nested"),
    vmptrld_fails=lambda: after_entry("vmptrld", lambda guest: guest.set("values", 1, 15), payload="nested"),
    the_vmxon_region_is_another=lambda: _read(VMXON + 1, 0x10, nth(1)),
    there_is_a_vmcs_after_vmxon=lambda: _read(VMCS, 1, nth(1)),
    there_is_no_room_for_the_vmcs=lambda: _read(SIZE + 1, 0x10, nth(2)),
    the_vmcs_is_another=lambda: _read(VMCS + 1, 0x10, nth(2)),
    the_header_alone_is_enough=lambda: accept(GET, nth(3)),
    too_small_a_buffer_is_einval_in_vmx_operation=lambda: drift(GET, errno.EINVAL),
    the_size_that_is_wanted_is_that_of_the_header=lambda: on_refusal(GET, flip(SIZE + 1, 0x10)),
    a_new_vm_refuses_the_state=lambda: refuse(SET, errno.EINVAL),
    the_vmcs_does_not_come_over=lambda: before(SET, flip(VMCS + 1, 0x10)),
    the_vmxon_region_does_not_come_over=lambda: _restored(_read(VMXON + 1, 0x10)),
    a_byte_of_the_contents_is_lost=lambda: _restored(_read(CONTENTS + 0x300)),
)

lies(
    "nested.state-moves",
    one_of_l2s_exits_is_missing=lambda: before(RUN, lambda call: setattr(call.argument, "budget", 1)),
    l2_is_not_in_the_state=lambda: _read(FLAGS),
    its_vmcs_is_not_in_the_state=lambda: _read(SIZE + 1, 0x10),
    the_error_is_not_in_the_saved_msrs=lambda: after("KVM_GET_MSRS", change_msr(Msr.XFD_ERR, lambda value: 0)),
    the_new_vm_refuses_l2=lambda: refuse(SET, errno.EINVAL),
    the_new_vm_shows_no_l2=lambda: _restored(_read(FLAGS)),
    the_error_does_not_come_over=lambda: before("KVM_SET_MSRS", change_msr(Msr.XFD_ERR, lambda value: 0)),
    xfd_does_not_come_over=lambda: before("KVM_SET_MSRS", change_msr(Msr.XFD, lambda value: 0)),
    l1_gets_another_exit=lambda: _value(4, 0),
    l2_took_another_exception=lambda: _value(1, 6),
    l2_reads_no_error_after_the_move=lambda: _value(0, 0),
    l1_reads_xfd_as_disarmed=lambda: _value(7, 0),
    l2_does_not_run_on=lambda: _restored(refuse(RUN, errno.EINVAL)),
)
