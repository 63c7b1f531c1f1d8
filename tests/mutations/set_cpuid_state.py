# SPDX-License-Identifier: Apache-2.0
"""Lies about what KVM_SET_CPUID2 does to the state that a vCPU has already."""

from __future__ import annotations

from collections.abc import Callable

from tests.mutations.buffers import MXCSR, XMM3, flip, place, put, spoil, top_byte, without_bits, xsave_lie
from tests.mutations.lies import Proceed, answer, once, top_component
from tests.mutations.registry import mutation
from tests.mutations.set_cpuid import cut
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.xfeature import XFeature

SET = "KVM_SET_CPUID2"


@mutation("setcpuid.buffer-sticky")
def the_area_shrinks_with_the_table() -> Interposer:
    return once(SET, once(SET, xsave_lie(cut)))


@mutation("setcpuid.buffer-sticky")
def hidden_tile_data_stays_in_xstate_bv() -> Interposer:
    return once(SET, once(SET, xsave_lie(put(514, 0x04, 1))))


@mutation("setcpuid.buffer-sticky")
def the_hidden_tile_configuration_stays_in_xstate_bv() -> Interposer:
    return once(SET, once(SET, xsave_lie(put(514, 0x02, 1))))


@mutation("setcpuid.buffer-sticky")
def kvm_get_xsave_cuts_the_area_off() -> Interposer:
    return answer("KVM_GET_XSAVE", 0)


@mutation("setcpuid.buffer-sticky")
def a_byte_of_hidden_tile_data_stays_in_the_area() -> Interposer:
    return once(SET, once(SET, xsave_lie(flip(place(XFeature.XTILEDATA, 8191)))))


@mutation("setcpuid.buffer-sticky")
def the_hidden_tile_configuration_stays_in_the_area() -> Interposer:
    return once(SET, once(SET, xsave_lie(flip(place(XFeature.XTILECFG)))))


def _at_each_table(change: Callable[[memoryview], object]) -> Interposer:
    """Spoil the vCPU's real state at each table."""

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == SET and result >= 0:
            spoil(call.fd, change)
        return result

    return interposer


@mutation("setcpuid.keeps-xsave")
def a_narrower_table_drops_what_it_hides() -> Interposer:
    def change(view: memoryview) -> None:
        view[512] &= 3

    return once("KVM_SET_XSAVE", _at_each_table(change))


@mutation("setcpuid.keeps-xsave")
def a_table_changes_one_byte_of_a_vector_register() -> Interposer:
    offset = top_byte()

    def change(view: memoryview) -> None:
        view[offset] ^= 0x80

    return once("KVM_SET_XSAVE", once(SET, _at_each_table(change)))


@mutation("setcpuid.keeps-xsave")
def a_component_is_missing_from_xstate_bv_after_two_tables() -> Interposer:
    bit = 1 << top_component()
    return once(SET, once(SET, xsave_lie(lambda call: without_bits(call, bit))))


@mutation("setcpuid.keeps-xsave")
def a_table_changes_one_byte_of_xmm3() -> Interposer:
    return once(SET, once(SET, xsave_lie(flip(XMM3))))


@mutation("setcpuid.keeps-xsave")
def tables_reset_mxcsr() -> Interposer:
    return once(SET, once(SET, xsave_lie(put(MXCSR, 0x1F80, 4))))
