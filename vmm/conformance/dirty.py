# SPDX-License-Identifier: Apache-2.0
"""The dirty log as clauses look at it: a memslot of its own, each call by itself, a ring entry by entry.

vmm.kvm.dirty_log is what the VMM uses; clauses make the calls that it is made of, with arguments that it never has.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from vmm._kvm import ffi, lib
from vmm.conformance.expect import equal, judged
from vmm.guest.base import BaseGuest
from vmm.kvm.bits import bits
from vmm.kvm.dirty_log import RingMachine
from vmm.kvm.exits import Exit
from vmm.kvm.memory import PAGE_SIZE, GuestMemory
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine

__all__ = ["PAGES", "Logged", "Ring", "clear_dirty_log", "exactly", "get_dirty_log", "manual_protection"]

# Pages of the slot that is logged: no multiple of 64, so that the last word of its bitmap is not full.
PAGES = 150
# A page more would be written where the kernel copies a bitmap of another length than the slot's.
_POISON = 0xAA
# No slot here has as many pages: a longer range is refused before its bitmap is read.
_LARGEST = 1 << 16
# So often pages that nobody wrote have to be in the log before it counts: see exactly().
_ATTEMPTS = 4
# Of the payload's pages, by whose number it goes from one to the next.
_GUEST_PAGE = 4096


def get_dirty_log(vm: VirtualMachine, slot: int, pages: int) -> set[int]:
    """KVM_GET_DIRTY_LOG: the numbers of the pages whose bits are set, those beyond the slot's ``pages`` too.

    The bitmap has as many words as the slot needs; of the poisoned word behind them nothing may change.
    """
    words = -(-pages // 64)
    bitmap = ffi.new("uint64_t[]", words + 1)
    ffi.memmove(bitmap, bytes([_POISON]) * 8 * (words + 1), 8 * (words + 1))
    vm.ioctl(lib.KVM_GET_DIRTY_LOG, ffi.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": bitmap}))
    content = bytes(ffi.buffer(bitmap))
    equal("what is behind the bitmap", content[8 * words :], bytes([_POISON]) * 8)
    return set(bits(int.from_bytes(content[: 8 * words], "little")))


def clear_dirty_log(vm: VirtualMachine, slot: int, first: int, count: int, pages: Iterable[int]) -> None:
    """KVM_CLEAR_DIRTY_LOG of ``count`` pages from ``first`` on, in whose bitmap ``pages`` (of the slot) have bits."""
    bitmap = ffi.new("uint64_t[]", max(-(-min(count, _LARGEST) // 64), 1))
    for page in pages:
        bitmap[(page - first) // 64] |= 1 << (page - first) % 64
    argument = {"slot": slot, "num_pages": count, "first_page": first, "dirty_bitmap": bitmap}
    vm.ioctl(lib.KVM_CLEAR_DIRTY_LOG, ffi.new("struct kvm_clear_dirty_log *", argument))


def manual_protection(vm: VirtualMachine, options: int) -> None:
    """KVM_ENABLE_CAP of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2."""
    vm.enable_cap(lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, options)


def exactly(what: str, attempt: Callable[[], set[int]], written: Iterable[int]) -> None:
    """The pages that ``attempt`` finds in the log have to be those ``written``.

    A page that is missing fails at once. One that nobody wrote fails only if there are such pages at each of several
    attempts: a host that takes a page away from KVM and gives it back (reclaim, compaction, huge pages) has KVM map
    it anew, writable, and count it as dirty, which costs a migration a page and no data.
    """
    wanted = set(written)
    extra: set[int] = set()
    for _ in range(_ATTEMPTS):
        with judged(what):
            logged = attempt()
        equal(f"{what}: written pages that are not in the log", sorted(wanted - logged), [])
        extra = logged - wanted
        if not extra:
            return
    equal(f"{what}: pages in the log that nobody wrote", sorted(extra), [])


class Logged:
    """A guest of the payload ``dirty`` and a slot for nothing but what it writes: no tables, no mailbox.

    ``gpa`` is where the guest's tables map that slot; pages are counted from its first one. Logging is off.
    """

    def __init__(self, guest: BaseGuest, gpa: int, timeout: float, pages: int = PAGES) -> None:
        self.guest, self.vm, self.pages = guest, guest.vm, pages
        self.memory: GuestMemory = guest.vm.add_memory(pages * PAGE_SIZE, gpa)
        self.slot = self.memory.slot
        self._timeout = timeout

    def log(self, *, on: bool = True, readonly: bool = False) -> None:
        """Set or clear KVM_MEM_LOG_DIRTY_PAGES."""
        self.memory.register(log_dirty=on, readonly=readonly)

    def remove(self) -> None:
        """Delete the slot, so that log() makes another one of the same memory."""
        self.vm.set_memory_region(self.slot, self.memory.gpa, 0, self.memory.address)

    def get(self) -> set[int]:
        """KVM_GET_DIRTY_LOG of the slot."""
        return get_dirty_log(self.vm, self.slot, self.pages)

    def clear(self, first: int, count: int, pages: Iterable[int]) -> None:
        """KVM_CLEAR_DIRTY_LOG of the slot."""
        clear_dirty_log(self.vm, self.slot, first, count, pages)

    def parameters(self, pages: range, size: int = 64) -> tuple[int, ...]:
        """What the payload is told to write the first ``size`` bytes of each of these pages, once, without a tick."""
        return (
            self.memory.gpa + pages.start * PAGE_SIZE, len(pages), pages.step * PAGE_SIZE // _GUEST_PAGE, 1, 0, size,
        )  # fmt: skip

    def write(self, pages: range, entry: str = "dirty", size: int = 64) -> None:
        """Have the guest write the first ``size`` bytes of each of these pages, and see that memory has them."""
        gpas = [self.memory.gpa + page * PAGE_SIZE for page in pages]
        for gpa in gpas:
            self.memory.write(gpa, bytes(8))
        with judged(f"{entry} of the guest"):
            self.guest.call(entry, *self.parameters(pages, size), privilege=self.guest.USER, timeout=self._timeout)
        equal(
            "pages that the guest left as they were", [gpa for gpa in gpas if not any(self.memory.read(gpa, 8))], []
        )

    def run(self) -> Exit:
        """Run the guest on to its next exit."""
        return self.guest.resume(self._timeout)

    def write_as_host(self, pages: range) -> None:
        """Have the VMM write each of these pages."""
        for page in pages:
            self.memory.write(self.memory.gpa + page * PAGE_SIZE, b"host")

    def read(self, pages: range) -> None:
        """Have the guest read a word of each of these pages."""
        with judged("loads of the guest"):
            self.guest.call("read", *self.parameters(pages), privilege=self.guest.USER, timeout=self._timeout)

    def write_and_get(self, pages: range, entry: str = "dirty", size: int = 64) -> set[int]:
        """The guest writes; return what the log then has. Without manual protection that empties it."""
        self.write(pages, entry, size)
        return self.get()


class Ring:
    """The dirty ring of one vCPU, entry by entry; close it before its vCPU."""

    def __init__(self, vm: RingMachine, vcpu: Vcpu) -> None:
        self._vm, self.size, self._next = vm, vm.ring_entries, 0
        offset = lib.KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE
        self._map = mmap.mmap(vcpu.fd, self.size * ffi.sizeof("struct kvm_dirty_gfn"), offset=offset)
        self._entries = ffi.from_buffer("struct kvm_dirty_gfn[]", self._map)

    def harvest(self) -> list[tuple[int, int]]:
        """Return (slot, offset) of the entries that have come since the last harvest, and mark them as harvested."""
        found: list[tuple[int, int]] = []
        while self._entries[self._next % self.size].flags == lib.KVM_DIRTY_GFN_F_DIRTY and len(found) < self.size:
            entry = self._entries[self._next % self.size]
            found.append((int(entry.slot), int(entry.offset)))
            entry.flags = lib.KVM_DIRTY_GFN_F_RESET
            self._next += 1
        return found

    def reset(self) -> int:
        """KVM_RESET_DIRTY_RINGS: log the pages of harvested entries again; return how many entries those were."""
        return self._vm.ioctl_value(lib.KVM_RESET_DIRTY_RINGS)

    def close(self) -> None:
        """Unmap the ring."""
        if not self._map.closed:
            ffi.release(self._entries)
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
