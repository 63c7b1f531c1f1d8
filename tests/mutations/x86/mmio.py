# SPDX-License-Identifier: Apache-2.0
"""Lies about emulated loads and stores: their exits, what they load, and what else they change."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import (
    COMPLETE,
    RUN,
    Shared,
    after,
    after_entry,
    answer,
    kvm_table,
    nth,
    refuse,
    toggle,
)
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import MXCSR, flip, place, xsave_lie
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.xfeature import XFeature

REGS = "KVM_GET_REGS"
_SSE, _YMM, _HI256 = int(XFeature.SSE), int(XFeature.YMM), int(XFeature.ZMM_HI256)


def _exit(number: int, change: Callable[[Call], object]) -> Interposer:
    """Change what the page says of the ``number``-th exit."""
    return after(RUN, change, nth(number))


def _data(number: int, byte: int = 0) -> Interposer:
    """A store of other data."""

    def change(call: Call) -> None:
        call.argument.run.mmio.data[byte] ^= 1

    return _exit(number, change)


def _mmio(field: str, bits: int, number: int) -> Interposer:
    return _exit(number, toggle(f"run.mmio.{field}", bits))


def _halts(number: int) -> Interposer:
    return _exit(number, lambda call: setattr(call.argument.run, "exit_reason", lib.KVM_EXIT_HLT))


def _value(entry: str, index: int) -> Interposer:
    """A load leaves something else in its register."""

    def change(shared: Shared) -> None:
        shared.set("values", 0x5A5A_5A5A_5A5A_5A5A, index)

    return after_entry(entry, change, payload="mmio")


def _highest(number: int) -> Interposer:
    """The highest part of a vector register that guests here have is another one."""
    component, size = (_HI256, 32) if kvm_table().xcr0 >> _HI256 & 1 else (_YMM, 16)
    return xsave_lie(flip(place(component, size * number)))


lies(
    "mmio.scalar-load",
    a_load_of_a_byte_has_another_size=lambda: _mmio("len", 3, 1),
    a_load_of_8_bytes_has_another_size=lambda: _mmio("len", 12, 4),
    a_load_of_4_bytes_has_another_address=lambda: _mmio("phys_addr", 4, 3),
    an_extended_load_has_another_size=lambda: _mmio("len", 3, 7),
    a_load_in_two_pages_is_split_elsewhere=lambda: _mmio("len", 1, 10),
    the_second_page_has_another_address=lambda: _mmio("phys_addr", 0x10, 11),
    a_load_is_a_store=lambda: _mmio("is_write", 1, 2),
    a_load_of_a_byte_changes_the_register=lambda: _value("loads", 0),
    a_load_of_2_bytes_changes_the_register=lambda: _value("loads", 1),
    a_load_of_4_bytes_leaves_the_register=lambda: _value("loads", 2),
    a_load_of_8_bytes_loads_something_else=lambda: _value("loads", 3),
    a_byte_is_not_extended_by_zeros=lambda: _value("loads", 4),
    two_bytes_are_not_extended_by_zeros=lambda: _value("loads", 5),
    a_byte_is_not_extended_by_its_sign=lambda: _value("loads", 6),
    two_bytes_are_not_extended_by_their_sign=lambda: _value("loads", 7),
    four_bytes_are_not_extended_by_their_sign=lambda: _value("loads", 8),
    a_load_in_two_pages_is_put_together_wrongly=lambda: _value("loads", 9),
    another_register_changes=lambda: after(REGS, toggle("r12", 1 << 40)),
    the_guest_does_not_go_on=lambda: _halts(12),
)

lies(
    "mmio.scalar-store",
    a_store_of_a_byte_has_another_size=lambda: _mmio("len", 3, 1),
    a_store_of_2_bytes_has_other_data=lambda: _data(2, 1),
    a_store_of_4_bytes_has_another_address=lambda: _mmio("phys_addr", 4, 3),
    a_store_of_8_bytes_has_other_data=lambda: _data(4, 7),
    a_store_in_two_pages_is_split_elsewhere=lambda: _mmio("len", 1, 5),
    the_second_page_has_other_data=lambda: _data(6, 4),
    an_addition_does_not_load=lambda: _mmio("is_write", 1, 7),
    an_addition_stores_something_else=lambda: _data(8, 3),
    another_register_changes=lambda: after(REGS, toggle("rsi", 1)),
    the_guest_does_not_go_on=lambda: _halts(9),
)


def _memory_keeps(shared: Shared) -> None:
    """The store's part in memory is lost."""
    shared.at((4 << 20) - 8)[0] = 0x3322_1100_0000_0000


lies(
    "mmio.half-memory",
    the_load_has_another_size=lambda: _mmio("len", 13, 1),
    the_load_has_another_address=lambda: _mmio("phys_addr", 0x1000, 1),
    the_load_is_put_together_wrongly=lambda: _value("load", 0),
    the_guest_does_not_go_on_behind_the_load=lambda: _halts(2),
    the_store_has_other_data=lambda: _data(3, 4),
    the_store_has_another_size=lambda: _mmio("len", 13, 3),
    the_guest_does_not_go_on_behind_the_store=lambda: _halts(4),
    the_stores_part_in_memory_is_lost=lambda: after_entry("store", _memory_keeps, payload="mmio"),
)

lies(
    "mmio.sse-load",
    a_piece_has_another_size=lambda: _mmio("len", 12, 2),
    a_piece_has_another_address=lambda: _mmio("phys_addr", 8, 3),
    a_vector_in_two_pages_is_split_elsewhere=lambda: _mmio("len", 12, 9),
    a_load_is_a_store=lambda: _mmio("is_write", 1, 5),
    a_register_has_something_else=lambda: xsave_lie(flip(place(_SSE, 16))),
    the_last_register_has_something_else=lambda: xsave_lie(flip(place(_SSE, 16 * 5 + 13))),
    the_upper_part_of_a_register_changes=lambda: xsave_lie(flip(place(_YMM, 16 * 2))),
    the_highest_part_of_a_register_changes=lambda: _highest(3),
    another_register_changes=lambda: xsave_lie(flip(place(_SSE, 16 * 15))),
    mxcsr_changes=lambda: xsave_lie(flip(MXCSR, 0x40)),
    a_general_register_changes=lambda: after(REGS, toggle("r8", 1)),
    the_guest_does_not_go_on=lambda: _halts(12),
)

lies(
    "mmio.sse-store",
    a_piece_has_another_size=lambda: _mmio("len", 12, 2),
    a_piece_has_another_address=lambda: _mmio("phys_addr", 8, 3),
    a_piece_has_other_data=lambda: _data(4, 7),
    the_last_piece_in_two_pages_has_other_data=lambda: _data(11, 3),
    a_non_temporal_store_has_other_data=lambda: _data(13),
    a_store_is_a_load=lambda: _mmio("is_write", 1, 6),
    a_stored_register_changes=lambda: xsave_lie(flip(place(_SSE, 16))),
    another_register_changes=lambda: xsave_lie(flip(place(_YMM, 16 * 15))),
    a_general_register_changes=lambda: after(REGS, toggle("r9", 1)),
    the_guest_does_not_go_on=lambda: _halts(14),
)

lies(
    "mmio.vex-load",
    a_piece_of_16_bytes_has_another_size=lambda: _mmio("len", 12, 2),
    a_piece_of_32_bytes_has_another_address=lambda: _mmio("phys_addr", 8, 6),
    a_vector_in_two_pages_is_split_elsewhere=lambda: _mmio("phys_addr", 0x1000, 17),
    a_load_is_a_store=lambda: _mmio("is_write", 1, 5),
    sixteen_bytes_are_something_else=lambda: xsave_lie(flip(place(_SSE, 16))),
    the_upper_half_of_32_bytes_is_something_else=lambda: xsave_lie(flip(place(_YMM, 16 * 5))),
    the_upper_half_stays_behind_16_bytes=lambda: xsave_lie(flip(place(_YMM, 16))),
    the_highest_part_stays_behind_16_bytes=lambda: _highest(1),
    the_highest_part_stays_behind_32_bytes=lambda: _highest(4),
    another_register_changes=lambda: xsave_lie(flip(place(_SSE, 16 * 6))),
    the_guest_does_not_go_on=lambda: _halts(19),
)

lies(
    "mmio.vex-store",
    a_piece_of_16_bytes_has_another_size=lambda: _mmio("len", 12, 2),
    a_piece_of_32_bytes_has_another_address=lambda: _mmio("phys_addr", 8, 6),
    a_piece_has_other_data=lambda: _data(4, 7),
    a_piece_in_the_second_page_has_other_data=lambda: _data(18, 7),
    a_store_is_a_load=lambda: _mmio("is_write", 1, 6),
    a_stored_register_changes=lambda: xsave_lie(flip(place(_SSE, 16))),
    another_register_changes=lambda: xsave_lie(flip(place(_YMM, 16 * 15))),
    the_guest_does_not_go_on=lambda: _halts(19),
)

# KVM_RUN with immediate_exit: one for each exit that is completed, and one before another entry point.
_LOAD, _STORE, _FIRST, _SECOND = 1, 3, 5, 6

lies(
    "mmio.completion",
    a_load_leaves_in_another_way=lambda: _halts(1),
    a_completed_load_is_another_exit=lambda: answer(COMPLETE, 0, nth(_LOAD)),
    a_completed_load_is_not_in_its_register=lambda: after(REGS, toggle("rax", 1)),
    a_completed_load_is_loaded_again=lambda: after(REGS, toggle("rip", 3)),
    the_guest_does_not_go_on_behind_a_load=lambda: _halts(2),
    the_guest_goes_on_with_something_else=lambda: _value("load", 0),
    a_store_leaves_in_another_way=lambda: _halts(3),
    a_store_has_other_data=lambda: _data(3),
    a_completed_store_is_another_exit=lambda: answer(COMPLETE, 0, nth(_STORE)),
    the_guest_does_not_go_on_behind_a_store=lambda: _halts(4),
    the_guest_did_not_go_on=lambda: _value("store", 0),
    a_vector_leaves_in_another_way=lambda: _halts(5),
    a_vectors_first_piece_is_its_last=lambda: refuse(COMPLETE, errno.EINTR, nth(_FIRST)),
    a_vectors_second_piece_is_not_its_last=lambda: answer(COMPLETE, 0, nth(_SECOND)),
    half_a_vector_is_in_its_register=lambda: after("KVM_GET_XSAVE2", flip(place(_SSE, 16)), nth(1)),
    a_vector_is_not_in_its_register=lambda: after("KVM_GET_XSAVE2", flip(place(_SSE, 16)), nth(2)),
)
