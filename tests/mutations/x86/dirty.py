# SPDX-License-Identifier: Apache-2.0
"""Lies about the dirty log: pages that it loses, adds, keeps or clears."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.dirty import (
    CLEAR,
    ENABLE,
    GET,
    REGION,
    SLOT,
    after_get,
    bitmap,
    clear_now,
    clears,
    enable_now,
    enables,
    fresh_has,
    get_now,
    gets,
    has,
    idle_has,
    keeps,
    lacks,
    logs_once,
    takes_options,
)
from tests.mutations.lies import (
    RUN,
    Condition,
    Proceed,
    Shared,
    accept,
    after,
    after_entry,
    answer,
    before,
    called,
    drift,
    kvm_table,
    nth,
    on_refusal,
    refuse,
)
from tests.mutations.registry import lies, mutation
from vmm._kvm import ffi, lib
from vmm.conformance.dirty import PAGES
from vmm.guest.payload import load
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import Call, Interposer
from vmm.kvm.memory import PAGE_SIZE
from vmm.x86.cpuid_names import PLACES
from vmm.x86.xfeature import XFeature

_MANUAL = lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
_GPA = 16 << 20
_FLAG, _READONLY = lib.KVM_MEM_LOG_DIRTY_PAGES, lib.KVM_MEM_READONLY
_ALL = (1 << PAGES) - 1


def behind(entry: str, lie: Callable[[Condition], Interposer]) -> Interposer:
    """A lie whose condition is met while the last run was one from this entry point."""
    shared = Shared("dirty")
    inner = lie(lambda call: shared.entry == shared.payload.symbol(entry))

    def interposer(call: Call, proceed: Proceed) -> int:
        shared.watch(call)
        return inner(call, proceed)

    return interposer


def _undone(entry: str, *pages: int) -> Interposer:
    """What a run from an entry point wrote to pages does not last. The slot's memory was registered last."""

    def change(shared: Shared) -> None:
        for page in pages:
            ffi.memmove(shared.at(_GPA + page * PAGE_SIZE), bytes(64), 64)

    return after_entry(entry, change, payload="dirty")


def halts(number: int) -> Interposer:
    """The ``number``-th exit is another one."""
    return after(RUN, lambda call: setattr(call.argument.run, "exit_reason", lib.KVM_EXIT_HLT), nth(number))


def loads_are_stores() -> Interposer:
    """The guest's loads are stores."""
    payload = load("dirty")

    def change(call: Call) -> None:
        if call.argument.rip == payload.symbol("read"):
            call.argument.rip = payload.symbol("dirty")

    return before("KVM_SET_REGS", change)


def _widest(component: XFeature, entry: str) -> str:
    """An entry point, or that of SSE where guests lack the component that it takes."""
    return entry if kvm_table().xcr0 >> component & 1 else "dirty_sse"


def _paravirtual(feature: str, page: int) -> Interposer:
    """A page that KVM writes is not in the log, or one that INS does where KVM does not offer the feature."""
    return lacks(page if PLACES[feature][1] in bits(kvm_table().get(0x4000_0001).eax) else 17)


lies(
    "dirty.stores",
    pages_of_string_stores_are_lost=lambda: behind("dirty", lambda when: lacks(147, when=when)),
    pages_of_sse_stores_are_lost=lambda: behind("dirty_sse", lambda when: lacks(21, when=when)),
    pages_of_avx_stores_are_lost=lambda: behind(
        _widest(XFeature.YMM, "dirty_avx"), lambda when: lacks(63, when=when)
    ),
    pages_of_avx512_stores_are_lost=lambda: behind(
        _widest(XFeature.HI16_ZMM, "dirty_avx512"), lambda when: lacks(0, when=when)
    ),
    the_second_run_of_a_vector_is_lost=lambda: behind("dirty_sse", lambda when: lacks(5, when=when)),
    the_page_before_a_boundary_is_lost=lambda: behind("dirty_across", lambda when: lacks(16, when=when)),
    the_page_behind_a_boundary_is_lost=lambda: behind("dirty_across", lambda when: lacks(17, when=when)),
    a_neighbour_of_string_stores_is_logged=lambda: behind("dirty", lambda when: has(1, when=when)),
    a_neighbour_of_vector_stores_is_logged=lambda: behind("dirty_sse", lambda when: has(2, when=when)),
    a_neighbour_of_a_boundary_is_logged=lambda: behind("dirty_across", lambda when: has(15, when=when)),
    every_page_is_logged=lambda: after_get(lambda found: _ALL),
    a_page_beyond_the_slot_is_logged=lambda: has(PAGES),
    the_word_behind_the_bitmap_is_written=lambda: after(GET, lambda call: bitmap(call).__setitem__(3, 0)),
    a_store_of_the_guest_is_lost=lambda: _undone("dirty_sse", 21),
)

lies(
    "dirty.xsave-stores",
    pages_of_xsave_are_lost=lambda: lacks(42),
    a_neighbour_of_xsave_is_logged=lambda: has(43),
    xsave_writes_nothing=lambda: _undone("dirty_xsave", 42),
)

lies(
    "dirty.tile-stores",
    pages_of_tilestored_are_lost=lambda: lacks(42),
    a_neighbour_of_tilestored_is_logged=lambda: has(43),
    tilestored_writes_nothing=lambda: _undone("dirty_tile", 42),
)

lies(
    "dirty.kvm-stores",
    pages_of_ins_are_lost=lambda: lacks(17),
    the_page_of_the_clock_is_lost=lambda: _paravirtual("KVM_CLOCKSOURCE2", 3),
    the_page_of_the_steal_time_is_lost=lambda: _paravirtual("KVM_STEAL_TIME", 70),
    a_neighbour_of_ins_is_logged=lambda: has(18),
    ins_leaves_in_another_way=lambda: halts(2),
    the_run_does_not_end=lambda: halts(11),
    ins_writes_nothing=lambda: _undone("input", 17),
)

lies(
    "dirty.get-clears",
    reading_the_log_leaves_it=lambda: keeps(),
    a_page_is_logged_once=lambda: logs_once(),
    a_written_page_is_lost=lambda: lacks(84),
    a_page_is_always_in_the_log=lambda: has(85),
)

lies(
    "dirty.not-written",
    loads_count_as_stores=lambda: loads_are_stores(),
    a_page_of_loads_is_logged=lambda: behind("read", lambda when: has(21, when=when)),
    stores_of_the_vmm_are_logged=lambda: idle_has(5),
)

lies(
    "dirty.off-and-on",
    the_log_outlives_its_flag=lambda: accept(GET),
    a_slot_without_a_log_is_einval=lambda: drift(GET, errno.EINVAL),
    a_new_log_has_old_pages=lambda: fresh_has(34),
    a_new_log_does_not_log=lambda: lacks(34),
    a_new_log_logs_more=lambda: behind("dirty", lambda when: has(35, when=when)),
)


lies(
    "dirty.malformed-get",
    a_slot_without_the_flag_has_a_log=lambda: accept(GET, nth(1)),
    a_slot_without_the_flag_is_einval=lambda: drift(GET, errno.EINVAL, nth(1)),
    a_slot_that_there_is_not_has_a_log=lambda: accept(GET, gets(SLOT + 1)),
    a_slot_that_there_is_not_is_einval=lambda: drift(GET, errno.EINVAL, gets(SLOT + 1)),
    the_last_address_space_is_the_first=lambda: accept(GET, gets(0xFFFF << 16 | SLOT)),
    the_last_address_space_is_enoent=lambda: drift(GET, errno.ENOENT, gets(0xFFFF << 16 | SLOT)),
    another_address_space_is_there=lambda: accept(GET, lambda call: 0 < call.argument.slot >> 16 < 0xFFFF),
    another_address_space_is_enoent=lambda: drift(
        GET, errno.ENOENT, lambda call: 0 < call.argument.slot >> 16 < 0xFFFF
    ),
    the_highest_slot_has_a_log=lambda: accept(GET, gets(0xFFFF)),
    the_highest_slot_is_enoent=lambda: drift(GET, errno.ENOENT, gets(0xFFFF)),
    a_refused_call_empties_the_log=lambda: on_refusal(GET, lambda call: get_now(call.fd)),
)

lies(
    "dirty.readonly-slot",
    stores_to_readonly_memory_are_no_mmio=lambda: halts(3),
    stores_to_readonly_memory_have_another_address=lambda: after(
        RUN, lambda call: setattr(call.argument.run.mmio, "phys_addr", call.argument.run.mmio.phys_addr + 8), nth(2)
    ),
    stores_to_readonly_memory_have_another_size=lambda: after(
        RUN, lambda call: setattr(call.argument.run.mmio, "len", 4), nth(2)
    ),
    stores_to_readonly_memory_are_loads=lambda: after(
        RUN, lambda call: setattr(call.argument.run.mmio, "is_write", 0), nth(2)
    ),
    the_guest_stops_at_its_last_store=lambda: halts(11),
    the_log_of_readonly_memory_has_a_page=lambda: has(17),
    readonly_memory_has_no_log=lambda: refuse(GET, errno.ENOENT),
    a_readonly_slot_becomes_writable=lambda: accept(
        REGION, lambda call: bool(call.argument.memory_size and call.argument.flags == _FLAG)
    ),
    a_readonly_slot_is_eperm=lambda: drift(
        REGION, errno.EPERM, lambda call: bool(call.argument.memory_size and call.argument.flags == _FLAG)
    ),
)


@mutation("dirty.readonly-slot")
def a_store_changes_readonly_memory() -> Interposer:
    shared = Shared("dirty")

    def interposer(call: Call, proceed: Proceed) -> int:
        shared.watch(call)
        result = proceed()
        if called(call) == RUN and call.argument.run.exit_reason == lib.KVM_EXIT_MMIO:
            shared.at(int(call.argument.run.mmio.phys_addr))[0] = 1
        return result

    return interposer


lies(
    "dirty.manual-keeps",
    manual_protection_is_refused=lambda: refuse(ENABLE, errno.EINVAL, enables(_MANUAL)),
    reading_clears_the_log=lambda: after(GET, lambda call: clear_now(call.fd)),
    clearing_is_refused=lambda: refuse(CLEAR, errno.EINVAL),
    clearing_does_nothing=lambda: answer(CLEAR, 0),
    a_page_is_logged_once=lambda: _not_again(),
    a_written_page_is_lost=lambda: lacks(42),
    a_page_is_always_in_the_log=lambda: has(43),
    a_page_written_later_is_lost=lambda: lacks(34),
)


def _not_again() -> Interposer:
    """Pages that KVM_CLEAR_DIRTY_LOG cleared are not armed again."""
    seen = cleared = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal seen, cleared
        result = proceed()
        if call.name == CLEAR:
            cleared |= seen
        elif call.name == GET and result >= 0:
            words = ffi.buffer(bitmap(call), 24)
            found = int.from_bytes(words, "little")
            seen |= found
            words[:] = (found & ~cleared).to_bytes(24, "little")
        return result

    return interposer


def _all_bits(call: Call) -> None:
    words = bitmap(call)
    for number in range(-(-call.argument.num_pages // 64)):
        words[number] = (1 << 64) - 1


lies(
    "dirty.clear-range",
    clearing_ignores_its_bitmap=lambda: before(CLEAR, _all_bits),
    clearing_ignores_its_range=lambda: after(CLEAR, lambda call: clear_now(call.fd), clears(64, 64)),
    clearing_no_bits_clears_all=lambda: after(CLEAR, lambda call: clear_now(call.fd), nth(1)),
    clearing_no_pages_clears_all=lambda: after(CLEAR, lambda call: clear_now(call.fd), clears(count=0)),
    clearing_no_pages_is_refused=lambda: refuse(CLEAR, errno.EINVAL, clears(count=0)),
    a_word_is_not_cleared=lambda: answer(CLEAR, 0, clears(64, 64)),
    the_last_word_is_not_cleared=lambda: answer(CLEAR, 0, clears(128)),
    the_whole_slot_is_not_cleared=lambda: answer(CLEAR, 0, clears(0, PAGES)),
    the_last_word_is_refused=lambda: refuse(CLEAR, errno.EINVAL, clears(128)),
    cleared_pages_are_not_armed=lambda: _not_again(),
)

lies(
    "dirty.malformed-clear",
    a_slot_without_a_log_can_be_cleared=lambda: accept(CLEAR, nth(1)),
    a_slot_without_a_log_is_einval=lambda: drift(CLEAR, errno.EINVAL, nth(1)),
    a_range_may_begin_at_page_1=lambda: accept(CLEAR, clears(1)),
    a_range_may_begin_at_page_63=lambda: accept(CLEAR, clears(63)),
    a_range_may_be_half_a_word=lambda: accept(CLEAR, clears(0, 32)),
    a_range_may_end_within_a_word=lambda: accept(CLEAR, clears(0, 65)),
    a_range_may_have_a_page_too_many=lambda: accept(CLEAR, clears(0, PAGES + 1)),
    a_range_may_lie_beyond_the_slot=lambda: accept(CLEAR, clears(192, 64)),
    an_empty_range_may_lie_beyond_the_slot=lambda: accept(CLEAR, clears(192, 0)),
    the_number_of_pages_overflows=lambda: accept(CLEAR, lambda call: call.argument.num_pages > 1 << 31),
    a_malformed_range_is_efault=lambda: drift(CLEAR, errno.EFAULT, clears(1)),
    a_range_beyond_the_slot_is_erange=lambda: drift(CLEAR, errno.ERANGE, clears(192)),
    a_slot_that_there_is_not_is_cleared=lambda: accept(CLEAR, gets(SLOT + 1)),
    the_highest_slot_is_cleared=lambda: accept(CLEAR, gets(0xFFFF)),
    another_address_space_is_cleared=lambda: accept(CLEAR, lambda call: call.argument.slot >> 16 > 0),
    a_slot_that_there_is_not_is_einval=lambda: drift(CLEAR, errno.EINVAL, gets(SLOT + 1)),
    the_highest_slot_is_enoent=lambda: drift(CLEAR, errno.ENOENT, gets(0xFFFF)),
    another_address_space_is_enoent=lambda: drift(CLEAR, errno.ENOENT, lambda call: call.argument.slot >> 16 > 0),
    a_refused_call_clears_the_log=lambda: on_refusal(CLEAR, lambda call: clear_now(call.fd)),
)

lies(
    "dirty.initially-set",
    the_option_is_refused=lambda: refuse(ENABLE, errno.EINVAL, enables(_MANUAL, 3)),
    the_option_is_forgotten=lambda: before(
        ENABLE, lambda call: call.argument.args.__setitem__(0, 1), enables(_MANUAL, 3)
    ),
    the_first_page_is_not_set=lambda: lacks(0),
    the_last_page_is_not_set=lambda: lacks(PAGES - 1, when=nth(1)),
    a_page_beyond_the_slot_is_set=lambda: has(PAGES),
    nothing_is_logged_once_it_was_cleared=lambda: _not_again(),
    clearing_does_nothing=lambda: answer(CLEAR, 0),
)

lies(
    "dirty.manual-options",
    initially_set_is_taken_alone=lambda: takes_options(2),
    the_lowest_unknown_option_is_taken=lambda: takes_options(1 | 1 << 2),
    the_highest_unknown_option_is_taken=lambda: takes_options(1 | 1 << 63),
    flags_are_ignored=lambda: accept(ENABLE, lambda call: bool(call.argument.flags)),
    an_unknown_option_is_eperm=lambda: drift(ENABLE, errno.EPERM, enables(_MANUAL, 1 | 1 << 9)),
    initially_set_alone_is_eperm=lambda: drift(ENABLE, errno.EPERM, enables(_MANUAL, 2)),
    flags_are_eperm=lambda: drift(ENABLE, errno.EPERM, lambda call: bool(call.argument.flags)),
    what_is_offered_is_refused=lambda: refuse(ENABLE, errno.EINVAL, enables(_MANUAL, 3)),
    turning_it_off_is_refused=lambda: refuse(ENABLE, errno.EINVAL, enables(_MANUAL, 0)),
    a_refused_option_is_taken=lambda: on_refusal(ENABLE, lambda call: enable_now(call.fd, _MANUAL, 1)),
    a_written_page_is_lost=lambda: lacks(42),
)
