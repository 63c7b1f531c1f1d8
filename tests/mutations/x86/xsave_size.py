# SPDX-License-Identifier: Apache-2.0
"""Lies about how long the XSAVE area is, and where its components lie."""

from __future__ import annotations

import errno
import os

from tests.mutations.lies import accept, answer, drift, once, refuse, succeed_with
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import XMM3, XSTATE_BV, area, bits_of, flip, put, xsave_lie
from vmm._kvm import lib
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.xsave import host_layout

CHECK, REQUEST = "KVM_CHECK_EXTENSION", "ARCH_REQ_XCOMP_GUEST_PERM"
GET, GET_LEGACY, SET = "KVM_GET_XSAVE2", "KVM_GET_XSAVE", "KVM_SET_XSAVE"


def _size(call: Call) -> bool:
    """Met by a question for KVM_CAP_XSAVE2."""
    return bool(call.argument == lib.KVM_CAP_XSAVE2)


def _size_of_vm(call: Call) -> bool:
    return _size(call) and "kvm-vm" in os.readlink(f"/proc/self/fd/{call.fd}")


lies(
    "xsave.size.min",
    the_size_is_that_of_the_guests_cpuid=lambda: answer(CHECK, 2696, _size),
    the_size_is_one_byte_below_4096=lambda: answer(CHECK, 4095, _size),
    a_vm_has_another_size=lambda: succeed_with(CHECK, lambda call, size: size + 64, _size_of_vm),
)

lies(
    "xsave.size.tracks-perm",
    the_size_is_full_before_any_permission=lambda: answer(CHECK, 11008, _size),
    the_size_stays_4096=lambda: answer(CHECK, 4096, _size),
    a_vm_keeps_the_size_it_was_made_with=lambda: answer(CHECK, 4096, _size_of_vm),
)

lies(
    "xsave.size.tracks-perm",
    "xsave.size.cap-equals-written",
    the_size_is_64_bytes_too_small=lambda: once(REQUEST, succeed_with(CHECK, lambda call, size: size - 64, _size)),
)

lies(
    "xsave.size.frozen-after-vcpu",
    a_late_request_changes_the_size=lambda: once(
        REQUEST, succeed_with(CHECK, lambda call, size: size + 8192, _size), refused=True
    ),
)


@mutation("xsave.size.offsets-follow-host")
def the_components_lie_64_bytes_further() -> Interposer:
    def change(call: Call) -> None:
        view = area(call)
        view[640:4096] = bytes(view[576:4032])

    return xsave_lie(change)


@mutation("xsave.size.offsets-follow-host")
def the_last_byte_of_each_component_is_stale() -> Interposer:
    def change(call: Call) -> None:
        for number in bits(bits_of(call) & ~3):
            area(call)[host_layout()[number].end - 1] ^= 1

    return xsave_lie(change)


@mutation("xsave.size.offsets-follow-host")
def the_byte_behind_each_component_comes_along() -> Interposer:
    def change(call: Call) -> None:
        for number in bits(bits_of(call) & ~3):
            area(call)[host_layout()[number].end] = 1

    return xsave_lie(change)


lies(
    "xsave.size.offsets-follow-host",
    the_last_byte_of_the_area_changes_along=lambda: once(SET, xsave_lie(put(4095, 1, 1))),
    no_component_is_in_xstate_bv=lambda: xsave_lie(put(XSTATE_BV, 0)),
)


@mutation("xsave.size.offsets-follow-host")
def sse_comes_along_with_each_component() -> Interposer:
    def change(call: Call) -> None:
        put(XSTATE_BV, bits_of(call) | 2)(call)
        flip(XMM3)(call)

    return once(SET, xsave_lie(change))


lies(
    "xsave.set-reads-uabi-size",
    "xsave.set-reads-tile-size",
    setting_reads_beyond_the_area=lambda: refuse(SET, errno.EFAULT),
    setting_does_not_read_to_the_end_of_the_area=lambda: accept(SET),
    a_buffer_that_is_too_short_to_be_read_is_einval=lambda: drift(SET, errno.EINVAL),
    getting_writes_beyond_the_area=lambda: refuse(GET, errno.EFAULT),
    getting_does_not_write_to_the_end_of_the_area=lambda: accept(GET),
)

lies(
    "xsave.get-einval",
    a_large_area_is_cut_off=lambda: accept(GET_LEGACY),
    a_large_area_is_e2big=lambda: drift(GET_LEGACY, errno.E2BIG),
    a_small_area_is_refused_once_tiles_are_permitted=lambda: once(REQUEST, refuse(GET_LEGACY, errno.EINVAL)),
)
