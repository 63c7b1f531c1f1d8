# SPDX-License-Identifier: Apache-2.0
"""Lies about the orders in which a guest with live tiles may be restored."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import Change, after, answer, before, once, refuse
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import (
    XSTATE_BV,
    change_msr,
    flip,
    get_msr_now,
    place,
    sets,
    spoil,
    without_bits,
    xcr0_of,
    xcr0_reads,
)
from tests.mutations.x86.lies import CONFIGURATION, TILES, host_reads, in_tile_guest, tile_byte
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

SET, SET_XCRS, SET_MSRS = "KVM_SET_XSAVE", "KVM_SET_XCRS", "KVM_SET_MSRS"
ARMED, XTILE = 1 << 18, 3 << 17


def _xcr0(call: Call) -> int:
    """The vCPU's XCR0, behind the clause's back."""
    row = ffi.new("struct kvm_xcrs *")
    lib.vmm_ioctl(call.fd, lib.KVM_GET_XCRS, row)
    return int(row.xcrs[0].value)


def _set_area(when: Callable[[Call], bool], change: Change) -> Interposer:
    """A restore loses part of the area, depending on what the vCPU has when it comes."""
    return before(SET, change, when)


def _restored_msr(index: int, value: Callable[[int], int]) -> Interposer:
    return before(SET_MSRS, change_msr(index, value), lambda call: call.argument.nmsrs == 2)


def _costs_tiles(call: Call) -> None:
    """The vCPU loses the tile data that it had been given."""

    def change(view: memoryview) -> None:
        view[XSTATE_BV + 2] &= ~4

    spoil(call.fd, change)


def _names_tiles(call: Call) -> bool:
    return bool(xcr0_of(call) & XTILE)


BOTH = ("mig.order-matrix-tiles", "mig.order-xfd-armed")

lies(
    *BOTH,
    an_area_with_tiles_is_refused_before_xcr0=lambda: refuse(SET, errno.EINVAL, lambda call: not _xcr0(call) & XTILE),
    tiles_are_left_out_before_xcr0_has_them=lambda: _set_area(
        lambda call: not _xcr0(call) & XTILE, without_bits(XTILE)
    ),
    xcr0_takes_no_tiles_any_more=lambda: once("KVM_GET_XSAVE2", before(SET_XCRS, _no_tiles)),
    xfd_is_not_restored=lambda: _restored_msr(Msr.XFD, lambda value: value ^ ARMED),
    the_error_is_not_restored=lambda: _restored_msr(Msr.XFD_ERR, lambda value: 0),
    xcr0_is_read_without_tiles=lambda: xcr0_reads(0, ~XTILE),
    one_byte_of_the_configuration_is_lost=lambda: _set_area(lambda call: True, flip(place(CONFIGURATION, 50))),
    one_byte_of_a_tile_is_lost=lambda: _set_area(lambda call: True, flip(tile_byte(1, 9, 7))),
)

lies(
    "mig.order-matrix-tiles",
    the_saved_area_has_no_tiles=lambda: after("KVM_GET_XSAVE2", without_bits(1 << TILES)),
    xfd_that_comes_last_costs_the_tiles=lambda: after(SET_MSRS, _costs_tiles),
    the_guest_reads_no_error=lambda: in_tile_guest("rdmsr", lambda guest: guest.set("values", 0)),
    xcr0_that_comes_last_costs_the_tiles=lambda: after(SET_XCRS, _costs_tiles, _names_tiles),
)

lies(
    "mig.order-xfd-armed",
    a_disarmed_xfd_still_keeps_tiles_out=lambda: _set_area(lambda call: True, without_bits(1 << TILES)),
    an_armed_xfd_costs_the_configuration=lambda: _set_area(
        lambda call: bool(get_msr_now(call.fd, Msr.XFD)), without_bits(1 << CONFIGURATION)
    ),
    an_area_with_tiles_is_refused_while_armed=lambda: refuse(
        SET, errno.EINVAL, lambda call: bool(get_msr_now(call.fd, Msr.XFD))
    ),
    xfd_cannot_be_armed=lambda: before(SET_MSRS, change_msr(Msr.XFD, lambda value: 0)),
    the_host_reads_xfd_as_disarmed=lambda: host_reads(Msr.XFD, lambda value: 0),
    arming_is_refused=lambda: answer(SET_MSRS, 0, sets(Msr.XFD, ARMED)),
)


def _no_tiles(call: Call) -> None:
    call.argument.xcrs[0].value &= ~XTILE
