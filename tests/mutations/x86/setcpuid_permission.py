# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_SET_CPUID2 that is refused for want of a permission."""

from __future__ import annotations

import errno

from tests.mutations.lies import accept, after, drift, nth, once
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import change_entry, lengthen, offers, xcr0_of, xcr0_reads, xsave_lie
from vmm.kvm.ioctl import Call, Interposer

SET, TILES = "KVM_SET_CPUID2", 3 << 17


def _names_tiles(call: Call) -> bool:
    return bool(offers(call) & TILES)


def _refused(lie: Interposer) -> Interposer:
    """A lie that begins with the refusal."""
    return once(SET, lie, refused=True)


lies(
    "setcpuid.permission-refusal-keeps-old",
    tile_data_needs_no_permission=lambda: accept(SET, _names_tiles),
    the_refusal_is_einval=lambda: drift(SET, errno.EINVAL, _names_tiles),
    half_of_the_refused_table_is_there=lambda: _refused(
        after("KVM_GET_CPUID2", change_entry(0xD, eax=lambda value: value | TILES))
    ),
    the_refusal_resets_xcr0=lambda: _refused(xcr0_reads(1)),
    the_area_grows_with_the_refused_table=lambda: _refused(xsave_lie(lengthen(64))),
    xcr0_takes_tiles_after_the_refusal=lambda: _refused(
        accept("KVM_SET_XCRS", lambda call: bool(xcr0_of(call) & TILES))
    ),
    xcr0_has_another_refusal=lambda: _refused(drift("KVM_SET_XCRS", errno.EPERM)),
    the_second_attempt_succeeds=lambda: _refused(accept(SET, nth(1))),
)
