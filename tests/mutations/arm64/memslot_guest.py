# SPDX-License-Identifier: Apache-2.0
"""Lies about what a guest sees of its memslots."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import guest_left, spoiled_exit, values
from tests.mutations.lies import COMPLETE, RUN, Condition, Proceed, Shared, answer, called, given, refuse, toggle
from tests.mutations.registry import lies, mutation
from tests.mutations.slots import REGION, made, removed
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.kvm.memory import PAGE_SIZE

_PLACE, _AWAY = 4 << 30, (4 << 30) + (8 << 20)
_STORE, _LOAD = 0xF9000000, 0xF9400000
_FLIPPED = values(0, lambda old: old ^ 1)


def _loaded(address: int, turn: int = 1) -> Interposer:
    """The guest loads another value at an address, at its ``turn``-th load there."""
    count = 0

    def change(guest: Shared) -> None:
        nonlocal count
        count += 1
        if count == turn:
            _FLIPPED(guest)

    return guest_left("execute", change, when=given(_LOAD, address))


def _spoil(slot: int, page: int, after_exits: int) -> Interposer:
    """A page of a slot's host memory changes when the guest has left so often as MMIO or with its event."""
    memory = left = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal memory, left
        if call.name == REGION and call.argument.slot == slot and call.argument.memory_size:
            memory = int(call.argument.userspace_addr)
        result = proceed()
        if called(call) == RUN:
            left += 1
            if left == after_exits:
                ffi.cast("uint64_t *", memory + page * PAGE_SIZE)[0] ^= 1
        return result

    return interposer


def _stays(when: Condition) -> Interposer:
    """KVM_SET_USER_MEMORY_REGION does nothing."""
    return answer(REGION, 0, when)


lies(
    "memslot.readonly-guest",
    a_store_to_a_readonly_slot_is_made=lambda: _spoil(1, 0, 1),
    a_store_to_a_page_that_was_loaded_is_made=lambda: _spoil(1, 0, 4),
    a_store_leaves_with_another_value=lambda: spoiled_exit(_data, 1),
    a_store_leaves_with_another_address=lambda: spoiled_exit(toggle("run.mmio.phys_addr", 8), 1),
    a_store_to_a_page_that_was_loaded_leaves_as_a_load=lambda: spoiled_exit(toggle("run.mmio.is_write", 1), 4),
    a_store_is_not_over=lambda: answer(COMPLETE, -errno.EINTR, lambda call: True),
    the_guest_loads_something_else=lambda: _loaded(_PLACE, 1),
    the_guest_does_not_see_the_vmms_store=lambda: _loaded(_PLACE, 2),
    the_guest_loads_something_else_from_the_other_page=lambda: _loaded(_PLACE + PAGE_SIZE),
    a_readonly_slot_is_writable=lambda: _writable(),
)


def _data(call: Call) -> None:
    call.argument.run.mmio.data[0] ^= 1


def _writable() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name == REGION:
            call.argument.flags &= ~lib.KVM_MEM_READONLY
        return proceed()

    return interposer


lies(
    "memslot.removed",
    the_guest_loads_something_else=lambda: _loaded(_PLACE, 1),
    a_store_goes_elsewhere=lambda: _spoil(1, 1, 2),
    a_slot_is_not_removed=lambda: _stays(removed(1)),
    a_slot_cannot_be_removed=lambda: refuse(REGION, errno.EBUSY, removed(1)),
    a_load_leaves_with_another_size=lambda: spoiled_exit(toggle("run.mmio.len", 12), 3),
    a_store_leaves_with_another_value=lambda: spoiled_exit(_data, 5),
    a_store_to_a_removed_slot_is_made=lambda: _spoil(1, 1, 5),
    the_answer_does_not_reach_the_guest=lambda: _loaded(_PLACE, 3),
    a_slot_cannot_be_made_again=lambda: refuse(REGION, errno.EINVAL, made(lambda new: new.slot == 1, 2)),
    a_slot_that_is_made_again_is_not_there=lambda: _stays(made(lambda new: new.slot == 1, 2)),
    the_guest_loads_something_else_afterwards=lambda: _loaded(_PLACE, 4),
    the_guest_loads_what_was_there_before=lambda: _loaded(_PLACE + PAGE_SIZE),
)

lies(
    "memslot.moved",
    the_guest_loads_something_else=lambda: _loaded(_PLACE, 1),
    a_slot_cannot_be_moved=lambda: refuse(REGION, errno.EINVAL, made(lambda new: new.guest_phys_addr == _AWAY)),
    a_slot_does_not_move=lambda: _stays(made(lambda new: new.guest_phys_addr == _AWAY)),
    the_guest_loads_something_else_at_the_new_place=lambda: _loaded(_AWAY, 1),
    what_was_stored_is_lost=lambda: _loaded(_AWAY + PAGE_SIZE, 1),
    the_answer_does_not_reach_the_guest=lambda: _loaded(_PLACE, 3),
    a_store_leaves_with_another_address=lambda: spoiled_exit(toggle("run.mmio.phys_addr", 8), 7),
    a_store_to_the_new_place_is_lost=lambda: _spoil(1, 0, 9),
    a_slot_does_not_move_by_one_page=lambda: _stays(made(lambda new: new.guest_phys_addr == _AWAY + PAGE_SIZE)),
    the_guest_loads_something_else_one_page_further=lambda: _loaded(_AWAY + PAGE_SIZE, 2),
    the_answer_for_the_page_that_was_left_is_lost=lambda: _loaded(_AWAY, 3),
)


@mutation("memslot.moved")
def a_slot_is_at_both_places() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == REGION and call.argument.guest_phys_addr == _AWAY and result == 0:
            old = ffi.new("struct kvm_userspace_memory_region *", call.argument[0])
            old.slot, old.guest_phys_addr = 2, _PLACE
            lib.vmm_ioctl(call.fd, lib.KVM_SET_USER_MEMORY_REGION, old)
        return result

    return interposer
