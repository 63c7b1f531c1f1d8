# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_SET_CPUID2: what is taken, what is refused, what KVM keeps up to date."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import (
    RUN,
    Condition,
    Proceed,
    Shared,
    accept,
    after,
    after_entry,
    answer,
    assign,
    before,
    drift,
    offered,
    once,
    refuse,
    top_component,
)
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import (
    MXCSR,
    XMM3,
    area,
    change_entry,
    entry,
    flip,
    flip_now,
    leaf,
    lengthen,
    offers,
    place,
    put,
    rows,
    shorten,
    spoil,
    top_byte,
    without_bits,
    xsave_lie,
)
from tests.mutations.x86.lies import GP, faults, in_cet_guest
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import LEGACY_SIZE

SET, GET = "KVM_SET_CPUID2", "KVM_GET_CPUID2"
TILE_CONFIGURATION, TILES = 1 << 17, 1 << 18


def _with_tiles(call: Call) -> bool:
    """Met by a table that offers tile data."""
    return bool(offers(call) & TILES)


lies(
    "setcpuid.perm-eperm",
    tile_data_needs_no_permission=lambda: answer(SET, 0, _with_tiles),
    tile_data_without_permission_is_einval=lambda: drift(SET, errno.EINVAL),
)

lies(
    "setcpuid.only-0xd0-matters",
    amx_tile_needs_permission=lambda: refuse(SET, errno.EPERM, lambda call: bool(leaf(call, 7)[3] >> 24 & 1)),
    xfd_needs_permission=lambda: refuse(SET, errno.EPERM, lambda call: bool(leaf(call, 0xD, 1)[0] >> 4 & 1)),
    the_tile_configuration_needs_permission=lambda: refuse(
        SET, errno.EPERM, lambda call: bool(offers(call) & TILE_CONFIGURATION)
    ),
)

lies(
    "setcpuid.failure-keeps-old",
    an_address_width_of_52_bits_is_accepted=lambda: accept(SET),
    a_refused_table_is_taken_in_part=lambda: once(
        SET, after(GET, change_entry(1, eax=lambda value: 0)), refused=True
    ),
)


def _rotate(call: Call) -> None:
    """Put the first entry behind the last one."""
    table = rows(call)
    for number, row in enumerate([*table[1:], table[0]]):
        found = call.argument.entries[number]
        found.function, found.index, found.flags, found.eax, found.ebx, found.ecx, found.edx = row


lies(
    "setcpuid.failure-keeps-old",
    a_refused_table_reorders_the_old_one=lambda: once(SET, after(GET, _rotate), refused=True),
    a_refused_table_leaves_none=lambda: once(SET, after(GET, assign("nent", 0)), refused=True),
)

lies(
    "setcpuid.expands-buffer",
    "xsave.size.cap-equals-written",
    the_area_is_64_bytes_too_short=lambda: xsave_lie(shorten(64)),
    the_area_is_one_byte_too_long=lambda: xsave_lie(lengthen(1)),
)


def cut(call: Call) -> None:
    view = area(call)
    view[LEGACY_SIZE:] = bytes(view[-1:]) * (len(view) - LEGACY_SIZE)


lies("setcpuid.expands-buffer", the_area_stays_4096_bytes=lambda: xsave_lie(cut))

lies(
    "setcpuid.buffer-not-expanded-without-tile",
    permission_alone_enlarges_the_area=lambda: xsave_lie(lengthen(6912)),
    permission_alone_ends_kvm_get_xsave=lambda: refuse("KVM_GET_XSAVE", errno.EINVAL),
)


def _late(kind: Callable[[list[tuple[int, ...]], list[tuple[int, ...]]], bool], verdict: int) -> Interposer:
    """Answer KVM_SET_CPUID2 with ``verdict`` after a run if ``kind(table that is set, new table)``."""
    known: list[tuple[int, ...]] = []
    ran = False

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal ran
        if call.name == SET and ran and kind(known, rows(call)):
            return verdict
        result = proceed()
        ran = ran or call.kind == RUN
        if call.name == GET and result >= 0:
            known[:] = rows(call)
        return result

    return interposer


lies(
    "setcpuid.after-run",
    the_identical_table_is_refused_after_a_run=lambda: _late(lambda old, new: old == new, -errno.EINVAL),
    another_value_is_accepted_after_a_run=lambda: _late(
        lambda old, new: old != new and len(old) == len(new) and sorted(old) != sorted(new), 0
    ),
    another_order_is_accepted_after_a_run=lambda: _late(
        lambda old, new: old != new and sorted(old) == sorted(new), 0
    ),
    a_shorter_table_is_accepted_after_a_run=lambda: _late(lambda old, new: len(new) < len(old), 0),
    a_longer_table_is_accepted_after_a_run=lambda: _late(lambda old, new: len(new) > len(old), 0),
    another_table_after_a_run_is_ebusy=lambda: drift(SET, errno.EBUSY),
    a_table_refused_after_a_run_is_taken=lambda: once(
        SET, after(GET, change_entry(0xD, eax=lambda value: value ^ 4)), refused=True
    ),
    a_table_refused_after_a_run_reorders_the_old_one=lambda: once(SET, after(GET, _rotate), refused=True),
)


def _length(number: int) -> Condition:
    return lambda call: bool(call.argument.nent == number)


lies(
    "setcpuid.e2big",
    entries_beyond_256_are_dropped=lambda: accept(SET, _length(257)),
    entries_beyond_256_are_einval=lambda: drift(SET, errno.EINVAL, _length(257)),
    entry_256_is_one_too_many=lambda: refuse(SET, errno.E2BIG, _length(256)),
    a_table_of_256_entries_is_not_kept=lambda: answer(SET, 0, _length(256)),
    an_empty_table_is_refused=lambda: refuse(SET, errno.EINVAL, _length(0)),
    an_empty_table_changes_nothing=lambda: answer(SET, 0, _length(0)),
)


def _width(bits: int) -> Condition:
    return lambda call: leaf(call, 0x80000008)[0] >> 8 & 0xFF == bits


lies(
    "setcpuid.vaddr-bits",
    virtual_addresses_may_have_52_bits=lambda: accept(SET, _width(52)),
    virtual_addresses_may_have_255_bits=lambda: accept(SET, _width(255)),
    virtual_addresses_of_57_bits_are_refused=lambda: refuse(SET, errno.EINVAL, _width(57)),
    an_address_width_of_57_bits_is_not_kept=lambda: answer(SET, 0, _width(57)),
    an_address_width_of_0_is_refused=lambda: refuse(SET, errno.EINVAL, _width(0)),
    a_wrong_address_width_is_e2big=lambda: drift(SET, errno.E2BIG),
)


@mutation("setcpuid.dup-entry-first-wins")
def the_last_duplicate_wins() -> Interposer:
    def change(call: Call) -> None:
        table = [call.argument.entries[number] for number in range(call.argument.nent)]
        first, last = (found for found in table if (found.function, found.index) == (0xD, 0))
        first.eax, last.eax = last.eax, first.eax

    return before(SET, change)


lies(
    "setcpuid.dup-entry-first-wins",
    "setcpuid.mask-honoured",
    hidden_components_can_be_enabled=lambda: accept("KVM_SET_XCRS"),
    xcr0_beyond_the_table_is_eperm=lambda: drift("KVM_SET_XCRS", errno.EPERM),
)


@mutation("setcpuid.mask-honoured")
def the_table_offers_everything_again() -> Interposer:
    full = offered()
    return after(GET, change_entry(0xD, eax=lambda value: value | full))


lies("setcpuid.mask-honoured", nothing_of_a_masked_table_can_be_enabled=lambda: refuse("KVM_SET_XCRS", errno.EINVAL))


@mutation("setcpuid.runtime-size-0xd0")
def the_size_in_use_is_always_the_maximal_one() -> Interposer:
    def change(call: Call) -> None:
        entry(call, 0xD).ebx = entry(call, 0xD).ecx

    return after(GET, change)


@mutation("setcpuid.runtime-size-0xd0")
def the_size_in_use_follows_one_xcr0_late() -> Interposer:
    sizes = [576]

    def change(call: Call) -> None:
        sizes.append(entry(call, 0xD).ebx)
        entry(call, 0xD).ebx = sizes[-2]

    return after(GET, change)


@mutation("setcpuid.runtime-size-0xd0")
def the_maximal_size_follows_xcr0() -> Interposer:
    def change(call: Call) -> None:
        entry(call, 0xD).ecx = entry(call, 0xD).ebx

    return after(GET, change)


lies(
    "setcpuid.runtime-size-0xd0",
    the_guest_sees_a_stale_size_in_use=lambda: after_entry("cpuid", lambda guest: guest.set("values", 0x240 + 64, 1)),
    the_guest_sees_another_maximal_size=lambda: after_entry("cpuid", lambda guest: guest.set("values", 4096, 2)),
)


@mutation("setcpuid.osxsave-ospke-mirror")
def osxsave_is_what_userspace_wrote() -> Interposer:
    written = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal written
        if call.name == SET:
            written = leaf(call, 1)[2] & 1 << 27
        result = proceed()
        if call.name == GET and result >= 0:
            entry(call, 1).ecx = entry(call, 1).ecx & ~(1 << 27) | written
        return result

    return interposer


lies(
    "setcpuid.osxsave-ospke-mirror",
    osxsave_is_never_shown=lambda: after(GET, change_entry(1, ecx=lambda value: value & ~(1 << 27))),
)


@mutation("setcpuid.osxsave-ospke-mirror")
def the_guest_does_not_see_osxsave() -> Interposer:
    def change(guest: Shared) -> None:
        guest.set("values", guest.get("values", 2) & ~(1 << 27), 2)

    return after_entry("cpuid", change)


lies(
    "setcpuid.buffer-sticky",
    the_area_shrinks_with_the_table=lambda: once(SET, once(SET, xsave_lie(cut))),
    hidden_tile_data_stays_in_xstate_bv=lambda: once(SET, once(SET, xsave_lie(put(514, 0x04, 1)))),
    the_hidden_tile_configuration_stays_in_xstate_bv=lambda: once(SET, once(SET, xsave_lie(put(514, 0x02, 1)))),
    kvm_get_xsave_cuts_the_area_off=lambda: answer("KVM_GET_XSAVE", 0),
    a_byte_of_hidden_tile_data_stays_in_the_area=lambda: once(
        SET, once(SET, xsave_lie(flip(place(XFeature.XTILEDATA, 8191))))
    ),
    the_hidden_tile_configuration_stays_in_the_area=lambda: once(
        SET, once(SET, xsave_lie(flip(place(XFeature.XTILECFG))))
    ),
)


def _at_each_table(change: Callable[[int], object]) -> Interposer:
    """Spoil the vCPU's real state at each table."""
    return after(SET, lambda call: change(call.fd))


@mutation("setcpuid.keeps-xsave")
def a_narrower_table_drops_what_it_hides() -> Interposer:
    def change(view: memoryview) -> None:
        view[512] &= 3

    return once("KVM_SET_XSAVE", _at_each_table(lambda fd: spoil(fd, change)))


lies(
    "setcpuid.keeps-xsave",
    a_table_changes_one_byte_of_a_vector_register=lambda: once(
        "KVM_SET_XSAVE", once(SET, _at_each_table(flip_now(top_byte(), 0x80)))
    ),
    a_component_is_missing_from_xstate_bv_after_two_tables=lambda: once(
        SET, once(SET, xsave_lie(without_bits(1 << top_component())))
    ),
    a_table_changes_one_byte_of_xmm3=lambda: once(SET, once(SET, xsave_lie(flip(XMM3)))),
    tables_reset_mxcsr=lambda: once(SET, once(SET, xsave_lie(put(MXCSR, 0x1F80, 4)))),
)


def _compacted_size(said: Callable[[list[int]], int]) -> Interposer:
    """Lie about the compacted size, given the true sizes so far."""
    sizes: list[int] = []

    def change(call: Call) -> None:
        found = entry(call, 0xD, 1)
        sizes.append(found.ebx)
        found.ebx = said(sizes)

    return after(GET, change)


def _short_of_supervisor_cet(sizes: list[int]) -> int:
    return sizes[-1] - (8 if sizes[-1] > sorted(set(sizes))[:2][-1] else 0)


lies(
    "setcpuid.runtime-size-0xd1",
    the_compacted_size_does_not_follow_ia32_xss=lambda: _compacted_size(lambda sizes: sizes[0]),
    the_compacted_size_never_shrinks=lambda: _compacted_size(max),
    the_compacted_size_is_8_bytes_short_with_supervisor_cet=lambda: _compacted_size(_short_of_supervisor_cet),
)


@mutation("setcpuid.runtime-size-0xd1")
def the_guest_cannot_set_ia32_xss() -> Interposer:
    def matches(guest: Shared) -> bool:
        return guest.get("params", 1) == 1 << 11

    return in_cet_guest("wrmsr", faults(1, GP), matches)
