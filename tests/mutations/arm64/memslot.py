# SPDX-License-Identifier: Apache-2.0
"""Lies about memslots as they are set, refused and removed."""

from __future__ import annotations

import errno

from tests.mutations.lies import accept, answer, drift, refuse
from tests.mutations.registry import lies
from tests.mutations.slots import DIRTY, REGION, REGION2, flag, lost, made, of_slot, only, removed
from vmm._kvm import lib
from vmm.kvm.memory import PAGE_SIZE

_LOG, _READONLY, _MEMFD = lib.KVM_MEM_LOG_DIRTY_PAGES, lib.KVM_MEM_READONLY, lib.KVM_MEM_GUEST_MEMFD
_SIZE = 4 * PAGE_SIZE
_PLACE = 16 * _SIZE

lies(
    "memslot.flags",
    an_unknown_flag_is_ignored=lambda: accept(REGION, flag(1 << 3)),
    the_highest_flag_of_a_slot_is_ignored=lambda: accept(REGION, flag(1 << 31)),
    an_unknown_flag_is_ignored_beside_the_dirty_log=lambda: accept(REGION, flag(1 << 17 | _LOG)),
    an_unknown_flag_is_enotsup=lambda: drift(REGION, errno.EOPNOTSUPP, flag(1 << 12)),
    guest_memfd_is_accepted_by_the_old_call=lambda: accept(REGION, flag(_MEMFD)),
    a_readonly_slot_is_refused=lambda: refuse(REGION, errno.EINVAL, flag(_READONLY)),
    a_refused_slot_is_there=lambda: accept(DIRTY),
    a_refusal_removes_the_slot=lambda: lost(flag(1 << 30)),
)

lies(
    "memslot.flags2",
    the_new_call_ignores_an_unknown_flag=lambda: accept(REGION2, flag(1 << 3)),
    the_new_call_refuses_the_dirty_log=lambda: refuse(REGION2, errno.EINVAL, flag(_LOG)),
    the_new_call_refuses_a_readonly_slot=lambda: refuse(REGION2, errno.EINVAL, only(_READONLY)),
    an_unknown_flag_of_the_new_call_is_ebadf=lambda: drift(REGION2, errno.EBADF, flag(1 << 30)),
    the_new_call_takes_a_flag_of_kvms_own=lambda: accept(REGION2, flag(1 << 16)),
)

lies(
    "memslot.readonly-fixed",
    a_writable_slot_becomes_readonly=lambda: accept(REGION, only(_READONLY)),
    a_readonly_slot_becomes_writable=lambda: accept(REGION, only(0)),
    the_dirty_log_cannot_be_turned_on_later=lambda: refuse(REGION, errno.EINVAL, only(_LOG)),
    the_dirty_log_turned_on_later_is_not_there=lambda: answer(REGION, 0, only(_LOG)),
    the_dirty_log_stays_on=lambda: accept(DIRTY),
)

lies(
    "memslot.readonly-memfd",
    guest_memfd_may_be_readonly=lambda: accept(REGION2, flag(_MEMFD | _READONLY)),
    guest_memfd_may_log_dirty_pages=lambda: accept(REGION2, flag(_MEMFD | _LOG)),
    guest_memfd_is_refused_alone=lambda: refuse(REGION2, errno.EINVAL, only(_MEMFD)),
    the_old_call_takes_guest_memfd=lambda: accept(REGION, flag(_MEMFD)),
)

lies(
    "memslot.overlap",
    a_slot_in_the_place_of_another_is_taken=lambda: accept(
        REGION, made(lambda new: (new.slot, new.guest_phys_addr) == (1, _PLACE))
    ),
    a_slot_that_has_the_first_page_of_another_is_einval=lambda: drift(
        REGION, errno.EINVAL, made(lambda new: new.guest_phys_addr == _PLACE - _SIZE + PAGE_SIZE)
    ),
    a_slot_that_has_the_last_page_of_another_is_taken=lambda: accept(
        REGION, made(lambda new: new.guest_phys_addr == _PLACE + _SIZE - PAGE_SIZE)
    ),
    a_slot_around_another_is_taken=lambda: accept(REGION, made(lambda new: new.memory_size == 2 * _SIZE)),
    a_slot_that_was_refused_is_there=lambda: accept(DIRTY, of_slot(1)),
    a_slot_right_below_is_refused=lambda: refuse(
        REGION, errno.EEXIST, made(lambda new: new.guest_phys_addr == _PLACE - _SIZE)
    ),
    a_slot_right_above_is_refused=lambda: refuse(
        REGION, errno.EEXIST, made(lambda new: (new.slot, new.guest_phys_addr) == (2, _PLACE + _SIZE))
    ),
    a_refusal_turns_the_other_slots_log_off=lambda: refuse(DIRTY, errno.ENOENT, of_slot(0)),
    a_slot_is_moved_onto_another=lambda: accept(
        REGION, made(lambda new: (new.slot, new.guest_phys_addr) == (2, _PLACE))
    ),
    a_slot_whose_move_is_refused_is_gone=lambda: lost(
        made(lambda new: (new.slot, new.guest_phys_addr) == (2, _PLACE))
    ),
    a_slot_is_in_its_own_way=lambda: refuse(
        REGION, errno.EEXIST, made(lambda new: new.guest_phys_addr == _PLACE + _SIZE + PAGE_SIZE)
    ),
)

lies(
    "memslot.misplaced",
    a_size_is_rounded_down=lambda: accept(REGION, made(lambda new: new.memory_size % PAGE_SIZE == 512)),
    a_guest_physical_address_is_rounded_down=lambda: accept(
        REGION, made(lambda new: new.guest_phys_addr % PAGE_SIZE == PAGE_SIZE // 2)
    ),
    host_memory_may_begin_within_a_page=lambda: accept(REGION, made(lambda new: new.userspace_addr % PAGE_SIZE == 1)),
    host_memory_within_a_page_is_efault=lambda: drift(
        REGION, errno.EFAULT, made(lambda new: new.userspace_addr % PAGE_SIZE == 512)
    ),
    a_slot_may_wrap=lambda: accept(REGION, made(lambda new: new.guest_phys_addr == (1 << 64) - PAGE_SIZE)),
    a_misplaced_slot_is_there=lambda: accept(DIRTY, of_slot(0, 1)),
    a_slot_in_use_grows=lambda: accept(REGION, made(lambda new: new.memory_size == 2 * _SIZE)),
    a_slot_in_use_shrinks=lambda: accept(REGION, made(lambda new: new.memory_size == PAGE_SIZE)),
    a_slot_in_use_gets_other_host_memory=lambda: accept(
        REGION, made(lambda new: (new.memory_size, new.guest_phys_addr) == (_SIZE, _PLACE), 2)
    ),
    a_refusal_removes_the_slot=lambda: lost(made(lambda new: new.memory_size == 2 * _SIZE)),
    a_slot_cannot_be_set_as_it_is=lambda: refuse(
        REGION, errno.EEXIST, made(lambda new: (new.memory_size, new.guest_phys_addr) == (_SIZE, _PLACE), 3)
    ),
)

lies(
    "memslot.delete",
    what_was_never_there_is_removed=lambda: accept(REGION, removed(0, 1)),
    a_slot_of_another_number_is_removed=lambda: accept(REGION, removed(1)),
    removing_another_number_is_enoent=lambda: drift(REGION, errno.ENOENT, removed(1)),
    the_refusals_turn_the_log_off=lambda: refuse(DIRTY, errno.ENOENT, of_slot(0, 1)),
    a_slot_cannot_be_removed_by_another_address=lambda: refuse(REGION, errno.EINVAL, removed(0, 2)),
    a_removed_slot_keeps_its_log=lambda: accept(DIRTY, of_slot(0, 2)),
    a_slot_is_removed_twice=lambda: accept(REGION, removed(0, 3)),
    a_removed_slot_keeps_its_pages=lambda: answer(REGION, 0, removed(0, 2)),
    a_removed_slots_number_stays_taken=lambda: refuse(
        REGION, errno.EEXIST, made(lambda new: new.guest_phys_addr == 2 * _PLACE)
    ),
    a_new_slot_has_no_log=lambda: refuse(DIRTY, errno.ENOENT, of_slot(0, 3)),
)

lies(
    "memslot.numbers",
    the_highest_slot_is_refused=lambda: refuse(REGION, errno.EINVAL, made(lambda new: new.slot > 1)),
    the_highest_slot_has_no_log=lambda: refuse(DIRTY, errno.ENOENT, lambda call: call.argument.slot > 1),
    slot_0_is_refused=lambda: refuse(REGION, errno.EINVAL, made(lambda new: new.slot == 0)),
    a_number_that_is_too_high_is_cut_off=lambda: accept(REGION, made(lambda new: new.slot == 0xFFFF)),
    the_first_number_that_is_too_high_is_taken=lambda: accept(REGION, made(lambda new: new.slot == 0x7FFF)),
    another_address_space_is_taken=lambda: accept(REGION, made(lambda new: new.slot >> 16 == 0x7FFF)),
    the_next_address_space_is_enoent=lambda: drift(REGION, errno.ENOENT, made(lambda new: 0 < new.slot >> 16 < 9)),
    another_address_space_has_a_log=lambda: accept(DIRTY, of_slot(0xFFFF << 16)),
    the_log_of_another_address_space_is_enoent=lambda: drift(DIRTY, errno.ENOENT, of_slot(0x7FFF << 16)),
)

lies(
    "memslot.beyond-ipa",
    a_slot_behind_the_address_space_is_taken=lambda: accept(REGION, made(lambda new: new.guest_phys_addr >> 32 == 1)),
    a_slot_behind_the_largest_address_space_is_einval=lambda: drift(
        REGION, errno.EINVAL, made(lambda new: new.guest_phys_addr >> 40 > 0)
    ),
    a_slot_may_have_a_page_behind_the_address_space=lambda: accept(
        REGION, made(lambda new: new.guest_phys_addr == (1 << 32) - PAGE_SIZE, 1)
    ),
    a_slot_at_the_end_is_refused=lambda: refuse(
        REGION, errno.EFAULT, made(lambda new: new.guest_phys_addr == (1 << 40) - 2 * PAGE_SIZE)
    ),
    a_slot_is_moved_behind_the_end=lambda: accept(
        REGION, made(lambda new: new.guest_phys_addr == (1 << 32) - PAGE_SIZE, 2)
    ),
    a_slot_whose_move_is_refused_is_gone=lambda: lost(made(lambda new: new.guest_phys_addr == (1 << 32) - PAGE_SIZE)),
)
