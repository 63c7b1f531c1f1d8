# SPDX-License-Identifier: Apache-2.0
"""Lies about saving and restoring: orders that matter, state that is lost, lists that are not closed."""

from __future__ import annotations

import errno
from typing import Any

from tests.mutations.lies import (
    COMPLETE,
    RUN,
    Condition,
    Proceed,
    accept,
    after,
    answer,
    assign,
    before,
    called,
    drift,
    nth,
    once,
    refuse,
    succeed_with,
)
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import (
    ST7,
    XMM3,
    area,
    bits_of,
    flip,
    lists,
    msr_values,
    of_msr,
    place,
    set_msr_now,
    struct_now,
    top_byte,
    xsave_lie,
)
from tests.mutations.x86.lies import GP, faults, host_reads, in_cet_guest, not_restored
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr import UNKNOWN_MSR
from vmm.x86.msr_names import Msr
from vmm.x86.xfeature import XFeature

SET_XSAVE, SET_SREGS = "KVM_SET_XSAVE", "KVM_SET_SREGS"
SET_EVENTS = "KVM_SET_VCPU_EVENTS"
GET_MSRS, SET_MSRS, LIST, GET_REGS = "KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_GET_MSR_INDEX_LIST", "KVM_GET_REGS"
VCPUS = "KVM_CREATE_VCPU"


lies(
    "mig.cpuid-first",
    reading_an_msr_before_cpuid_is_einval=lambda: refuse(GET_MSRS, errno.EINVAL, of_msr(Msr.STAR)),
)


@mutation("mig.idempotent")
def xmm3_is_never_saved() -> Interposer:
    def change(call: Call) -> None:
        area(call)[XMM3 : XMM3 + 16] = bytes(16)

    return xsave_lie(change)


lies(
    "mig.idempotent",
    a_byte_of_the_highest_component_is_lost_in_restoring=lambda: before(SET_XSAVE, flip(top_byte()), nth(7)),
    a_segment_limit_is_lost_in_restoring=lambda: before(SET_SREGS, assign("fs.limit", 0xFFFF), nth(5)),
)


@mutation("mig.idempotent")
def a_pending_exception_is_lost_in_restoring() -> Interposer:
    second = nth(2)
    return before(
        SET_EVENTS,
        assign("exception.injected", 0),
        lambda call: bool(call.argument.exception.injected) and second(call),
    )


lies(
    "mig.idempotent",
    an_exception_is_lost_whenever_it_is_written=lambda: before(SET_EVENTS, assign("exception.injected", 0)),
    its_vector_is_lost_whenever_it_is_written=lambda: before(SET_EVENTS, assign("exception.nr", 0)),
)


@mutation("mig.idempotent")
def a_restored_exception_is_another() -> Interposer:
    def change(call: Call) -> None:
        struct_now(call.fd, lib.KVM_GET_VCPU_EVENTS, lib.KVM_SET_VCPU_EVENTS, "kvm_vcpu_events", _divide_error)

    return once(SET_EVENTS, before(RUN, change), when=lambda c: bool(c.argument.exception.injected))


def _divide_error(events: Any) -> None:
    events.exception.nr = 0


@mutation("mig.idempotent")
def the_last_copy_faults() -> Interposer:
    def unmapped(registers: Any) -> None:
        registers.rip = 1 << 32

    # 18 ticks, then the run to the end.
    return before(
        RUN, lambda call: struct_now(call.fd, lib.KVM_GET_REGS, lib.KVM_SET_REGS, "kvm_regs", unmapped), nth(19)
    )


lies(
    "mig.idempotent",
    ia32_pat_cannot_be_restored=lambda: once(
        GET_MSRS, answer(SET_MSRS, 0, lambda call: Msr.PAT in dict(msr_values(call)))
    ),
)


def _a_halt_is(reason: int) -> Interposer:
    def change(call: Call) -> None:
        if call.argument.run.exit_reason == lib.KVM_EXIT_HLT:
            call.argument.run.exit_reason = reason

    return after(RUN, change)


lies(
    "mig.idempotent",
    a_halt_is_an_internal_error=lambda: _a_halt_is(lib.KVM_EXIT_INTERNAL_ERROR),
    a_halt_is_a_shutdown=lambda: _a_halt_is(lib.KVM_EXIT_SHUTDOWN),
)


def _back(fd: int) -> None:
    """Move RIP back to the OUT instruction, which is one byte long."""

    def change(registers: Any) -> None:
        registers.rip -= 1

    struct_now(fd, lib.KVM_GET_REGS, lib.KVM_SET_REGS, "kvm_regs", change)


@mutation("mig.io-completion")
def completion_leaves_rip_at_the_instruction() -> Interposer:
    def change(call: Call) -> None:
        call.argument.rip -= 1

    return once_completed(after(GET_REGS, change))


def once_completed(lie: Interposer) -> Interposer:
    """``lie`` begins behind the first completion (which ends with EINTR)."""
    return once(COMPLETE, lie, refused=True)


lies("mig.io-completion", the_write_happens_twice=lambda: once_completed(before(RUN, lambda call: _back(call.fd))))


@mutation("mig.io-completion")
def the_first_write_is_swallowed() -> Interposer:
    first = nth(1)

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) == RUN and first(call):
            proceed()
        return proceed()

    return interposer


lies("mig.fewer-xfeatures", a_byte_of_xmm3_is_lost_on_the_way=lambda: before(SET_XSAVE, flip(XMM3 + 11)))

lies(
    "mig.more-features-rejected",
    an_unknown_component_is_dropped=lambda: accept(SET_XSAVE, lambda call: bool(bits_of(call) >> 41 & 1)),
    tile_data_is_dropped_without_permission=lambda: accept(
        SET_XSAVE, lambda call: bool(bits_of(call) >> XFeature.XTILEDATA & 1)
    ),
    a_component_too_many_is_eperm=lambda: drift(SET_XSAVE, errno.EPERM),
)


@mutation("mig.more-features-rejected")
def a_refused_state_is_taken_in_part() -> Interposer:
    offset = place(XFeature.SSE, 40)
    return once(SET_XSAVE, xsave_lie(flip(offset)), refused=True)


lies(
    "mig.msr-list-closed",
    a_listed_msr_cannot_be_read=lambda: answer(GET_MSRS, 0, of_msr(Msr.LSTAR)),
    a_listed_msr_cannot_be_written=lambda: answer(SET_MSRS, 0, of_msr(Msr.KERNEL_GS_BASE)),
)


@mutation("mig.msr-list-closed")
def a_listed_msr_cannot_be_written_to_a_fresh_vcpu() -> Interposer:
    vcpus: list[int] = []

    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name == SET_MSRS and vcpus.index(call.fd) and of_msr(Msr.PAT)(call):
            return 0
        result = proceed()
        if call.name == VCPUS:
            vcpus.append(result)
        return result

    return interposer


lies("mig.msr-list-closed", what_is_written_to_a_listed_msr_is_dropped=lambda: answer(SET_MSRS, 1))


@mutation("mig.msr-list-closed")
def the_list_names_an_unknown_msr() -> Interposer:
    def change(call: Call) -> None:
        call.argument.indices[len(lists(call)) - 1] = UNKNOWN_MSR

    return after(LIST, change)


lies("mig.msr-list-closed", the_list_is_empty=lambda: after(LIST, assign("nmsrs", 0)))


def _batch(number: int) -> Condition:
    return lambda call: bool(call.argument.nmsrs == number)


lies(
    "mig.msr-batch-partial",
    reading_goes_on_behind_an_unknown_msr=lambda: answer(GET_MSRS, 3, _batch(3)),
    a_batch_with_an_unknown_msr_is_refused_as_a_whole=lambda: refuse(GET_MSRS, errno.EINVAL, _batch(3)),
    the_unknown_msr_is_counted_as_set=lambda: succeed_with(SET_MSRS, lambda call, done: done + 1, _batch(3)),
    setting_goes_on_behind_an_unknown_msr=lambda: after(
        SET_MSRS, lambda call: set_msr_now(call.fd, *msr_values(call)[2]), _batch(3)
    ),
    what_was_set_before_an_unknown_msr_is_undone=lambda: after(
        SET_MSRS, lambda call: set_msr_now(call.fd, Msr.PAT, 0x0007040600070406), _batch(3)
    ),
    reads_beyond_255_are_dropped=lambda: accept(GET_MSRS, _batch(256)),
    too_many_writes_are_einval=lambda: drift(SET_MSRS, errno.EINVAL, _batch(256)),
    the_last_of_255_reads_is_missing=lambda: succeed_with(GET_MSRS, lambda call, done: done - 1, _batch(255)),
)

lies(
    "mig.python-diff",
    a_changed_byte_is_not_taken=lambda: answer(SET_XSAVE, 0, nth(2)),
    a_neighbouring_byte_changes_along=lambda: once(SET_XSAVE, before(SET_XSAVE, flip(XMM3))),
    the_changed_byte_loses_another_bit=lambda: once(SET_XSAVE, once(SET_XSAVE, xsave_lie(flip(top_byte())))),
    a_byte_of_st7_changes_along=lambda: once(SET_XSAVE, once(SET_XSAVE, xsave_lie(flip(ST7)))),
)

lies(
    "mig.xss-roundtrip",
    ia32_xss_is_not_saved=lambda: host_reads(Msr.XSS, lambda value: 0),
    ia32_xss_does_not_come_over=lambda: not_restored(Msr.XSS),
    xrstors_works_without_ia32_xss=lambda: in_cet_guest("xrstors", faults(0)),
    xrstors_faults_in_the_copy=lambda: in_cet_guest("xrstors", faults(1, GP)),
)
