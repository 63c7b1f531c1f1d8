# SPDX-License-Identifier: Apache-2.0
"""Lies about XCR0."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import (
    Condition,
    Proceed,
    Shared,
    accept,
    after,
    after_entry,
    before,
    drift,
    kvm_table,
    offered,
    once,
    refuse,
    toggle,
)
from tests.mutations.registry import mutation
from tests.mutations.x86.buffers import offers, xcr0_of
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.boot import CR4_OSXSAVE

GET, SET, SET_SREGS, SET_CPUID = "KVM_GET_XCRS", "KVM_SET_XCRS", "KVM_SET_SREGS", "KVM_SET_CPUID2"
GP, UD = 13, 6


def _read(value: int, mask: int = 0) -> Interposer:
    """Let KVM_GET_XCRS answer with XCR0 & mask | value."""

    def change(call: Call) -> None:
        call.argument.xcrs[0].value = call.argument.xcrs[0].value & mask | value

    return after(GET, change)


def _set_now(fd: int, value: int) -> None:
    """Set XCR0 behind the clause's back."""
    row = {"nr_xcrs": 1, "flags": 0, "xcrs": [(0, 0, value)]}
    lib.vmm_ioctl(fd, lib.KVM_SET_XCRS, ffi.new("struct kvm_xcrs *", row))


def _value(*values: int) -> Condition:
    return lambda call: xcr0_of(call) in values


@mutation("xcrs.fresh")
def xcr0_of_a_fresh_vcpu_has_sse() -> Interposer:
    return _read(3)


@mutation("xcrs.fresh")
def a_fresh_vcpu_has_two_control_registers() -> Interposer:
    return after(GET, toggle("nr_xcrs", 3))


@mutation("xcrs.fresh")
def the_flags_are_not_0() -> Interposer:
    return after(GET, toggle("flags", 1))


@mutation("xcrs.fresh")
def the_register_is_called_xcr1() -> Interposer:
    def change(call: Call) -> None:
        call.argument.xcrs[0].xcr = 1

    return after(GET, change)


@mutation("xcrs.rules", "xcrs.needs-cpuid-first", "mig.cpuid-first")
def every_value_is_accepted() -> Interposer:
    return accept(SET)


@mutation("xcrs.rules")
def x87_may_be_left_out() -> Interposer:
    return accept(SET, lambda call: not xcr0_of(call) & 1)


@mutation("xcrs.rules")
def avx_may_come_without_sse() -> Interposer:
    return accept(SET, lambda call: xcr0_of(call) & 6 == 4 or not offered() & 4)


@mutation("xcrs.rules")
def the_upper_half_of_the_value_is_dropped() -> Interposer:
    return accept(SET, lambda call: bool(xcr0_of(call) >> 32))


@mutation("xcrs.rules")
def a_component_that_is_not_offered_is_accepted() -> Interposer:
    table = kvm_table().xcr0
    return accept(SET, lambda call: bool(xcr0_of(call) & 0xFFFFFFFF & ~table))


@mutation("xcrs.rules")
def all_that_is_offered_is_refused_together() -> Interposer:
    return refuse(SET, errno.EINVAL, _value(kvm_table().xcr0))


@mutation("xcrs.rules", "xcrs.needs-cpuid-first", "mig.cpuid-first")
def a_value_that_is_not_valid_is_eperm() -> Interposer:
    return drift(SET, errno.EPERM)


@mutation("xcrs.rules")
def sse_is_lost_from_xcr0() -> Interposer:
    return _read(0, ~2)


@mutation("xcrs.rules")
def a_refused_value_is_taken() -> Interposer:
    return once(SET, _read(7), refused=True)


@mutation("xcrs.malformed")
def a_seventeenth_register_is_dropped() -> Interposer:
    return accept(SET, lambda call: bool(call.argument.nr_xcrs > 16))


@mutation("xcrs.malformed")
def flags_are_ignored() -> Interposer:
    return accept(SET, lambda call: bool(call.argument.flags))


@mutation("xcrs.malformed")
def flags_are_eperm() -> Interposer:
    return drift(SET, errno.EPERM, lambda call: bool(call.argument.flags))


@mutation("xcrs.malformed")
def no_register_is_refused() -> Interposer:
    return refuse(SET, errno.EINVAL, lambda call: not call.argument.nr_xcrs)


@mutation("xcrs.malformed")
def no_register_enables_all_that_is_offered() -> Interposer:
    return once(SET, _read(7), when=lambda call: not call.argument.nr_xcrs)


@mutation("xcrs.malformed")
def no_register_resets_xcr0() -> Interposer:
    return after(SET, lambda call: _set_now(call.fd, 1), lambda call: not call.argument.nr_xcrs)


@mutation("xcrs.malformed")
def a_refused_register_is_taken() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == SET and result < 0:
            _set_now(call.fd, int(call.argument.xcrs[0].value))
        return result

    return interposer


@mutation("xcrs.malformed")
def xcr1_is_taken_for_xcr0() -> Interposer:
    def change(call: Call) -> None:
        call.argument.xcrs[0].xcr = 0

    return before(SET, change, lambda call: bool(call.argument.nr_xcrs == 1))


@mutation("xcrs.malformed")
def xcr1_is_refused() -> Interposer:
    return refuse(SET, errno.EINVAL, lambda call: bool(call.argument.xcrs[0].xcr))


@mutation("xcrs.malformed")
def the_last_entry_for_xcr0_counts() -> Interposer:
    def change(call: Call) -> None:
        registers = call.argument.xcrs
        last = max(n for n in range(call.argument.nr_xcrs) if registers[n].xcr == 0)
        first = min(n for n in range(call.argument.nr_xcrs) if registers[n].xcr == 0)
        registers[first].value = registers[last].value

    return before(SET, change, lambda call: 1 < call.argument.nr_xcrs <= 16)


@mutation("xcrs.malformed")
def sixteen_registers_are_refused() -> Interposer:
    return refuse(SET, errno.EINVAL, lambda call: bool(call.argument.nr_xcrs == 16))


@mutation("xcrs.needs-cpuid-first")
def before_cpuid_nothing_is_accepted() -> Interposer:
    return refuse(SET, errno.EINVAL, _value(1))


@mutation("xcrs.needs-cpuid-first", "mig.cpuid-first")
def cpuid_does_not_change_what_is_accepted() -> Interposer:
    return once(SET_CPUID, refuse(SET, errno.EINVAL))


@mutation("xcrs.no-osxsave-needed")
def xcr0_cannot_be_set_without_osxsave() -> Interposer:
    return refuse(SET, errno.EINVAL)


@mutation("xcrs.no-osxsave-needed")
def clearing_osxsave_resets_xcr0() -> Interposer:
    cleared = once(SET_SREGS, _read(1), when=lambda call: not call.argument.cr4 & CR4_OSXSAVE)
    return once(SET_SREGS, cleared)


@mutation("xcrs.no-osxsave-needed")
def setting_osxsave_loses_avx() -> Interposer:
    return once(SET_SREGS, _read(0, ~4), when=lambda call: bool(call.argument.cr4 & CR4_OSXSAVE))


@mutation("xcrs.stale-after-cpuid")
def a_narrower_table_shrinks_xcr0() -> Interposer:
    return once(SET, once(SET_CPUID, _read(1)))


@mutation("xcrs.stale-after-cpuid")
def a_table_below_xcr0_is_refused() -> Interposer:
    full = offered()
    return once(SET, refuse(SET_CPUID, errno.EINVAL, lambda call: bool(full & ~offers(call))))


def _faults(count: int, vector: int = GP) -> Callable[[Shared], None]:
    """Change what the handler in the guest counted."""

    def change(guest: Shared) -> None:
        guest.set("values", count, 15)
        guest.set("vector", vector)

    return change


@mutation("xcrs.guest-equals-host")
def the_guests_xgetbv_reads_a_stale_value() -> Interposer:
    return after_entry("xgetbv", lambda guest: guest.set("values", 1))


@mutation("xcrs.guest-equals-host")
def the_guests_xsetbv_stays_unknown_to_kvm() -> Interposer:
    return _read(1)


@mutation("xcrs.guest-equals-host", "xcrs.xsetbv-rules")
def a_valid_xsetbv_faults() -> Interposer:
    return after_entry("xsetbv", _faults(1), when=lambda guest: guest.get("params", 1) == 3)


@mutation("xcrs.guest-equals-host")
def xgetbv_faults_at_cpl3() -> Interposer:
    return after_entry("xgetbv", _faults(1))


@mutation("xcrs.xsetbv-cpl-ud")
def xsetbv_without_osxsave_is_gp() -> Interposer:
    return after_entry("xsetbv", lambda guest: guest.set("vector", GP))


@mutation("xcrs.xsetbv-cpl-ud")
def every_fault_of_xsetbv_is_ud() -> Interposer:
    return after_entry("xsetbv", lambda guest: guest.set("vector", UD))


@mutation("xcrs.xsetbv-cpl-ud")
def xsetbv_works_at_cpl3() -> Interposer:
    return after_entry("xsetbv", _faults(0), when=lambda guest: guest.user)


@mutation("xcrs.xsetbv-cpl-ud")
def xsetbv_of_xcr1_is_ignored() -> Interposer:
    return after_entry("xsetbv", _faults(0), when=lambda guest: guest.get("params") == 1)


@mutation("xcrs.xsetbv-cpl-ud")
def the_upper_half_of_rcx_counts() -> Interposer:
    return after_entry("xsetbv", _faults(1), when=lambda guest: bool(guest.get("params") >> 32))


@mutation("xcrs.xsetbv-cpl-ud")
def xsetbv_with_an_upper_half_of_rcx_does_nothing() -> Interposer:
    return _read(1)


@mutation("xcrs.xsetbv-cpl-ud")
def a_faulting_xsetbv_at_cpl3_takes_effect() -> Interposer:
    return after_entry("xsetbv", lambda guest: _set_now(guest.vcpu, 3), when=lambda guest: guest.user)


@mutation("xcrs.xsetbv-cpl-ud")
def a_faulting_xsetbv_of_xcr1_changes_xcr0() -> Interposer:
    return after_entry("xsetbv", lambda guest: _set_now(guest.vcpu, 3), when=lambda guest: guest.get("params") == 1)


def _xsetbv(value: int, change: Callable[[Shared], None]) -> Interposer:
    return after_entry("xsetbv", change, when=lambda guest: guest.get("params", 1) == value)


@mutation("xcrs.xsetbv-rules")
def the_guest_may_leave_x87_out() -> Interposer:
    return _xsetbv(2, _faults(0))


@mutation("xcrs.xsetbv-rules")
def the_guest_may_enable_avx_without_sse() -> Interposer:
    return _xsetbv(5, _faults(0))


@mutation("xcrs.xsetbv-rules")
def the_guest_may_enable_half_of_the_tile_components() -> Interposer:
    return _xsetbv(1 << 17 | 7, _faults(0))


@mutation("xcrs.xsetbv-rules")
def an_invalid_xsetbv_is_ud() -> Interposer:
    return _xsetbv(0, _faults(1, UD))


@mutation("xcrs.xsetbv-rules")
def an_invalid_xsetbv_takes_effect() -> Interposer:
    """After the guest's fault, XCR0 really changes."""

    return _xsetbv(5, lambda guest: _set_now(guest.vcpu, 3))
