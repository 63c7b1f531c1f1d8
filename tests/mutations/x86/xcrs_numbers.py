# SPDX-License-Identifier: Apache-2.0
"""Lies about other numbers than XCR0's, about what is in use, and about XCR0 of 32-bit guests."""

from __future__ import annotations

import errno

from tests.mutations.lies import Shared, after, after_entry, before, given, nth, refuse, toggle
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import xcr0_reads
from tests.mutations.x86.lies import GP, UD, faults
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86 import own
from vmm.x86.boot import CR4_OSXSAVE

GET, SET = "KVM_GET_XCRS", "KVM_SET_XCRS"


def _first(call: Call) -> int:
    """The number of the first register that is set."""
    return int(call.argument.xcrs[0].xcr)


lies(
    "xcrs.xgetbv-other-numbers",
    xgetbv_of_xcr2_works=lambda: after_entry("xgetbv", faults(0, GP), when=given(2)),
    xgetbv_of_the_highest_number_works=lambda: after_entry("xgetbv", faults(0, GP), when=given(0xFFFFFFFF)),
    xgetbv_of_xcr8_is_ud=lambda: after_entry("xgetbv", faults(1, UD), when=given(8)),
    xgetbv_of_xcr0_faults=lambda: after_entry("xgetbv", faults(1, GP), when=given(0)),
)

lies(
    "xcrs.xsetbv-other-numbers",
    xsetbv_of_xcr1_works=lambda: after_entry("xsetbv", faults(0, GP), when=given(1)),
    xsetbv_of_the_highest_number_works=lambda: after_entry("xsetbv", faults(0, GP), when=given(0xFFFFFFFF)),
    xsetbv_of_xcr2_is_ud=lambda: after_entry("xsetbv", faults(1, UD), when=given(2)),
    a_faulting_xsetbv_of_another_number_changes_xcr0=lambda: xcr0_reads(3, 0),
)


def _in_use(change: int, keep: int = -1) -> Interposer:
    def spoil(guest: Shared) -> None:
        guest.set("values", guest.get("values") & keep | change)

    return after_entry("xinuse", spoil, payload="xstate")


lies(
    "xcrs.xgetbv-in-use",
    sse_is_never_in_use=lambda: _in_use(0, ~2),
    what_xcr0_lacks_is_in_use=lambda: _in_use(1 << 62),
    x87_is_never_in_use=lambda: _in_use(0, ~1),
    xcr0_cannot_be_set_to_less=lambda: refuse(SET, errno.EINVAL, nth(2)),
)

lies(
    "xcrs.set-other-numbers",
    other_registers_are_refused=lambda: refuse(SET, errno.EINVAL, lambda call: _first(call) == 0xFFFFFFFF),
    other_registers_before_xcr0_are_refused=lambda: refuse(
        SET, errno.EINVAL, lambda call: _first(call) == 2 and call.argument.nr_xcrs == 2
    ),
    other_registers_are_taken_for_xcr0=lambda: before(
        SET, lambda call: setattr(call.argument.xcrs[0], "xcr", 0), lambda call: _first(call) == 63
    ),
    an_entry_beyond_nr_xcrs_counts=lambda: before(
        SET, toggle("nr_xcrs", 3), lambda call: _first(call) == 1 and call.argument.xcrs[0].reserved != 0
    ),
    padding_that_is_not_0_is_refused=lambda: refuse(SET, errno.EINVAL, lambda call: call.argument.padding[15] != 0),
    the_reserved_field_is_kept=lambda: after(
        GET, lambda call: setattr(call.argument.xcrs[0], "reserved", 0xA5A5A5A5), nth(22)
    ),
)


@mutation("xcrs.set-other-numbers")
def another_register_shows_afterwards() -> Interposer:
    def change(call: Call) -> None:
        call.argument.nr_xcrs = 2
        call.argument.xcrs[1].xcr = 1

    return after(GET, change)


def _protected(entry: str, change: int) -> Interposer:
    """XGETBV of a 32-bit guest reads another value."""
    return after_entry(entry, lambda guest: guest.set("values", guest.get("values") ^ change), payload="protected")


lies(
    "xcrs.32-bit",
    "xcrs.32-bit-tiles",
    a_32_bit_guest_reads_another_xcr0=lambda: _protected("xgetbv32", 4),
    a_32_bit_guest_reads_an_upper_half=lambda: _protected("xgetbv32", 1 << 40),
    xsetbv_of_a_32_bit_guest_is_ignored=lambda: after_entry(
        "xsetbv32", lambda guest: guest.set("values", 1), payload="protected"
    ),
    xsetbv_of_a_32_bit_guest_stays_unknown_to_kvm=lambda: xcr0_reads(1),
    a_32_bit_guest_does_not_get_osxsave=lambda: before(
        "KVM_SET_SREGS", toggle("cr4", CR4_OSXSAVE), lambda call: not call.argument.efer
    ),
)

lies(
    "xcrs.two-guests-same-cpu",
    the_second_guest_reads_the_firsts_xcr0=lambda: after_entry("xgetbv", lambda guest: guest.set("values", 0xE7)),
    a_guest_reads_the_xcr0_of_the_one_before=lambda: after_entry("xgetbv", lambda guest: guest.set("values", 3)),
)


@mutation("xcrs.two-guests-same-cpu")
def the_vmm_is_left_with_the_guests_xcr0() -> Interposer:
    """XGETBV of the VMM passes no door of ours, so the answer is changed where it arrives."""
    honest, turns = own.own_xcr0, iter(range(1, 1 << 30))
    own.own_xcr0 = lambda: honest() ^ (4 if next(turns) > 2 else 0)
    return lambda call, proceed: proceed()
