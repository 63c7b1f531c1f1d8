# SPDX-License-Identifier: Apache-2.0
"""Lies about tiles in the guest: lost over exits and copies, or by the instructions that put them away."""

from __future__ import annotations

from collections.abc import Callable

from tests.mutations.lies import Change, Proceed, Shared, after, after_run, answer, before, both, fewer_entries
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import (
    XMM3,
    XSTATE_BV,
    area,
    entry,
    flip,
    lengthen,
    place,
    spoil,
    without_bits,
    xsave_lie,
)
from tests.mutations.x86.lies import (
    CONFIGURATION,
    GP,
    NM,
    TILES,
    UD,
    before_run,
    faults,
    in_tile_guest,
    lose,
    tile_byte,
)
from vmm.conformance.clauses.x86 import amx
from vmm.conformance.context import Context
from vmm.conformance.x86.tiles import TileImage
from vmm.kvm.ioctl import Call, Interposer

SET = "KVM_SET_XSAVE"


PRODUCTS = ("tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud", "tdpbf16ps")


lies(
    "amx.tiles-in-area",
    "xsave.set-tile-needs-cpuid-first",
    one_byte_of_tmm5_is_lost_from_the_area=lambda: xsave_lie(flip(tile_byte(5, 15, 63))),
)

lies(
    "amx.tiles-in-area",
    the_tile_configuration_is_missing_from_xstate_bv=lambda: xsave_lie(
        lambda call: without_bits(call, 1 << CONFIGURATION)
    ),
)

lies(
    "amx.tiles-in-area",
    "amx.tilecfg-roundtrip",
    "xsave.xfd-hides-tiledata",
    the_tile_configuration_in_the_area_has_another_row_count=lambda: xsave_lie(flip(place(CONFIGURATION, 48 + 3))),
)


@mutation("amx.tiles-in-area")
def two_tiles_are_swapped_in_the_area() -> Interposer:
    def change(call: Call) -> None:
        view, first, second = area(call), tile_byte(2), tile_byte(6)
        kept = bytes(view[first : first + 1024])
        view[first : first + 1024] = bytes(view[second : second + 1024])
        view[second : second + 1024] = kept

    return xsave_lie(change)


lies(
    "amx.tile-roundtrip-all8",
    "amx.tilecfg-roundtrip",
    one_byte_of_tmm0_is_lost_over_an_exit=lambda: after_run(lose(0)),
)


@mutation("amx.tile-roundtrip-all8")
def the_tiles_are_zero_after_an_exit() -> Interposer:
    def clear(view: memoryview) -> None:
        view[XSTATE_BV + 2] &= ~4

    return after_run(lambda fd: spoil(fd, clear))


lies("amx.tile-roundtrip-all8", the_guest_with_tiles_leaves_less_often_than_it_ticks=lambda: fewer_entries())


lies(
    "amx.tiles-set-in-place",
    "amx.tiles-new-vm",
    "amx.tiles-json",
    "amx.set-then-run",
    one_byte_of_tmm7_is_lost_in_restoring=lambda: before(SET, flip(tile_byte(7, 15, 63))),
)

lies(
    "amx.tiles-set-in-place",
    "amx.tiles-json",
    "amx.set-then-run",
    tiles_that_are_set_stay_away=lambda: answer(SET, 0),
)

lies(
    "amx.tiles-set-in-place",
    "amx.tiles-new-vm",
    "amx.tiles-json",
    "amx.tilecfg-roundtrip",
    restoring_takes_the_tile_configuration_alone=lambda: before(SET, lambda call: without_bits(call, 1 << TILES)),
)

lies(
    "amx.tilerelease-init",
    released_tiles_stay_in_use=lambda: in_tile_guest("xinuse", lambda guest: guest.set("values", 0x60000)),
    tiles_are_not_in_use_before_their_release=lambda: in_tile_guest(
        "xinuse", lambda guest: guest.set("values", 0x20000)
    ),
    xsavec_names_released_tiles=lambda: in_tile_guest("xsavec", lambda guest: guest.poke("area", XSTATE_BV + 2, 4)),
)

lies(
    "amx.tilerelease-init",
    "xsave.set-without-perm-einval",
    tile_data_that_is_not_there_is_in_xstate_bv=lambda: xsave_lie(flip(XSTATE_BV + 2, 4)),
)

lies("amx.tilerelease-init", a_released_tile_leaves_a_byte_in_the_area=lambda: xsave_lie(flip(tile_byte(4, 4, 4))))

lies(
    *(f"amx.tmul-{name}" for name in PRODUCTS),
    the_last_bit_of_a_product_is_wrong=lambda: both(
        *(in_tile_guest(name, lambda guest: guest.poke("observed", 64)) for name in PRODUCTS)
    ),
)


@mutation(*(f"amx.tmul-{name}" for name in PRODUCTS))
def the_last_row_of_a_product_is_not_computed() -> Interposer:
    def change(guest: Shared) -> None:
        for byte in range(64):
            guest.poke("observed", 64 + 15 * 64 + byte, 0xFF)

    return both(*(in_tile_guest(name, change) for name in PRODUCTS))


lies(
    "amx.xcr0-off-ud",
    "amx.unconfigured-ud",
    "amx.two-vcpus-isolated",
    "amx.no-perm-vcpu-fully-usable",
    tilezero_works_where_it_must_not=lambda: in_tile_guest("tilezero_once", faults(0)),
)

lies(
    "amx.xcr0-off-ud",
    "amx.unconfigured-ud",
    tdpbssd_is_nm_where_it_must_be_ud=lambda: in_tile_guest("tdpbssd_once", faults(1, NM)),
)

lies(
    "amx.xcr0-off-ud",
    "amx.no-perm-vcpu-fully-usable",
    "amx.bad-tilecfg-gp",
    ldtilecfg_works_where_it_must_not=lambda: in_tile_guest("ldtilecfg_once", faults(0)),
)

lies(
    "amx.bad-tilecfg-gp",
    a_reserved_byte_of_the_tile_configuration_is_not_looked_at=lambda: in_tile_guest(
        "ldtilecfg_once", faults(0), lambda guest: guest.byte("expected", 2) == 1
    ),
    a_bad_tile_configuration_is_ud=lambda: in_tile_guest("ldtilecfg_once", lambda guest: guest.set("vector", UD)),
)

lies(
    "amx.bad-tilecfg-gp",
    "xfd.ldtilecfg-not-nm",
    the_right_tile_configuration_faults=lambda: in_tile_guest("ldtilecfg_once", faults(1, GP)),
)

lies("amx.cpu-migration", one_byte_of_a_tile_stays_on_the_old_thread=lambda: before_run(10, lose(6, 1)))
lies("amx.signal-interrupt", a_signal_costs_one_byte_of_a_tile=lambda: before_run(5, lose(2, 9)))

lies(
    "amx.two-vcpus-isolated",
    a_guest_runs_with_one_byte_of_anothers_tiles=lambda: before_run(7, lose(0)),
    a_guest_without_amx_has_a_larger_area=lambda: xsave_lie(lengthen(64)),
)


@mutation("amx.no-perm-vcpu-fully-usable")
def without_permission_one_byte_of_xmm3_is_lost() -> Interposer:
    def change(view: memoryview) -> None:
        view[XMM3] ^= 1

    return after_run(lambda fd: spoil(fd, change))


def _table(function: int, index: int, **changes: Callable[[int], int]) -> Change:
    def change(call: Call) -> None:
        found = entry(call, function, index)
        for register, value in changes.items():
            setattr(found, register, value(getattr(found, register)))

    return change


lies(
    "amx.no-perm-vcpu-fully-usable",
    "cpuid.hidden-without-perm",
    the_tile_configuration_is_offered_without_permission=lambda: after(
        "KVM_GET_SUPPORTED_CPUID", _table(0xD, 0, eax=lambda value: value | 1 << CONFIGURATION)
    ),
)


@mutation("amx.xcr0-off-ud")
def tiles_work_while_osxsave_is_clear() -> Interposer:
    off = False

    def watch(call: Call, proceed: Proceed) -> int:
        nonlocal off
        if call.name == "KVM_SET_SREGS":
            off = not call.argument.cr4 >> 18 & 1
        return proceed()

    return both(watch, in_tile_guest("tileload_once", faults(0), lambda guest: off))


@mutation("amx.ptrace-blind")
def ptrace_shows_the_guests_tiles() -> Interposer:
    """The request is made by a child and passes no door of ours, so the answer is changed where it arrives."""
    honest = amx._traced_area

    def leaking(context: Context) -> bytes:
        area = bytearray(honest(context))
        area[600:664] = TileImage.random(20).tiles[:64]
        return bytes(area)

    amx._traced_area = leaking
    return lambda call, proceed: proceed()


lies("amx.differences-are-named", another_byte_changes_too=lambda: xsave_lie(flip(tile_byte(7, 15, 63))))
