# SPDX-License-Identifier: Apache-2.0
"""Lies about dirty rings, and the bitmaps beside them."""

from __future__ import annotations

import errno

from tests.mutations.arm64.dirty import loads_are_stores
from tests.mutations.dirty import ENABLE, GET, change_entry, enables, flag_is_lost, has, newest_entry
from tests.mutations.lies import Condition, accept, drift, nth, refuse
from tests.mutations.registry import lies, repeated
from vmm._kvm import lib

_BITMAP = lib.KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
_SIZE = 1024

lies(
    "dirty.ring-not-written",
    loads_make_entries=lambda: loads_are_stores(),
    stores_to_a_slot_without_the_flag_make_entries=lambda: flag_is_lost(1),
    a_written_page_makes_no_entry=lambda: change_entry(newest_entry("flags", 0), _SIZE),
    an_entry_names_another_page=lambda: change_entry(newest_entry("offset", 8), _SIZE),
)


def _nth_bitmap(number: int) -> Condition:
    count, wanted = nth(number), enables(_BITMAP)
    return lambda call: wanted(call) and count(call)


lies(
    "dirty.ring-with-bitmap",
    there_are_bitmaps_beside_no_rings=lambda: accept(ENABLE, _nth_bitmap(1)),
    bitmaps_beside_no_rings_are_eperm=lambda: drift(ENABLE, errno.EPERM, _nth_bitmap(1)),
    bitmaps_may_be_asked_for_after_a_memslot=lambda: accept(ENABLE, _nth_bitmap(2)),
    bitmaps_after_a_memslot_are_ebusy=lambda: drift(ENABLE, errno.EBUSY, _nth_bitmap(2)),
    flags_are_ignored=lambda: accept(ENABLE, _nth_bitmap(3)),
    there_are_no_bitmaps_beside_rings=lambda: refuse(ENABLE, errno.EINVAL, _nth_bitmap(4)),
    the_bitmap_has_a_vcpus_stores=lambda: has(21),
    the_bitmap_cannot_be_read=lambda: refuse(GET, errno.ENXIO),
    a_written_page_makes_no_entry=lambda: change_entry(newest_entry("flags", 0), _SIZE),
    an_entry_names_another_page=lambda: change_entry(newest_entry("offset", 8), _SIZE),
)

for _lie in repeated(
    "dirty_ring", "dirty.ring-entries", "dirty.ring-full", "dirty.ring-no-bitmap", "dirty.ring-sizes"
):
    lies(_lie.clause, **{_lie.name: lambda made=_lie.factory: made()})
