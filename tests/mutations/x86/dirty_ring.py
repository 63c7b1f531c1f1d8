# SPDX-License-Identifier: Apache-2.0
"""Lies about dirty rings."""

from __future__ import annotations

import errno

from tests.mutations.dirty import (
    CLEAR,
    ENABLE,
    GET,
    RESET,
    change_entry,
    enables,
    flag_is_lost,
    full_ring,
    newest_entry,
    resets_nothing,
)
from tests.mutations.lies import Condition, accept, answer, drift, nth, refuse, succeed_with
from tests.mutations.registry import lies
from tests.mutations.x86.dirty import halts, loads_are_stores
from vmm._kvm import lib

# The second is arm64's, whose lies about sizes are these too.
_RINGS = (lib.KVM_CAP_DIRTY_LOG_RING, lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL)
_SIZE = 1024
_LARGEST = 1 << 20


lies(
    "dirty.ring-entries",
    an_entry_names_another_slot=lambda: change_entry(newest_entry("slot", 0), _SIZE),
    an_entry_names_another_page=lambda: change_entry(newest_entry("offset", 7), _SIZE),
    a_written_page_makes_no_entry=lambda: change_entry(newest_entry("flags", 0), _SIZE),
    the_reset_counts_one_more=lambda: succeed_with(RESET, lambda call, result: result + 1),
    the_reset_is_refused=lambda: refuse(RESET, errno.EINVAL),
    the_reset_arms_nothing=lambda: resets_nothing(_SIZE),
)

lies(
    "dirty.ring-not-written",
    loads_make_entries=lambda: loads_are_stores(),
    stores_to_a_slot_without_the_flag_make_entries=lambda: flag_is_lost(1),
    a_written_page_makes_no_entry=lambda: change_entry(newest_entry("flags", 0), _SIZE),
    an_entry_names_another_page=lambda: change_entry(newest_entry("offset", 8), _SIZE),
)

lies(
    "dirty.ring-per-vcpu",
    an_entry_names_the_others_page=lambda: change_entry(newest_entry("offset", 7), _SIZE),
    the_second_vcpus_entry_names_the_firsts_page=lambda: change_entry(newest_entry("offset", 2), _SIZE),
    a_written_page_makes_no_entry=lambda: change_entry(newest_entry("flags", 0), _SIZE),
    the_reset_counts_one_ring=lambda: succeed_with(RESET, lambda call, result: result // 2),
    the_reset_arms_nothing=lambda: resets_nothing(_SIZE),
    a_vcpu_leaves_in_another_way=lambda: halts(1),
    the_other_vcpu_leaves_in_another_way=lambda: halts(2),
)

lies(
    "dirty.ring-full",
    a_full_ring_is_no_exit_of_its_own=lambda: full_ring(lib.KVM_EXIT_INTR, 1),
    a_full_ring_stops_only_once=lambda: full_ring(lib.KVM_EXIT_INTR, 2),
    the_reset_counts_one_less=lambda: succeed_with(RESET, lambda call, result: result - 1),
    the_reset_is_refused=lambda: refuse(RESET, errno.EINVAL),
    an_entry_names_another_page=lambda: change_entry(newest_entry("offset", 0), _SIZE),
    a_full_ring_is_empty=lambda: change_entry(newest_entry("flags", 0), _SIZE, 0),
)

lies(
    "dirty.ring-no-bitmap",
    there_is_a_bitmap_beside_rings=lambda: accept(GET),
    the_bitmap_is_enoent=lambda: drift(GET, errno.ENOENT),
    the_bitmap_can_be_cleared=lambda: accept(CLEAR),
    the_bitmap_to_clear_is_enoent=lambda: drift(CLEAR, errno.ENOENT),
)


def _size(size: int) -> Condition:
    return lambda call: any(enables(ring, size)(call) for ring in _RINGS)


lies(
    "dirty.ring-sizes",
    no_ring_is_a_ring=lambda: accept(ENABLE, _size(0)),
    any_size_will_do=lambda: accept(ENABLE, _size(_LARGEST - 4096)),
    half_a_page_will_do=lambda: accept(ENABLE, _size(2048)),
    a_ring_may_be_larger_than_reported=lambda: accept(ENABLE, _size(2 * _LARGEST)),
    no_ring_is_e2big=lambda: drift(ENABLE, errno.E2BIG, _size(0)),
    no_power_of_two_is_e2big=lambda: drift(ENABLE, errno.E2BIG, _size(_LARGEST - 4096)),
    half_a_page_is_e2big=lambda: drift(ENABLE, errno.E2BIG, _size(2048)),
    too_large_a_ring_is_einval=lambda: drift(ENABLE, errno.EINVAL, _size(2 * _LARGEST)),
    the_largest_ring_is_refused=lambda: refuse(ENABLE, errno.EINVAL, _size(_LARGEST)),
    a_ring_may_be_chosen_twice=lambda: accept(ENABLE, _nth_choice(2)),
    a_ring_may_be_chosen_late=lambda: accept(ENABLE, _nth_choice(3)),
    a_second_choice_is_ebusy=lambda: drift(ENABLE, errno.EBUSY, _nth_choice(2)),
    a_late_choice_is_ebusy=lambda: drift(ENABLE, errno.EBUSY, _nth_choice(3)),
    rings_that_there_are_not_can_be_reset=lambda: accept(RESET, nth(1)),
    rings_that_there_are_not_are_enxio=lambda: drift(RESET, errno.ENXIO, nth(1)),
    rings_of_no_vcpu_have_entries=lambda: answer(RESET, 1, nth(2)),
)


def _nth_choice(number: int) -> Condition:
    """Met by the ``number``-th time that the largest ring is chosen."""
    count, wanted = nth(number), _size(_LARGEST)
    return lambda call: wanted(call) and count(call)
