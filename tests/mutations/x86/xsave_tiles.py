# SPDX-License-Identifier: Apache-2.0
"""Lies about tile data in the area: before CPUID, without the guest permission, with XFD armed."""

from __future__ import annotations

import errno

from tests.mutations.lies import RUN, Proceed, accept, answer, drift, once, refuse, succeed_with
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import XSTATE_BV, bits_of, flip, lengthen, offers, shorten, xsave_lie
from tests.mutations.x86.lies import CONFIGURATION, TILES, tile_byte
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer

SET, SET_CPUID = "KVM_SET_XSAVE", "KVM_SET_CPUID2"


def _tiles(call: Call) -> bool:
    return bool(bits_of(call) >> TILES & 1)


def _configuration_alone(call: Call) -> bool:
    return bits_of(call) == 1 << CONFIGURATION


lies(
    "xsave.set-tile-needs-cpuid-first",
    "xsave.set-without-perm-einval",
    tile_data_is_dropped_where_it_cannot_be=lambda: accept(SET, _tiles),
    tile_data_where_it_cannot_be_is_eperm=lambda: drift(SET, errno.EPERM, _tiles),
)

lies(
    "xsave.set-tile-needs-cpuid-first",
    the_tile_configuration_needs_cpuid_too=lambda: refuse(SET, errno.EINVAL, _configuration_alone),
    tile_data_is_refused_after_cpuid=lambda: once(SET_CPUID, refuse(SET, errno.EINVAL, _tiles)),
)


def _armed(lie: Interposer) -> Interposer:
    """``lie`` begins with the guest's second run, which arms XFD."""
    return once(RUN, once(RUN, lie))


lies(
    "xsave.xfd-hides-tiledata",
    armed_tile_data_stays_in_xstate_bv=lambda: _armed(xsave_lie(flip(XSTATE_BV + 2, 4))),
    armed_tile_data_leaves_a_byte=lambda: _armed(xsave_lie(flip(tile_byte(7, 15, 63)))),
)

lies("xsave.set-xfd-filter", an_area_with_tile_data_is_refused_while_armed=lambda: refuse(SET, errno.EINVAL, _tiles))

lies(
    "xsave.set-xfd-filter",
    "xsave.xfd-after-xsave",
    tile_data_comes_back_while_armed=lambda: xsave_lie(flip(XSTATE_BV + 2, 4)),
)

lies(
    "xsave.set-xfd-filter",
    a_byte_of_a_tile_comes_back_while_armed=lambda: xsave_lie(flip(tile_byte(1))),
    the_tile_configuration_is_filtered_as_well=lambda: xsave_lie(flip(XSTATE_BV + 2, 2)),
    ia32_xfd_cannot_be_armed=lambda: answer("KVM_SET_MSRS", 0),
)


@mutation("xsave.size.sticky-permission")
def the_area_of_a_vcpu_without_tiles_grows_along() -> Interposer:
    small: set[int] = set()
    grown = xsave_lie(lengthen(64), lambda call: call.fd in small)

    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name == SET_CPUID and not offers(call) >> TILES & 1:
            small.add(call.fd)
        return grown(call, proceed)

    return interposer


lies(
    "xsave.size.sticky-permission",
    the_area_of_a_vcpu_with_tiles_is_64_bytes_short=lambda: once("KVM_GET_XSAVE2", xsave_lie(shorten(64))),
    the_capability_is_64_bytes_short=lambda: succeed_with(
        "KVM_CHECK_EXTENSION",
        lambda call, size: size - 64,
        lambda call: bool(call.argument == lib.KVM_CAP_XSAVE2),
    ),
)
