# SPDX-License-Identifier: Apache-2.0
"""What the lies about the dirty log of either architecture are made of.

They know the slot of vmm.conformance.dirty: slot 1, with PAGES pages.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

from tests.mutations.lies import RUN, Condition, Proceed, accept, after, always, called
from vmm._kvm import ffi, lib
from vmm.conformance.dirty import PAGES
from vmm.kvm.ioctl import Call, Interposer
from vmm.kvm.memory import PAGE_SIZE

__all__ = [
    "CLEAR",
    "ENABLE",
    "GET",
    "REGION",
    "RESET",
    "SLOT",
    "after_get",
    "bitmap",
    "change_entry",
    "clear_now",
    "clears",
    "enable_now",
    "enables",
    "flag_is_lost",
    "fresh_has",
    "full_ring",
    "get_now",
    "gets",
    "has",
    "idle_has",
    "keeps",
    "lacks",
    "logs_once",
    "newest_entry",
    "resets_nothing",
    "takes_options",
]

GET, CLEAR, RESET = "KVM_GET_DIRTY_LOG", "KVM_CLEAR_DIRTY_LOG", "KVM_RESET_DIRTY_RINGS"
ENABLE, REGION = "KVM_ENABLE_CAP", "KVM_SET_USER_MEMORY_REGION"
SLOT = 1
_WORDS = -(-PAGES // 64)


def bitmap(call: Call) -> Any:
    """The bitmap of KVM_GET_DIRTY_LOG or KVM_CLEAR_DIRTY_LOG, as words."""
    return ffi.cast("uint64_t *", call.argument.dirty_bitmap)


def _pages(words: Any) -> int:
    return int.from_bytes(ffi.buffer(words, 8 * _WORDS), "little")


def _store(words: Any, pages: int) -> None:
    ffi.buffer(words, 8 * _WORDS)[:] = pages.to_bytes(8 * _WORDS, "little")


def after_get(change: Callable[[int], int], when: Condition = always) -> Interposer:
    """KVM_GET_DIRTY_LOG gives ``change`` of the bits, as one number."""
    return after(GET, lambda call: _store(bitmap(call), change(_pages(bitmap(call)))), when)


def lacks(*pages: int, when: Condition = always) -> Interposer:
    """Pages are never in the log."""
    return after_get(lambda found: found & ~sum(1 << page for page in pages), when)


def has(page: int, when: Condition = always) -> Interposer:
    """A page is always in the log."""
    return after_get(lambda found: found | 1 << page, when)


def idle_has(page: int) -> Interposer:
    """A page is in the log though no guest has run since it was read."""
    ran = False

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal ran
        result = proceed()
        if called(call) == RUN:
            ran = True
        elif call.name == GET and result >= 0:
            if not ran:
                _store(bitmap(call), _pages(bitmap(call)) | 1 << page)
            ran = False
        return result

    return interposer


def fresh_has(page: int) -> Interposer:
    """A page is in the log that begins when a slot gets the flag."""
    begins = False

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal begins
        result = proceed()
        if call.name == REGION and call.argument.slot == SLOT:
            begins = bool(call.argument.flags & lib.KVM_MEM_LOG_DIRTY_PAGES)
        elif call.name == GET and result >= 0 and begins:
            _store(bitmap(call), _pages(bitmap(call)) | 1 << page)
            begins = False
        return result

    return interposer


def keeps() -> Interposer:
    """What has been in the log once stays there."""
    seen = 0

    def change(found: int) -> int:
        nonlocal seen
        seen |= found
        return seen

    return after_get(change)


def logs_once() -> Interposer:
    """A page that has been in the log once is never in it again."""
    seen = 0

    def change(found: int) -> int:
        nonlocal seen
        new, seen = found & ~seen, seen | found
        return new

    return after_get(change)


def gets(slot: int) -> Condition:
    """Met by the calls about this slot, address space and all."""
    return lambda call: bool(call.argument.slot == slot)


def clears(first: int | None = None, count: int | None = None, slot: int = SLOT) -> Condition:
    """Met by a KVM_CLEAR_DIRTY_LOG of this range."""
    return lambda call: bool(
        call.argument.slot == slot
        and first in (None, call.argument.first_page)
        and count in (None, call.argument.num_pages)
    )


def get_now(fd: int) -> int:
    """Read the slot's log behind the clause's back, which empties it without manual protection."""
    words = ffi.new("uint64_t[]", _WORDS)
    lib.vmm_ioctl(fd, lib.KVM_GET_DIRTY_LOG, ffi.new("struct kvm_dirty_log *", {"slot": SLOT, "dirty_bitmap": words}))
    return _pages(words)


def clear_now(fd: int) -> None:
    """Clear the slot's whole log behind the clause's back."""
    words = ffi.new("uint64_t[]", [(1 << 64) - 1] * _WORDS)
    row = {"slot": SLOT, "num_pages": PAGES, "first_page": 0, "dirty_bitmap": words}
    lib.vmm_ioctl(fd, lib.KVM_CLEAR_DIRTY_LOG, ffi.new("struct kvm_clear_dirty_log *", row))


def enables(capability: int, value: int | None = None) -> Condition:
    """Met by KVM_ENABLE_CAP of a capability, with this first argument."""
    return lambda call: bool(call.argument.cap == capability and value in (None, call.argument.args[0]))


def enable_now(fd: int, capability: int, value: int) -> None:
    """KVM_ENABLE_CAP behind the clause's back."""
    lib.vmm_ioctl(fd, lib.KVM_ENABLE_CAP, ffi.new("struct kvm_enable_cap *", {"cap": capability, "args": [value]}))


def takes_options(value: int) -> Interposer:
    """Manual protection takes an option that it refuses."""
    return accept(ENABLE, enables(lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, value))


def flag_is_lost(number: int) -> Interposer:
    """The ``number``-th time that logging is turned off it stays on."""
    count = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal count
        if call.name == REGION and call.argument.slot == SLOT and not call.argument.flags:
            count += call.argument.memory_size > 0
            # The first time is the slot's making.
            if count == number + 1:
                call.argument.flags = lib.KVM_MEM_LOG_DIRTY_PAGES
        return proceed()

    return interposer


def _entries(fd: int, size: int) -> Any:
    area = mmap.mmap(fd, size * ffi.sizeof("struct kvm_dirty_gfn"), offset=lib.KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE)
    return area, ffi.from_buffer("struct kvm_dirty_gfn[]", area)


def change_entry(change: Callable[[Any], object], size: int, number: int = -1) -> Interposer:
    """After each run ``change`` spoils one of the ring's entries that wait to be harvested, the newest if -1."""

    def spoil(call: Call) -> None:
        area, entries = _entries(call.fd, size)
        waiting = [entry for entry in entries[0:size] if entry.flags == lib.KVM_DIRTY_GFN_F_DIRTY]
        if waiting:
            change(waiting[number])
        del waiting
        ffi.release(entries)
        area.close()

    return after(RUN, spoil)


def newest_entry(field: str, value: int) -> Callable[[Any], object]:
    """A change of an entry that gives a field a value."""
    return lambda entry: setattr(entry, field, value)


def resets_nothing(size: int) -> Interposer:
    """KVM_RESET_DIRTY_RINGS counts what was harvested and does nothing."""
    vcpus: list[int] = []

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) == RUN and call.fd not in vcpus:
            vcpus.append(call.fd)
        if call.name != RESET:
            return proceed()
        total = 0
        for fd in vcpus:
            area, entries = _entries(fd, size)
            total += sum(entry.flags == lib.KVM_DIRTY_GFN_F_RESET for entry in entries[0:size])
            ffi.release(entries)
            area.close()
        return total

    return interposer


def full_ring(reason: int, number: int) -> Interposer:
    """The ``number``-th exit for a full ring has another reason."""
    count = 0

    def change(call: Call) -> None:
        nonlocal count
        if call.argument.run.exit_reason == lib.KVM_EXIT_DIRTY_RING_FULL:
            count += 1
            if count == number:
                call.argument.run.exit_reason = reason

    return after(RUN, change)
