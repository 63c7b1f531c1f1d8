# SPDX-License-Identifier: Apache-2.0
"""Lies about the dirty log: pages that it loses, adds, keeps or clears."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.arm64.lies import SET, _Guest, guest_left, value, values
from tests.mutations.dirty import GET, REGION, after_get, bitmap, has, idle_has, lacks
from tests.mutations.lies import RUN, Condition, Proceed, accept, after, before, drift, given, nth, refuse
from tests.mutations.registry import lies, repeated
from vmm._kvm import ffi, lib
from vmm.arm64.registers import PC
from vmm.conformance.dirty import PAGES
from vmm.guest.payload import load
from vmm.kvm.ioctl import Call, Interposer
from vmm.kvm.memory import PAGE_SIZE

_FLAG, _READONLY = lib.KVM_MEM_LOG_DIRTY_PAGES, lib.KVM_MEM_READONLY
_ALL = (1 << PAGES) - 1
_STORE, _LOAD = 0xF9000000, 0xF9400000


def behind(entry: str, lie: Callable[[Condition], Interposer]) -> Interposer:
    """A lie whose condition is met while the last run was one from this entry point."""
    shared = _Guest("dirty")
    inner = lie(lambda call: shared.entry == shared.payload.symbol(entry))

    def interposer(call: Call, proceed: Proceed) -> int:
        shared.watch(call)
        return inner(call, proceed)

    return interposer


def _undone(page: int, *, payload: str = "dirty", entry: str, content: bytes = bytes(64)) -> Interposer:
    """What a run from an entry point wrote to a page of slot 1 does not last."""
    shared, memory = _Guest(payload), 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal memory
        if call.name == REGION and call.argument.slot == 1 and call.argument.memory_size:
            memory = int(call.argument.userspace_addr)
        shared.watch(call)
        result = proceed()
        if call.name == "KVM_RUN" and shared.entry == shared.payload.symbol(entry) and memory:
            ffi.memmove(ffi.cast("void *", memory + page * PAGE_SIZE), content, len(content))
        return result

    return interposer


def loads_are_stores() -> Interposer:
    """The guest's loads are stores."""
    payload = load("dirty")

    def change(call: Call) -> None:
        if int(call.argument.id) == PC and int.from_bytes(value(call), "little") == payload.symbol("read"):
            value(call)[:] = payload.symbol("dirty").to_bytes(8, "little")

    return before(SET, change)


lies(
    "dirty.stores",
    pages_of_pairs_are_lost=lambda: behind("dirty", lambda when: lacks(147, when=when)),
    pages_of_advsimd_stores_are_lost=lambda: behind("dirty_neon", lambda when: lacks(21, when=when)),
    the_second_run_of_a_vector_is_lost=lambda: behind("dirty_neon", lambda when: lacks(5, when=when)),
    the_page_before_a_boundary_is_lost=lambda: behind("dirty_across", lambda when: lacks(16, when=when)),
    the_page_behind_a_boundary_is_lost=lambda: behind("dirty_across", lambda when: lacks(17, when=when)),
    a_neighbour_of_pairs_is_logged=lambda: behind("dirty", lambda when: has(1, when=when)),
    a_neighbour_of_vector_stores_is_logged=lambda: behind("dirty_neon", lambda when: has(2, when=when)),
    a_neighbour_of_a_boundary_is_logged=lambda: behind("dirty_across", lambda when: has(15, when=when)),
    every_page_is_logged=lambda: after_get(lambda found: _ALL),
    a_page_beyond_the_slot_is_logged=lambda: has(PAGES),
    the_word_behind_the_bitmap_is_written=lambda: after(GET, lambda call: bitmap(call).__setitem__(3, 0)),
    a_store_of_the_guest_is_lost=lambda: _undone(21, entry="dirty_neon"),
)

lies(
    "dirty.sve-stores",
    pages_of_sve_stores_are_lost=lambda: lacks(42),
    pages_of_the_longest_vectors_are_lost=lambda: lacks(34, when=nth(4)),
    a_neighbour_of_sve_stores_is_logged=lambda: has(43),
    a_store_of_the_guest_is_lost=lambda: _undone(42, entry="dirty_sve"),
)

lies(
    "dirty.kvm-stores",
    the_page_of_the_stolen_time_is_lost=lambda: lacks(70),
    the_page_is_logged_once=lambda: lacks(70, when=nth(2)),
    a_neighbour_is_logged=lambda: has(71),
    there_is_no_stolen_time=lambda: guest_left("hvc", values(0, lambda old: (1 << 64) - 1), when=given(0xC5000020)),
    the_stolen_time_is_elsewhere=lambda: guest_left("hvc", values(0, lambda old: old + 64), when=given(0xC5000021)),
    kvm_writes_nothing=lambda: _undone(70, payload="hello", entry="hvc", content=bytes([0xFF]) * 8),
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
    a_new_log_has_old_pages=lambda: has(34),
    a_new_log_does_not_log=lambda: lacks(34),
    a_new_log_logs_more=lambda: behind("dirty", lambda when: has(35, when=when)),
)


def _exit(field: str, new: int, number: int) -> Interposer:
    return after(RUN, lambda call: setattr(call.argument.run.mmio, field, new), nth(number))


def _made(call: Call) -> bool:
    return bool(call.argument.memory_size and call.argument.flags == _FLAG)


lies(
    "dirty.readonly-slot",
    stores_to_readonly_memory_are_no_mmio=lambda: after(
        RUN, lambda call: setattr(call.argument.run, "exit_reason", lib.KVM_EXIT_HLT), nth(1)
    ),
    stores_to_readonly_memory_have_another_address=lambda: _exit("phys_addr", 8, 4),
    stores_to_readonly_memory_have_another_size=lambda: _exit("len", 4, 1),
    stores_to_readonly_memory_are_loads=lambda: _exit("is_write", 0, 4),
    the_guest_stops_at_its_store=lambda: _exit("phys_addr", 0, 2),
    a_load_leaves=lambda: _exit("phys_addr", 0, 3),
    a_store_changes_readonly_memory=lambda: _undone(17, payload="hello", entry="execute", content=b"store"),
    the_log_of_readonly_memory_has_a_page=lambda: has(17),
    readonly_memory_has_no_log=lambda: refuse(GET, errno.ENOENT),
    a_readonly_slot_becomes_writable=lambda: accept(REGION, _made),
    a_readonly_slot_is_eperm=lambda: drift(REGION, errno.EPERM, _made),
)

# What knows nothing of an architecture is written once.
for _lie in repeated(
    "dirty", "dirty.get-clears", "dirty.malformed-get", "dirty.manual-keeps", "dirty.clear-range",
    "dirty.malformed-clear", "dirty.initially-set", "dirty.manual-options",
):  # fmt: skip
    lies(_lie.clause, **{_lie.name: lambda made=_lie.factory: made()})
