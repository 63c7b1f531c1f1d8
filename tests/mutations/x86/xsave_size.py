# SPDX-License-Identifier: Apache-2.0
"""Lies about how long the XSAVE area is, and where its components lie."""

from __future__ import annotations

import errno
import os

from tests.mutations.lies import accept, answer, drift, once, refuse, succeed_with
from tests.mutations.registry import mutation
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


@mutation("xsave.size.min")
def the_size_is_that_of_the_guests_cpuid() -> Interposer:
    return answer(CHECK, 2696, _size)


@mutation("xsave.size.min")
def the_size_is_one_byte_below_4096() -> Interposer:
    return answer(CHECK, 4095, _size)


@mutation("xsave.size.min")
def a_vm_has_another_size() -> Interposer:
    return succeed_with(CHECK, lambda call, size: size + 64, _size_of_vm)


@mutation("xsave.size.tracks-perm")
def the_size_is_full_before_any_permission() -> Interposer:
    return answer(CHECK, 11008, _size)


@mutation("xsave.size.tracks-perm")
def the_size_stays_4096() -> Interposer:
    return answer(CHECK, 4096, _size)


@mutation("xsave.size.tracks-perm")
def a_vm_keeps_the_size_it_was_made_with() -> Interposer:
    return answer(CHECK, 4096, _size_of_vm)


@mutation("xsave.size.tracks-perm", "xsave.size.cap-equals-written")
def the_size_is_64_bytes_too_small() -> Interposer:
    return once(REQUEST, succeed_with(CHECK, lambda call, size: size - 64, _size))


@mutation("xsave.size.frozen-after-vcpu")
def a_late_request_changes_the_size() -> Interposer:
    return once(REQUEST, succeed_with(CHECK, lambda call, size: size + 8192, _size), refused=True)


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


@mutation("xsave.size.offsets-follow-host")
def the_last_byte_of_the_area_changes_along() -> Interposer:
    return once(SET, xsave_lie(put(4095, 1, 1)))


@mutation("xsave.size.offsets-follow-host")
def no_component_is_in_xstate_bv() -> Interposer:
    return xsave_lie(put(XSTATE_BV, 0))


@mutation("xsave.size.offsets-follow-host")
def sse_comes_along_with_each_component() -> Interposer:
    def change(call: Call) -> None:
        put(XSTATE_BV, bits_of(call) | 2)(call)
        flip(XMM3)(call)

    return once(SET, xsave_lie(change))


@mutation("xsave.set-reads-uabi-size", "xsave.set-reads-tile-size")
def setting_reads_beyond_the_area() -> Interposer:
    return refuse(SET, errno.EFAULT)


@mutation("xsave.set-reads-uabi-size", "xsave.set-reads-tile-size")
def setting_does_not_read_to_the_end_of_the_area() -> Interposer:
    return accept(SET)


@mutation("xsave.set-reads-uabi-size", "xsave.set-reads-tile-size")
def a_buffer_that_is_too_short_to_be_read_is_einval() -> Interposer:
    return drift(SET, errno.EINVAL)


@mutation("xsave.set-reads-uabi-size", "xsave.set-reads-tile-size")
def getting_writes_beyond_the_area() -> Interposer:
    return refuse(GET, errno.EFAULT)


@mutation("xsave.set-reads-uabi-size", "xsave.set-reads-tile-size")
def getting_does_not_write_to_the_end_of_the_area() -> Interposer:
    return accept(GET)


@mutation("xsave.get-einval")
def a_large_area_is_cut_off() -> Interposer:
    return accept(GET_LEGACY)


@mutation("xsave.get-einval")
def a_large_area_is_e2big() -> Interposer:
    return drift(GET_LEGACY, errno.E2BIG)


@mutation("xsave.get-einval")
def a_small_area_is_refused_once_tiles_are_permitted() -> Interposer:
    return once(REQUEST, refuse(GET_LEGACY, errno.EINVAL))
