# SPDX-License-Identifier: Apache-2.0
"""Lies about where memslots may lie: those about x86's, and the guest's address space."""

from __future__ import annotations

import errno

from tests.mutations.lies import accept, drift, refuse
from tests.mutations.registry import lies, repeated
from tests.mutations.slots import REGION, lost, made
from vmm.kvm.memory import PAGE_SIZE

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

for _lie in repeated("memslot_place", "memslot.overlap", "memslot.misplaced", "memslot.delete", "memslot.numbers"):
    lies(_lie.clause, **{_lie.name: lambda made=_lie.factory: made()})
