# SPDX-License-Identifier: Apache-2.0
"""Lies about XCR0."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import (
    Condition,
    Shared,
    accept,
    after,
    after_entry,
    before,
    drift,
    given,
    kvm_table,
    offered,
    on_refusal,
    once,
    refuse,
    toggle,
)
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import offers, xcr0_of, xcr0_reads
from tests.mutations.x86.lies import GP, UD, faults
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.boot import CR4_OSXSAVE

GET, SET, SET_SREGS, SET_CPUID = "KVM_GET_XCRS", "KVM_SET_XCRS", "KVM_SET_SREGS", "KVM_SET_CPUID2"


def _set_now(fd: int, value: int) -> None:
    """Set XCR0 behind the clause's back."""
    row = {"nr_xcrs": 1, "flags": 0, "xcrs": [(0, 0, value)]}
    lib.vmm_ioctl(fd, lib.KVM_SET_XCRS, ffi.new("struct kvm_xcrs *", row))


def _value(*values: int) -> Condition:
    return lambda call: xcr0_of(call) in values


lies(
    "xcrs.fresh",
    xcr0_of_a_fresh_vcpu_has_sse=lambda: xcr0_reads(3),
    a_fresh_vcpu_has_two_control_registers=lambda: after(GET, toggle("nr_xcrs", 3)),
    the_flags_are_not_0=lambda: after(GET, toggle("flags", 1)),
)


@mutation("xcrs.fresh")
def the_register_is_called_xcr1() -> Interposer:
    def change(call: Call) -> None:
        call.argument.xcrs[0].xcr = 1

    return after(GET, change)


lies("xcrs.rules", "xcrs.needs-cpuid-first", "mig.cpuid-first", every_value_is_accepted=lambda: accept(SET))

lies(
    "xcrs.rules",
    x87_may_be_left_out=lambda: accept(SET, lambda call: not xcr0_of(call) & 1),
    avx_may_come_without_sse=lambda: accept(SET, lambda call: xcr0_of(call) & 6 == 4 or not offered() & 4),
    the_upper_half_of_the_value_is_dropped=lambda: accept(SET, lambda call: bool(xcr0_of(call) >> 32)),
)


@mutation("xcrs.rules")
def a_component_that_is_not_offered_is_accepted() -> Interposer:
    table = kvm_table().xcr0
    return accept(SET, lambda call: bool(xcr0_of(call) & 0xFFFFFFFF & ~table))


lies(
    "xcrs.rules",
    all_that_is_offered_is_refused_together=lambda: refuse(SET, errno.EINVAL, _value(kvm_table().xcr0)),
)

lies(
    "xcrs.rules",
    "xcrs.needs-cpuid-first",
    "mig.cpuid-first",
    a_value_that_is_not_valid_is_eperm=lambda: drift(SET, errno.EPERM),
)

lies(
    "xcrs.rules",
    sse_is_lost_from_xcr0=lambda: xcr0_reads(0, ~2),
    a_refused_value_is_taken=lambda: once(SET, xcr0_reads(7), refused=True),
)

lies(
    "xcrs.malformed",
    a_seventeenth_register_is_dropped=lambda: accept(SET, lambda call: bool(call.argument.nr_xcrs > 16)),
    flags_are_ignored=lambda: accept(SET, lambda call: bool(call.argument.flags)),
    flags_are_eperm=lambda: drift(SET, errno.EPERM, lambda call: bool(call.argument.flags)),
    no_register_is_refused=lambda: refuse(SET, errno.EINVAL, lambda call: not call.argument.nr_xcrs),
    no_register_enables_all_that_is_offered=lambda: once(
        SET, xcr0_reads(7), when=lambda call: not call.argument.nr_xcrs
    ),
    no_register_resets_xcr0=lambda: after(
        SET, lambda call: _set_now(call.fd, 1), lambda call: not call.argument.nr_xcrs
    ),
    a_refused_register_is_taken=lambda: on_refusal(
        SET, lambda call: _set_now(call.fd, int(call.argument.xcrs[0].value))
    ),
)


@mutation("xcrs.malformed")
def xcr1_is_taken_for_xcr0() -> Interposer:
    def change(call: Call) -> None:
        call.argument.xcrs[0].xcr = 0

    return before(SET, change, lambda call: bool(call.argument.nr_xcrs == 1))


lies(
    "xcrs.malformed",
    xcr1_is_refused=lambda: refuse(SET, errno.EINVAL, lambda call: bool(call.argument.xcrs[0].xcr)),
)


@mutation("xcrs.malformed")
def the_last_entry_for_xcr0_counts() -> Interposer:
    def change(call: Call) -> None:
        registers = call.argument.xcrs
        last = max(n for n in range(call.argument.nr_xcrs) if registers[n].xcr == 0)
        first = min(n for n in range(call.argument.nr_xcrs) if registers[n].xcr == 0)
        registers[first].value = registers[last].value

    return before(SET, change, lambda call: 1 < call.argument.nr_xcrs <= 16)


lies(
    "xcrs.malformed",
    sixteen_registers_are_refused=lambda: refuse(SET, errno.EINVAL, lambda call: bool(call.argument.nr_xcrs == 16)),
)

lies("xcrs.needs-cpuid-first", before_cpuid_nothing_is_accepted=lambda: refuse(SET, errno.EINVAL, _value(1)))

lies(
    "xcrs.needs-cpuid-first",
    "mig.cpuid-first",
    cpuid_does_not_change_what_is_accepted=lambda: once(SET_CPUID, refuse(SET, errno.EINVAL)),
)

lies("xcrs.no-osxsave-needed", xcr0_cannot_be_set_without_osxsave=lambda: refuse(SET, errno.EINVAL))


@mutation("xcrs.no-osxsave-needed")
def clearing_osxsave_resets_xcr0() -> Interposer:
    cleared = once(SET_SREGS, xcr0_reads(1), when=lambda call: not call.argument.cr4 & CR4_OSXSAVE)
    return once(SET_SREGS, cleared)


lies(
    "xcrs.no-osxsave-needed",
    setting_osxsave_loses_avx=lambda: once(
        SET_SREGS, xcr0_reads(0, ~4), when=lambda call: bool(call.argument.cr4 & CR4_OSXSAVE)
    ),
)

lies("xcrs.stale-after-cpuid", a_narrower_table_shrinks_xcr0=lambda: once(SET, once(SET_CPUID, xcr0_reads(1))))


@mutation("xcrs.stale-after-cpuid")
def a_table_below_xcr0_is_refused() -> Interposer:
    full = offered()
    return once(SET, refuse(SET_CPUID, errno.EINVAL, lambda call: bool(full & ~offers(call))))


lies(
    "xcrs.guest-equals-host",
    the_guests_xgetbv_reads_a_stale_value=lambda: after_entry("xgetbv", lambda guest: guest.set("values", 1)),
    the_guests_xsetbv_stays_unknown_to_kvm=lambda: xcr0_reads(1),
)

lies(
    "xcrs.guest-equals-host",
    "xcrs.xsetbv-rules",
    a_valid_xsetbv_faults=lambda: after_entry(
        "xsetbv", faults(1, GP), when=lambda guest: guest.get("params", 1) == 3
    ),
)

lies("xcrs.guest-equals-host", xgetbv_faults_at_cpl3=lambda: after_entry("xgetbv", faults(1, GP)))

lies(
    "xcrs.xsetbv-cpl-ud",
    xsetbv_without_osxsave_is_gp=lambda: after_entry("xsetbv", lambda guest: guest.set("vector", GP)),
    every_fault_of_xsetbv_is_ud=lambda: after_entry("xsetbv", lambda guest: guest.set("vector", UD)),
    xsetbv_works_at_cpl3=lambda: after_entry("xsetbv", faults(0, GP), when=lambda guest: guest.user),
    xsetbv_of_xcr1_is_ignored=lambda: after_entry("xsetbv", faults(0, GP), when=given(1)),
    the_upper_half_of_rcx_counts=lambda: after_entry(
        "xsetbv", faults(1, GP), when=lambda guest: bool(guest.get("params") >> 32)
    ),
    xsetbv_with_an_upper_half_of_rcx_does_nothing=lambda: xcr0_reads(1),
    a_faulting_xsetbv_at_cpl3_takes_effect=lambda: after_entry(
        "xsetbv", lambda guest: _set_now(guest.vcpu, 3), when=lambda guest: guest.user
    ),
    a_faulting_xsetbv_of_xcr1_changes_xcr0=lambda: after_entry(
        "xsetbv", lambda guest: _set_now(guest.vcpu, 3), when=given(1)
    ),
)


def _xsetbv(value: int, change: Callable[[Shared], None]) -> Interposer:
    return after_entry("xsetbv", change, when=lambda guest: guest.get("params", 1) == value)


lies(
    "xcrs.xsetbv-rules",
    the_guest_may_leave_x87_out=lambda: _xsetbv(2, faults(0, GP)),
    the_guest_may_enable_avx_without_sse=lambda: _xsetbv(5, faults(0, GP)),
    the_guest_may_enable_half_of_the_tile_components=lambda: _xsetbv(1 << 17 | 7, faults(0, GP)),
    an_invalid_xsetbv_is_ud=lambda: _xsetbv(0, faults(1, UD)),
    # After the guest's fault, XCR0 really changes.
    an_invalid_xsetbv_takes_effect=lambda: _xsetbv(5, lambda guest: _set_now(guest.vcpu, 3)),
)
