# SPDX-License-Identifier: Apache-2.0
"""Lies about the flags of memory slots, and the dirty log."""

from __future__ import annotations

import errno

from tests.mutations.lies import Condition, accept, drift, refuse
from tests.mutations.registry import mutation
from vmm._kvm import lib
from vmm.kvm.ioctl import Interposer

DIRTY = "KVM_GET_DIRTY_LOG"


REGION, REGION2 = "KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2"


def _flag(bits: int) -> Condition:
    """Met by a slot that is set with all of these flags."""
    return lambda call: bool(call.argument.memory_size and call.argument.flags & bits == bits)


def _only(flags: int) -> Condition:
    """Met by a slot that is set with these flags and no other."""
    return lambda call: bool(call.argument.memory_size and call.argument.flags == flags)


@mutation("memslot.flags")
def the_proposed_flag_of_non_coherent_dma_is_ignored() -> Interposer:
    return accept(REGION, _flag(1 << 3))


@mutation("memslot.flags")
def the_highest_flag_of_a_slot_is_ignored() -> Interposer:
    return accept(REGION, _flag(1 << 31))


@mutation("memslot.flags")
def an_unknown_flag_is_ignored_beside_the_dirty_log() -> Interposer:
    return accept(REGION, _flag(1 << 17 | lib.KVM_MEM_LOG_DIRTY_PAGES))


@mutation("memslot.flags")
def an_unknown_flag_is_enotsup() -> Interposer:
    return drift(REGION, errno.EOPNOTSUPP, _flag(1 << 12))


@mutation("memslot.flags")
def guest_memfd_is_accepted_by_the_old_call() -> Interposer:
    return accept(REGION, _flag(lib.KVM_MEM_GUEST_MEMFD))


@mutation("memslot.flags")
def a_readonly_slot_is_refused() -> Interposer:
    return refuse(REGION, errno.EINVAL, _flag(lib.KVM_MEM_READONLY))


@mutation("memslot.flags")
def a_refused_slot_is_there() -> Interposer:
    return accept(DIRTY)


@mutation("memslot.flags")
def a_refusal_removes_the_slot() -> Interposer:
    return refuse(DIRTY, errno.ENOENT)


@mutation("memslot.flags2")
def the_new_call_ignores_an_unknown_flag() -> Interposer:
    return accept(REGION2, _flag(1 << 3))


@mutation("memslot.flags2")
def the_new_call_refuses_the_dirty_log() -> Interposer:
    return refuse(REGION2, errno.EINVAL, _flag(lib.KVM_MEM_LOG_DIRTY_PAGES))


@mutation("memslot.flags2")
def an_unknown_flag_of_the_new_call_is_ebadf() -> Interposer:
    return drift(REGION2, errno.EBADF, _flag(1 << 30))


@mutation("memslot.flags2")
def the_new_call_takes_a_flag_of_kvms_own() -> Interposer:
    return accept(REGION2, _flag(1 << 16))


@mutation("memslot.readonly-fixed")
def a_writable_slot_becomes_readonly() -> Interposer:
    return accept(REGION, _only(lib.KVM_MEM_READONLY))


@mutation("memslot.readonly-fixed")
def a_readonly_slot_becomes_writable() -> Interposer:
    return accept(REGION, _only(0))


@mutation("memslot.readonly-fixed")
def the_dirty_log_cannot_be_turned_on_later() -> Interposer:
    return refuse(REGION, errno.EINVAL, _only(lib.KVM_MEM_LOG_DIRTY_PAGES))


@mutation("memslot.readonly-fixed")
def the_dirty_log_stays_on() -> Interposer:
    return accept(DIRTY)


@mutation("memslot.readonly-memfd")
def guest_memfd_may_be_readonly() -> Interposer:
    return accept(REGION2, _flag(lib.KVM_MEM_GUEST_MEMFD | lib.KVM_MEM_READONLY))


@mutation("memslot.readonly-memfd")
def guest_memfd_may_log_dirty_pages() -> Interposer:
    return accept(REGION2, _flag(lib.KVM_MEM_GUEST_MEMFD | lib.KVM_MEM_LOG_DIRTY_PAGES))


@mutation("memslot.readonly-memfd")
def guest_memfd_is_refused_alone() -> Interposer:
    return refuse(REGION2, errno.EINVAL, _only(lib.KVM_MEM_GUEST_MEMFD))


@mutation("memslot.readonly-memfd")
def the_old_call_takes_guest_memfd() -> Interposer:
    return accept(REGION, _flag(lib.KVM_MEM_GUEST_MEMFD))
