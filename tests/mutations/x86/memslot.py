# SPDX-License-Identifier: Apache-2.0
"""Lies about the flags of memory slots, and the dirty log."""

from __future__ import annotations

import errno

from tests.mutations.lies import accept, answer, drift, refuse
from tests.mutations.registry import lies
from tests.mutations.slots import DIRTY, REGION, REGION2, flag, lost, only
from vmm._kvm import lib

lies(
    "memslot.flags",
    the_proposed_flag_of_non_coherent_dma_is_ignored=lambda: accept(REGION, flag(1 << 3)),
    the_highest_flag_of_a_slot_is_ignored=lambda: accept(REGION, flag(1 << 31)),
    an_unknown_flag_is_ignored_beside_the_dirty_log=lambda: accept(
        REGION, flag(1 << 17 | lib.KVM_MEM_LOG_DIRTY_PAGES)
    ),
    an_unknown_flag_is_enotsup=lambda: drift(REGION, errno.EOPNOTSUPP, flag(1 << 12)),
    guest_memfd_is_accepted_by_the_old_call=lambda: accept(REGION, flag(lib.KVM_MEM_GUEST_MEMFD)),
    a_readonly_slot_is_refused=lambda: refuse(REGION, errno.EINVAL, flag(lib.KVM_MEM_READONLY)),
    a_refused_slot_is_there=lambda: accept(DIRTY),
    a_refusal_removes_the_slot=lambda: lost(flag(1 << 30)),
)

lies(
    "memslot.flags2",
    the_new_call_ignores_an_unknown_flag=lambda: accept(REGION2, flag(1 << 3)),
    the_new_call_refuses_the_dirty_log=lambda: refuse(REGION2, errno.EINVAL, flag(lib.KVM_MEM_LOG_DIRTY_PAGES)),
    the_new_call_refuses_a_readonly_slot=lambda: refuse(REGION2, errno.EINVAL, only(lib.KVM_MEM_READONLY)),
    an_unknown_flag_of_the_new_call_is_ebadf=lambda: drift(REGION2, errno.EBADF, flag(1 << 30)),
    the_new_call_takes_a_flag_of_kvms_own=lambda: accept(REGION2, flag(1 << 16)),
)

lies(
    "memslot.readonly-fixed",
    a_writable_slot_becomes_readonly=lambda: accept(REGION, only(lib.KVM_MEM_READONLY)),
    a_readonly_slot_becomes_writable=lambda: accept(REGION, only(0)),
    the_dirty_log_cannot_be_turned_on_later=lambda: refuse(REGION, errno.EINVAL, only(lib.KVM_MEM_LOG_DIRTY_PAGES)),
    the_dirty_log_turned_on_later_is_not_there=lambda: answer(REGION, 0, only(lib.KVM_MEM_LOG_DIRTY_PAGES)),
    the_dirty_log_stays_on=lambda: accept(DIRTY),
)

lies(
    "memslot.readonly-memfd",
    guest_memfd_may_be_readonly=lambda: accept(REGION2, flag(lib.KVM_MEM_GUEST_MEMFD | lib.KVM_MEM_READONLY)),
    guest_memfd_may_log_dirty_pages=lambda: accept(
        REGION2, flag(lib.KVM_MEM_GUEST_MEMFD | lib.KVM_MEM_LOG_DIRTY_PAGES)
    ),
    guest_memfd_is_refused_alone=lambda: refuse(REGION2, errno.EINVAL, only(lib.KVM_MEM_GUEST_MEMFD)),
    the_old_call_takes_guest_memfd=lambda: accept(REGION, flag(lib.KVM_MEM_GUEST_MEMFD)),
)
