# SPDX-License-Identifier: Apache-2.0
"""Lies about PKRU and guests without protection keys."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import RUN, Change, Shared, accept, after, after_entry, before, drift, once, refuse
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import XMM3, bits_of, flip, flip_now, place, put, with_bits, xsave_lie
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.xfeature import XFeature

PKRU = int(XFeature.PKRU)
SET, SET_XCRS = "KVM_SET_XSAVE", "KVM_SET_XCRS"
_bit = with_bits(1 << PKRU)


def _value(call: Call) -> None:
    """What Linux gives threads is in the area."""
    put(place(PKRU), 0x55555554, 4)(call)


def _in_guest(change: Callable[[Shared], object]) -> Interposer:
    return after_entry("rdpkru", change, payload="pku")


def _restored(change: Change) -> Interposer:
    """Spoil what the host reads once an area was set."""
    return once(SET, xsave_lie(change))


def _has_pkru(call: Call) -> bool:
    return bool(bits_of(call) >> PKRU & 1)


def _ends_well(call: Call) -> None:
    """The guest's way out says that its entry point came to its end."""
    run = call.argument.run
    ffi.cast("uint32_t *", int(ffi.cast("uintptr_t", run)) + run.io.data_offset)[0] = 1


lies(
    "pku.hidden-from-stream",
    a_fresh_area_names_pkru=lambda: xsave_lie(_bit),
    a_fresh_area_has_the_threads_pkru=lambda: xsave_lie(_value),
    the_area_names_pkru_after_a_run=lambda: once(RUN, xsave_lie(_bit)),
    the_area_has_the_threads_pkru_after_a_run=lambda: once(RUN, xsave_lie(_value)),
)

lies(
    "pku.absent-from-guest",
    xcr0_takes_pkru_without_pku=lambda: accept(SET_XCRS),
    xcr0_has_another_refusal=lambda: drift(SET_XCRS, errno.EPERM),
    rdpkru_is_gp=lambda: _in_guest(lambda guest: guest.set("vector", 13)),
    rdpkru_works=lambda: after(RUN, _ends_well),
)

lies(
    "pku.stream-without-pku-restores",
    a_stream_with_pkru_is_refused=lambda: refuse(SET, errno.EINVAL, _has_pkru),
    a_stream_without_pkru_is_refused=lambda: refuse(SET, errno.EINVAL, lambda call: not _has_pkru(call)),
    the_restored_area_names_pkru=lambda: _restored(_bit),
    the_restored_area_has_a_pkru=lambda: _restored(_value),
    a_stream_costs_a_byte_of_xmm3=lambda: before(SET, flip(XMM3)),
    pkru_in_a_stream_costs_a_byte_of_xmm3=lambda: before(SET, flip(XMM3), _has_pkru),
    the_host_reads_another_xmm3=lambda: _restored(flip(XMM3)),
    the_guest_finds_another_xmm3=lambda: once(SET, before(RUN, lambda call: flip_now(XMM3)(call.fd))),
    a_run_gives_the_thread_another_pkru=lambda: once(
        SET, after(RUN, lambda call: lib.vmm_wrpkru(lib.vmm_rdpkru() ^ 0x30000000))
    ),
)

lies(
    "pku.stream-of-another-guest",
    a_stream_without_pkru_is_refused=lambda: refuse(SET, errno.EINVAL, lambda call: not _has_pkru(call)),
    a_stream_without_pkru_resets_it=lambda: before(
        SET, lambda call: (put(place(PKRU), 0)(call), _bit(call)), lambda call: not _has_pkru(call)
    ),
    the_guest_reads_the_initial_pkru=lambda: _in_guest(lambda guest: guest.set("values", 0)),
    the_host_reads_the_initial_pkru_for_ever=lambda: once(RUN, once(RUN, xsave_lie(put(place(PKRU), 0, 4)))),
)
