# SPDX-License-Identifier: Apache-2.0
"""Lies about INIT and what came after AVX-512."""

from __future__ import annotations

from tests.mutations.lies import Change
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import flip, place, put, with_bits, without_bits, xcr0_reads, xsave_lie
from tests.mutations.x86.lies import CONFIGURATION, TILES, after_init, host_reads, tile_byte
from vmm.kvm.ioctl import Interposer
from vmm.x86.msr_names import Msr
from vmm.x86.xfeature import XFeature

PKRU = int(XFeature.PKRU)


def _area(change: Change) -> Interposer:
    return after_init(xsave_lie(change))


lies(
    "init.preserves-tiles",
    init_clears_the_tiles=lambda: _area(without_bits(1 << TILES)),
    init_clears_the_tile_configuration=lambda: _area(without_bits(1 << CONFIGURATION)),
    init_costs_a_byte_of_a_tile=lambda: _area(flip(tile_byte(7, 15, 63))),
    init_costs_a_byte_of_the_configuration=lambda: _area(flip(place(CONFIGURATION, 48))),
    init_takes_tiles_out_of_xcr0=lambda: after_init(xcr0_reads(0, ~(3 << 17))),
)

lies(
    "init.preserves-xfd",
    init_disarms_xfd=lambda: after_init(host_reads(Msr.XFD, lambda value: 0)),
    init_clears_the_error=lambda: after_init(host_reads(Msr.XFD_ERR, lambda value: 0)),
)

lies(
    "init.preserves-pkru",
    init_clears_pkru=lambda: _area(put(place(PKRU), 0, 4)),
    init_takes_pkru_out_of_xstate_bv=lambda: _area(without_bits(1 << PKRU)),
    the_threads_own_pkru_is_there=lambda: _area(
        lambda call: (with_bits(1 << PKRU)(call), put(place(PKRU), 0x55555554, 4)(call))
    ),
)
