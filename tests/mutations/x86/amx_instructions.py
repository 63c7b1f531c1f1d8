# SPDX-License-Identifier: Apache-2.0
"""Lies about the instructions of tiles: what they compute and release, and when they fault."""

from __future__ import annotations

from tests.mutations.lies import Proceed, Shared, both
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import XSTATE_BV, flip, xsave_lie
from tests.mutations.x86.lies import GP, NM, UD, faults, in_tile_guest, tile_byte
from vmm.kvm.ioctl import Call, Interposer

PRODUCTS = (
    "tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud", "tdpbf16ps",
    "tdpfp16ps", "tcmmrlfp16ps", "tcmmimfp16ps", "tmmultf32ps",
)  # fmt: skip


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


@mutation("amx.xcr0-off-ud")
def tiles_work_while_osxsave_is_clear() -> Interposer:
    off = False

    def watch(call: Call, proceed: Proceed) -> int:
        nonlocal off
        if call.name == "KVM_SET_SREGS":
            off = not call.argument.cr4 >> 18 & 1
        return proceed()

    return both(watch, in_tile_guest("tileload_once", faults(0), lambda guest: off))
