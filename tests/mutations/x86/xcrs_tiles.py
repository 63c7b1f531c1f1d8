# SPDX-License-Identifier: Apache-2.0
"""Lies about XCR0 of a guest that may use tiles."""

from __future__ import annotations

import errno

from tests.mutations.lies import Condition, accept, after_entry, drift, given, on_refusal, refuse
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import xcr0_of, xcr0_reads
from tests.mutations.x86.lies import GP, UD, faults
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer

SET, TILECFG, TILEDATA = "KVM_SET_XCRS", 1 << 17, 1 << 18
XTILE = TILECFG | TILEDATA


def _tiles(*parts: int) -> Condition:
    """Met by a value with just these of the tile components."""
    return lambda call: xcr0_of(call) & XTILE in parts


def _set_now(call: Call) -> None:
    row = {"nr_xcrs": 1, "flags": 0, "xcrs": [(0, 0, 3)]}
    lib.vmm_ioctl(call.fd, lib.KVM_SET_XCRS, ffi.new("struct kvm_xcrs *", row))


def _xsetbv(part: int, number: int, vector: int = GP) -> Interposer:
    return after_entry("xsetbv", faults(number, vector), when=given(0, 3 | part))


lies(
    "xcrs.rules-with-tiles",
    the_configuration_may_come_alone=lambda: accept(SET, _tiles(TILECFG)),
    tile_data_may_come_alone=lambda: accept(SET, _tiles(TILEDATA)),
    both_together_are_refused=lambda: refuse(SET, errno.EINVAL, _tiles(XTILE)),
    half_a_tile_is_eperm=lambda: drift(SET, errno.EPERM, _tiles(TILEDATA)),
    a_refused_half_changes_xcr0=lambda: on_refusal(SET, _set_now),
    xcr0_loses_its_tiles=lambda: xcr0_reads(0, ~XTILE),
    the_guest_may_set_the_configuration_alone=lambda: _xsetbv(TILECFG, 0),
    the_guest_may_set_tile_data_alone=lambda: _xsetbv(TILEDATA, 0),
    the_guest_may_not_set_both=lambda: _xsetbv(XTILE, 1),
    the_guest_may_not_leave_them_out=lambda: _xsetbv(0, 1),
    half_a_tile_is_ud_for_the_guest=lambda: _xsetbv(TILEDATA, 1, UD),
)

lies(
    "xcrs.half-a-tile-offered",
    what_is_offered_may_be_enabled_alone=lambda: accept(SET, _tiles(TILECFG)),
    tile_data_needs_no_cpuid=lambda: accept(SET, _tiles(TILEDATA)),
    both_need_no_cpuid=lambda: accept(SET, _tiles(XTILE)),
    what_is_not_offered_is_eperm=lambda: drift(SET, errno.EPERM, _tiles(XTILE)),
    the_refusals_change_xcr0=lambda: on_refusal(SET, _set_now),
)
