# SPDX-License-Identifier: Apache-2.0
"""What the dirty log promises on every architecture, judged with a :class:`vmm.conformance.dirty.Logged` of either.

Source of all: Documentation/virt/kvm/api.rst 4.8 KVM_GET_DIRTY_LOG, 4.117 KVM_CLEAR_DIRTY_LOG, 7.18
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 7.36 KVM_CAP_DIRTY_LOG_RING; virt/kvm/kvm_main.c, virt/kvm/dirty_ring.c.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

from vmm._kvm import lib
from vmm.conformance.dirty import Logged, Ring, clear_dirty_log, exactly, get_dirty_log, manual_protection
from vmm.conformance.expect import equal, refused, succeeds, true
from vmm.kvm.exits import Unsupported
from vmm.kvm.memory import PAGE_SIZE
from vmm.kvm.vm import VirtualMachine

__all__ = [
    "bitmap_refused_beside_rings",
    "clears_a_range",
    "clears_and_logs_again",
    "full_ring_stops",
    "initially_set",
    "keeps_until_cleared",
    "malformed_clears",
    "malformed_gets",
    "manual_options",
    "off_and_on",
    "others_do_not_count",
    "ring_ignores_others",
    "ring_names_pages",
    "ring_sizes",
    "stores",
]

_ENABLE, _INITIALLY_SET = lib.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, lib.KVM_DIRTY_LOG_INITIALLY_SET
# Pages in each word of the slot's bitmap, the first and the last bit of words among them.
_SOME = range(0, 150, 21)
_OTHERS = range(5, 150, 29)
_MULTI_ADDRESS_SPACE = 118


def _address_spaces(log: Logged) -> int:
    return max(log.vm.check_extension(_MULTI_ADDRESS_SPACE), 1)


def stores(log: Logged, entry: str, size: int) -> None:
    """The log has the pages that an entry point wrote, and no other."""
    log.log()
    for pages in (_SOME, _OTHERS):
        exactly(f"pages written by {entry}", partial(log.write_and_get, pages, entry, size), pages)


def clears_and_logs_again(log: Logged) -> None:
    """KVM_GET_DIRTY_LOG empties the log, and a page that is written again is in it again."""
    log.log()
    exactly("after stores", lambda: log.write_and_get(_SOME), _SOME)
    exactly("after no store", log.get, ())
    exactly("after stores to the same pages", lambda: log.write_and_get(_SOME), _SOME)
    exactly("after no store again", log.get, ())


def others_do_not_count(log: Logged) -> None:
    """What the guest reads, and what the VMM writes, is not in the log."""
    log.log()
    log.write_and_get(_SOME)  # only a page that KVM has mapped has its reads looked at

    def read() -> set[int]:
        log.read(_SOME)
        return log.get()

    def write_as_host() -> set[int]:
        log.write_as_host(_OTHERS)
        return log.get()

    exactly("after loads", read, ())
    exactly("after stores of the VMM", write_as_host, ())


def off_and_on(log: Logged) -> None:
    """Without its flag a slot has no log (ENOENT); with the flag set again there is an empty one that works."""
    log.log()
    log.write(_SOME)
    log.log(on=False)
    refused("the log of a slot without the flag", errno.ENOENT, log.get)
    log.write(_OTHERS)

    def anew() -> set[int]:
        log.log(on=False)
        log.log()
        return log.get()

    exactly("the log that begins anew", anew, ())
    exactly("stores after that", lambda: log.write_and_get(_OTHERS), _OTHERS)


def malformed_gets(log: Logged) -> None:
    """A slot without a log or that does not exist is ENOENT, an address space that does not exist EINVAL."""
    spaces = _address_spaces(log)
    refused("a slot whose flag was never set", errno.ENOENT, log.get)
    log.log()
    log.write(_SOME)
    refused("a slot that does not exist", errno.ENOENT, get_dirty_log, log.vm, log.slot + 1, log.pages)
    refused("address space 0xffff", errno.EINVAL, get_dirty_log, log.vm, 0xFFFF << 16 | log.slot, log.pages)
    refused(f"address space {spaces}", errno.EINVAL, get_dirty_log, log.vm, spaces << 16 | log.slot, log.pages)
    refused("slot 0xffff", errno.EINVAL, get_dirty_log, log.vm, 0xFFFF, log.pages)
    equal("written pages that the refusals took from the log", sorted(set(_SOME) - log.get()), [])


def keeps_until_cleared(log: Logged) -> None:
    """With manual protection KVM_GET_DIRTY_LOG changes nothing; KVM_CLEAR_DIRTY_LOG empties the log and arms it."""
    succeeds("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", manual_protection, log.vm, _ENABLE)
    log.log()

    def attempt() -> set[int]:
        log.clear(0, log.pages, range(log.pages))
        return log.write_and_get(_SOME)

    exactly("stores", attempt, _SOME)
    equal("written pages that are not in the log when it is read again", sorted(set(_SOME) - log.get()), [])
    log.write(_OTHERS)
    both = {*_SOME, *_OTHERS}
    equal("pages written before and after it was read that are not in the log", sorted(both - log.get()), [])

    def cleared() -> set[int]:
        succeeds("KVM_CLEAR_DIRTY_LOG", log.clear, 0, log.pages, range(log.pages))
        return log.get()

    exactly("cleared", cleared, ())
    exactly("stores after it was cleared", attempt, _SOME)


def clears_a_range(log: Logged) -> None:
    """KVM_CLEAR_DIRTY_LOG clears the bits that are set in its bitmap, within its range and nowhere else."""
    manual_protection(log.vm, _ENABLE)
    log.log()
    pages = range(0, log.pages, 9)
    odd = [page for page in pages if page % 2]
    for what, first, count, named in (
        ("no bits", 0, log.pages, []),
        ("the second word", 64, 64, range(64, 128)),
        ("every second page", 0, log.pages, odd),
        ("the last word", 128, log.pages - 128, range(128, log.pages)),
        ("no pages", 64, 0, []),
    ):  # fmt: skip

        def attempt() -> set[int]:
            log.write(pages)
            succeeds(f"clearing {what}", log.clear, first, count, named)  # noqa: B023
            return log.get()

        exactly(f"what is left when {what} was cleared", attempt, set(pages) - set(named))
    exactly("what is cleared is logged again", lambda: log.write_and_get(range(64, 128)), {*pages, *range(64, 128)})


def malformed_clears(log: Logged) -> None:
    """A range that begins or, before the slot's end, ends within a word is EINVAL, as is one beyond the slot."""
    manual_protection(log.vm, _ENABLE)
    refused("a slot without the flag", errno.ENOENT, log.clear, 0, log.pages, ())
    log.log()
    log.write(_SOME)
    everything, spaces = range(log.pages), _address_spaces(log)
    for what, first, count in (
        ("from page 1", 1, log.pages - 1),
        ("from page 63", 63, 64),
        ("32 pages", 0, 32),
        ("65 pages", 0, 65),
        ("a page more than there are", 0, log.pages + 1),
        ("a word beyond the slot", 192, 64),
        ("from a word beyond the slot on", 192, 0),
        ("as many as fit into 32 bits", 64, (1 << 32) - 64),
    ):
        named = [page for page in everything if first <= page < first + min(count, 128)]
        refused(f"clearing {what}", errno.EINVAL, log.clear, first, count, named)
    for what, slot, number in (
        ("a slot that does not exist", log.slot + 1, errno.ENOENT),
        ("slot 0xffff", 0xFFFF, errno.EINVAL),
        (f"address space {spaces}", spaces << 16 | log.slot, errno.EINVAL),
    ):
        refused(f"clearing {what}", number, clear_dirty_log, log.vm, slot, 0, log.pages, everything)
    equal("written pages that refused calls took from the log", sorted(set(_SOME) - log.get()), [])


def initially_set(log: Logged) -> None:
    """With KVM_DIRTY_LOG_INITIALLY_SET a new log has every page of its slot, and stores once it is cleared."""
    succeeds("KVM_DIRTY_LOG_INITIALLY_SET", manual_protection, log.vm, _ENABLE | _INITIALLY_SET)
    log.log()
    equal("pages of the slot that are not in the log", sorted(set(range(log.pages)) - log.get()), [])
    equal("pages beyond the slot that are in the log", sorted(log.get() - set(range(log.pages))), [])

    def attempt() -> set[int]:
        log.clear(0, log.pages, range(log.pages))
        return log.write_and_get(_SOME)

    exactly("stores after it was cleared", attempt, _SOME)


def manual_options(log: Logged, offered: int) -> None:
    """The capability takes the options that it reports; INITIALLY_SET alone, and every other, is EINVAL."""
    refused("INITIALLY_SET without ENABLE", errno.EINVAL, manual_protection, log.vm, _INITIALLY_SET)
    for bit in range(64):
        if not offered >> bit & 1:
            refused(f"option {1 << bit:#x}", errno.EINVAL, manual_protection, log.vm, _ENABLE | 1 << bit)
    capability = lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
    refused("flag 1", errno.EINVAL, log.vm.enable_cap, capability, _ENABLE, flags=1)
    log.log()
    exactly("the log, which every read empties", lambda: log.write_and_get(_SOME), _SOME)
    exactly("the log after it was read", log.get, ())
    succeeds("all that is offered", manual_protection, log.vm, offered)
    succeeds("no option", manual_protection, log.vm, 0)


def ring_names_pages(log: Logged, ring: Ring) -> None:
    """An entry of a ring names the slot and the page; after KVM_RESET_DIRTY_RINGS the page makes another entry."""
    log.log()

    def attempt() -> set[int]:
        log.write(_SOME)
        entries = ring.harvest()
        equal("slots in the entries", {slot for slot, _ in entries}, {log.slot})
        equal("entries that KVM_RESET_DIRTY_RINGS gave back", succeeds("the reset", ring.reset), len(entries))
        return {page for _, page in entries}

    exactly("pages in the entries", attempt, _SOME)
    exactly("pages in the entries after a reset", attempt, _SOME)
    equal("entries given back when none was harvested", ring.reset(), 0)


def ring_ignores_others(log: Logged, ring: Ring) -> None:
    """What the guest reads, what the VMM writes, and what is written without the flag, makes no entry."""
    log.log()

    def entries_after(step: Callable[[], object]) -> set[int]:
        step()
        pages = {page for _, page in ring.harvest()}
        ring.reset()
        return pages

    exactly("stores", lambda: entries_after(lambda: log.write(_SOME)), _SOME)
    exactly("loads", lambda: entries_after(lambda: log.read(_SOME)), ())
    exactly("stores of the VMM", lambda: entries_after(lambda: log.write_as_host(_SOME)), ())
    log.log(on=False)
    exactly("stores to a slot without the flag", lambda: entries_after(lambda: log.write(_OTHERS)), ())
    log.log()
    exactly("stores to a slot with the flag again", lambda: entries_after(lambda: log.write(_OTHERS)), _OTHERS)


def full_ring_stops(log: Logged, ring: Ring) -> None:
    """A vCPU whose ring is full leaves with KVM_EXIT_DIRTY_RING_FULL, again and again, until the rings are reset.

    The slot has at least as many pages as the ring entries. No page is lost.
    """
    log.log()
    pages = range(log.pages)
    log.guest.prepare("dirty", *log.parameters(pages, 8), privilege=log.guest.USER)
    full, seen, filled = Unsupported(lib.KVM_EXIT_DIRTY_RING_FULL), set(), 0
    while True:
        exit = log.run()
        if log.guest.event(exit) == log.guest.DONE:
            break
        equal("how a vCPU leaves that fills its ring", exit, full)
        filled += 1
        entries = ring.harvest()
        true("entries of a full ring", 0 < len(entries) <= ring.size, len(entries), f"1 to {ring.size}")
        seen |= {page for _, page in entries}
        equal("how a vCPU leaves whose ring was harvested and not reset", log.run(), full)
        equal("entries that came in that run", ring.harvest(), [])
        equal("entries given back", succeeds("KVM_RESET_DIRTY_RINGS", ring.reset), len(entries))
    seen |= {page for _, page in ring.harvest()}
    true("how often the ring was full", filled > 0, filled, "at least once")
    equal("written pages that made no entry", sorted(set(pages) - seen), [])


def bitmap_refused_beside_rings(log: Logged) -> None:
    """A VM with rings has no bitmaps: KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG are ENXIO."""
    log.log()
    refused("KVM_GET_DIRTY_LOG", errno.ENXIO, log.get)
    refused("KVM_CLEAR_DIRTY_LOG", errno.ENXIO, log.clear, 0, log.pages, range(log.pages))


def ring_sizes(make: Callable[[], VirtualMachine], capability: int) -> None:
    """The bytes of a ring are a power of two, a page at least and as many as reported at most; chosen once, first."""
    vm = make()
    largest = vm.check_extension(capability)
    for what, size, number in (
        ("0 bytes", 0, errno.EINVAL),
        ("no power of two", largest - PAGE_SIZE, errno.EINVAL),
        ("half a page", PAGE_SIZE // 2, errno.EINVAL),
        ("more than reported", 2 * largest, errno.E2BIG),
    ):
        refused(f"a ring of {what}", number, vm.enable_cap, capability, size)
    refused("resetting the rings of a VM without", errno.EINVAL, vm.ioctl_value, lib.KVM_RESET_DIRTY_RINGS)
    succeeds("a ring of the largest size", vm.enable_cap, capability, largest)
    refused("a second choice", errno.EINVAL, vm.enable_cap, capability, largest)
    equal("entries given back by rings of no vCPU", vm.ioctl_value(lib.KVM_RESET_DIRTY_RINGS), 0)
    late = make()
    late.create_vcpu()
    refused("a choice after the first vCPU", errno.EINVAL, late.enable_cap, capability, largest)
