# SPDX-License-Identifier: Apache-2.0
"""Lies about where memslots may lie, and how they are removed and numbered."""

from __future__ import annotations

import errno

from tests.mutations.lies import accept, answer, drift, refuse
from tests.mutations.registry import lies
from tests.mutations.slots import DIRTY, REGION, lost, made, of_slot, removed
from vmm.kvm.memory import PAGE_SIZE

_SIZE = 4 * PAGE_SIZE
_PLACE = 16 * _SIZE

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
    the_first_number_that_is_too_high_is_taken=lambda: accept(
        REGION, made(lambda new: 0x7F00 <= new.slot <= 0xFFFF, 2)
    ),
    another_address_space_is_taken=lambda: accept(REGION, made(lambda new: new.slot >> 16 == 0x7FFF)),
    the_next_address_space_is_enoent=lambda: drift(REGION, errno.ENOENT, made(lambda new: 0 < new.slot >> 16 < 9)),
    another_address_space_has_a_log=lambda: accept(DIRTY, of_slot(0xFFFF << 16)),
    the_log_of_another_address_space_is_enoent=lambda: drift(DIRTY, errno.ENOENT, of_slot(0x7FFF << 16)),
)
