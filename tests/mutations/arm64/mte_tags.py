# SPDX-License-Identifier: Apache-2.0
"""Lies about the tags of a guest's memory."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.arm64.lies import executed, forget, guest_left, values
from tests.mutations.arm64.mte import COPY
from tests.mutations.lies import (
    Condition,
    Proceed,
    Shared,
    accept,
    after,
    answer,
    before,
    drift,
    nth,
    refuse,
    succeed_with,
)
from tests.mutations.registry import lies
from tests.mutations.slots import REGION
from vmm._kvm import ffi
from vmm.arm64.guest import MEMORY_SIZE
from vmm.arm64.registers import SYSTEM
from vmm.conformance.arm64.mte import LDG, LDR, PAGE, STG
from vmm.kvm.ioctl import Call, Interposer
from vmm.kvm.memory import PAGE_SIZE

_READ, _WRITE = 1, 0
_LAST = MEMORY_SIZE - PAGE_SIZE
_GRANULES = PAGE_SIZE // 16


def _copies(
    flags: int | None = None, *, at: int | None = None, length: int | None = None, turn: int = 0
) -> Condition:
    """Met by copies in a direction, of a place, of a length; each time or the ``turn``-th."""
    which = nth(turn) if turn else lambda call: True

    def condition(call: Call) -> bool:
        asked = call.argument
        same = flags in (None, asked.flags) and at in (None, asked.guest_ipa) and length in (None, asked.length)
        return same and which(call)

    return condition


def _flip(granule: int) -> Callable[[Call], None]:
    """A change of one tag of those that were read."""

    def change(call: Call) -> None:
        ffi.cast("uint8_t *", call.argument.addr)[granule] ^= 1

    return change


def _fault(esr: int) -> Callable[[Shared], None]:
    def change(guest: Shared) -> None:
        guest.set("esr", esr)
        guest.set("values", 1, 15)

    return change


lies(
    "mte.copy-tags",
    a_page_that_nobody_tagged_has_a_tag=lambda: after(COPY, _flip(9), _copies(_READ, turn=1)),
    reading_tags_returns_how_many=lambda: succeed_with(
        COPY, lambda call, result: result // 16, _copies(_READ, turn=1)
    ),
    writing_tags_is_refused=lambda: refuse(COPY, errno.EINVAL, _copies(_WRITE)),
    writing_tags_returns_0=lambda: answer(COPY, 0, _copies(_WRITE)),
    tags_that_are_written_are_lost=lambda: answer(COPY, PAGE_SIZE, _copies(_WRITE)),
    the_guest_loads_another_tag=lambda: executed(LDG, values(0, lambda old: old ^ 1 << 56)),
    the_last_granules_tag_is_another=lambda: guest_left(
        "execute",
        values(0, lambda old: old ^ 1 << 56),
        when=lambda guest: guest.get("params", 1) == PAGE + PAGE_SIZE - 16,
    ),
    the_guest_cannot_store_tags=lambda: executed(STG, _fault(0x92000010)),
    a_tag_that_the_guest_stored_is_lost=lambda: after(COPY, _flip(17), _copies(_READ, turn=2)),
    the_page_behind_has_a_tag=lambda: after(COPY, _flip(0), _copies(_READ, at=PAGE + PAGE_SIZE)),
    two_pages_are_one=lambda: succeed_with(
        COPY, lambda call, result: PAGE_SIZE, _copies(_READ, length=2 * PAGE_SIZE)
    ),
    the_second_page_has_another_tag=lambda: after(COPY, _flip(_GRANULES), _copies(_READ, length=2 * PAGE_SIZE)),
    no_length_is_a_page=lambda: answer(COPY, PAGE_SIZE, _copies(_READ, length=0)),
)


def _memory_changes() -> Interposer:
    """Tags that are written change a byte of the page."""
    memory = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal memory
        if call.name == REGION and call.argument.memory_size:
            memory = int(call.argument.userspace_addr)
        result = proceed()
        if call.name == COPY and call.argument.flags == _WRITE:
            ffi.cast("uint8_t *", memory + PAGE)[77] ^= 1
        return result

    return interposer


lies(
    "mte.copy-keeps-data",
    tags_go_with_the_vmms_stores=lambda: after(COPY, _flip(3), _copies(_READ, turn=1)),
    tags_go_with_the_guests_loads=lambda: after(COPY, _flip(4), _copies(_READ, turn=2)),
    the_guest_loads_something_else=lambda: executed(LDR, values(0, lambda old: old ^ 1)),
    writing_tags_changes_memory=lambda: _memory_changes(),
)

lies(
    "mte.copy-refusals",
    a_copy_may_begin_within_a_page=lambda: accept(COPY, lambda call: call.argument.guest_ipa % PAGE_SIZE == 16),
    a_copy_within_a_page_is_efault=lambda: drift(
        COPY, errno.EFAULT, lambda call: call.argument.guest_ipa % PAGE_SIZE == 1
    ),
    a_copy_may_end_within_a_page=lambda: accept(
        COPY, lambda call: call.argument.length % PAGE_SIZE == PAGE_SIZE // 2
    ),
    an_unknown_flag_is_ignored=lambda: accept(COPY, lambda call: call.argument.flags >> 1 & 1),
    the_highest_flag_is_ignored=lambda: accept(COPY, lambda call: call.argument.flags >> 63),
    the_first_reserved_word_is_ignored=lambda: accept(COPY, lambda call: call.argument.reserved[0]),
    the_second_reserved_word_is_e2big=lambda: drift(COPY, errno.E2BIG, lambda call: call.argument.reserved[1]),
    a_refused_copy_writes_the_buffer=lambda: before(COPY, _flip(0), _copies(_READ, length=PAGE_SIZE + 1)),
    a_refused_copy_writes_the_tags=lambda: after(COPY, _flip(0), _copies(_READ, length=PAGE_SIZE)),
    a_vm_without_tags_can_be_read=lambda: accept(COPY, _copies(_READ, length=PAGE_SIZE, turn=7)),
    a_vm_without_tags_can_be_written=lambda: accept(COPY, _copies(_WRITE, length=PAGE_SIZE, at=PAGE, turn=4)),
)

lies(
    "mte.copy-partial",
    there_are_tags_where_there_is_no_memory=lambda: accept(COPY, _copies(_READ, at=MEMORY_SIZE)),
    no_memory_is_einval=lambda: drift(COPY, errno.EINVAL, _copies(_WRITE, at=MEMORY_SIZE)),
    a_bad_address_of_tags_is_ignored=lambda: accept(
        COPY, lambda call: int(ffi.cast("uintptr_t", call.argument.addr)) == 0x10
    ),
    reading_beyond_the_end_is_refused=lambda: refuse(
        COPY, errno.EFAULT, _copies(_READ, at=_LAST, length=2 * PAGE_SIZE)
    ),
    reading_beyond_the_end_returns_all=lambda: succeed_with(
        COPY, lambda call, result: call.argument.length, _copies(_READ, at=_LAST, length=2 * PAGE_SIZE)
    ),
    reading_beyond_the_end_writes_all=lambda: after(
        COPY, _flip(_GRANULES), _copies(_READ, at=_LAST, length=2 * PAGE_SIZE)
    ),
    writing_beyond_the_end_is_refused=lambda: refuse(
        COPY, errno.EFAULT, _copies(_WRITE, at=_LAST, length=2 * PAGE_SIZE)
    ),
    writing_beyond_the_end_does_nothing=lambda: answer(
        COPY, PAGE_SIZE, _copies(_WRITE, at=_LAST, length=2 * PAGE_SIZE)
    ),
    a_buffer_that_is_too_small_is_refused=lambda: refuse(COPY, errno.EFAULT, _copies(_READ, at=_LAST - PAGE_SIZE)),
    a_buffer_that_is_too_small_is_filled_wrongly=lambda: after(COPY, _flip(5), _copies(_READ, at=_LAST - PAGE_SIZE)),
    a_buffer_that_is_too_small_writes_nothing=lambda: answer(
        COPY, PAGE_SIZE, _copies(_WRITE, at=PAGE, length=2 * PAGE_SIZE)
    ),
    writing_from_too_small_a_buffer_returns_all=lambda: succeed_with(
        COPY, lambda call, result: call.argument.length, _copies(_WRITE, at=PAGE, length=2 * PAGE_SIZE)
    ),
)

lies(
    "mte.move",
    tags_cannot_be_read=lambda: refuse(COPY, errno.EINVAL, _copies(_READ)),
    writing_tags_returns_0=lambda: answer(COPY, 0, _copies(_WRITE)),
    tags_that_are_written_are_lost=lambda: answer(COPY, PAGE_SIZE, _copies(_WRITE)),
    a_tag_that_is_read_is_another=lambda: after(COPY, _flip(1), _copies(_READ)),
    a_load_by_the_right_tag_faults=lambda: executed(LDR, _fault(0x96000011)),
    a_load_by_a_wrong_tag_is_let_through=lambda: executed(LDR, values(15, lambda old: 0)),
    a_wrong_tag_is_another_fault=lambda: executed(LDR, lambda guest: guest.set("esr", 0x96000021)),
    a_load_gets_something_else=lambda: executed(LDR, values(0, lambda old: old ^ 1)),
    gcr_is_lost=lambda: forget(SYSTEM["GCR_EL1"]),
)
