# SPDX-License-Identifier: Apache-2.0
"""Lies about tiles in the guest: lost over exits and copies, or by the instructions that put them away."""

from __future__ import annotations

from tests.mutations.lies import after, after_run, answer, before, fewer_entries
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import (
    XMM3,
    XSTATE_BV,
    area,
    change_entry,
    flip,
    flip_now,
    lengthen,
    place,
    spoil,
    without_bits,
    xsave_lie,
)
from tests.mutations.x86.lies import CONFIGURATION, TILES, before_run, lose, ptrace_shows, tile_byte
from vmm.conformance.x86.tiles import TileImage
from vmm.kvm.ioctl import Call, Interposer

SET = "KVM_SET_XSAVE"


lies(
    "amx.tiles-in-area",
    "xsave.set-tile-needs-cpuid-first",
    one_byte_of_tmm5_is_lost_from_the_area=lambda: xsave_lie(flip(tile_byte(5, 15, 63))),
)

lies(
    "amx.tiles-in-area",
    the_tile_configuration_is_missing_from_xstate_bv=lambda: xsave_lie(without_bits(1 << CONFIGURATION)),
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
    restoring_takes_the_tile_configuration_alone=lambda: before(SET, without_bits(1 << TILES)),
)

lies("amx.cpu-migration", one_byte_of_a_tile_stays_on_the_old_thread=lambda: before_run(10, lose(6, 1)))

lies(
    "amx.two-vcpus-isolated",
    a_guest_runs_with_one_byte_of_anothers_tiles=lambda: before_run(7, lose(0)),
    a_guest_without_amx_has_a_larger_area=lambda: xsave_lie(lengthen(64)),
)

lies("amx.no-perm-vcpu-fully-usable", without_permission_one_byte_of_xmm3_is_lost=lambda: after_run(flip_now(XMM3)))

lies(
    "amx.no-perm-vcpu-fully-usable",
    "cpuid.hidden-without-perm",
    the_tile_configuration_is_offered_without_permission=lambda: after(
        "KVM_GET_SUPPORTED_CPUID", change_entry(0xD, 0, eax=lambda value: value | 1 << CONFIGURATION)
    ),
)


def _tiles(area: bytearray) -> None:
    area[600:664] = TileImage.random(20).tiles[:64]


lies("amx.ptrace-blind", ptrace_shows_the_guests_tiles=lambda: ptrace_shows(_tiles))

lies("amx.differences-are-named", another_byte_changes_too=lambda: xsave_lie(flip(tile_byte(7, 15, 63))))
