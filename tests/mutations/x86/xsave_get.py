# SPDX-License-Identifier: Apache-2.0
"""Lies in the area that KVM_GET_XSAVE2 writes."""

from __future__ import annotations

from tests.mutations.lies import RUN, after, after_run, answer, fewer_entries, nth, once, top_component
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import (
    FCW,
    FTW,
    MXCSR,
    RESERVED,
    ST7,
    XCOMP_BV,
    XMM3,
    XSTATE_BV,
    area,
    clear_now,
    flip,
    flip_now,
    get_msr_now,
    lengthen,
    put,
    top_byte,
    with_bits,
    without_bits,
    xsave_lie,
)
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

GET = "KVM_GET_XSAVE2"


lies("xsave.fresh-init", a_fresh_area_has_x87_in_xstate_bv=lambda: xsave_lie(put(XSTATE_BV, 1)))

lies(
    "xsave.fresh-init",
    "xsave.get-xcomp-zero",
    the_area_is_said_to_be_compacted=lambda: xsave_lie(put(XCOMP_BV, 1 << 63)),
)

lies(
    "xsave.fresh-init",
    "xsave.init-optimisation",
    "xsave.legacy-zero-header",
    the_x87_control_word_is_0=lambda: xsave_lie(put(FCW, 0, 2)),
)

lies("xsave.fresh-init", "xsave.init-optimisation", mxcsr_has_a_stale_flag=lambda: xsave_lie(flip(MXCSR, 0x20)))

lies(
    "xsave.fresh-init",
    mxcsr_mask_is_0=lambda: xsave_lie(put(MXCSR + 4, 0, 4)),
    the_software_bytes_name_one_component_less=lambda: xsave_lie(flip(464, 4)),
    an_instruction_pointer_is_left_in_a_fresh_area=lambda: xsave_lie(put(8, 0x7F0012345678)),
    xmm3_of_a_fresh_vcpu_is_not_0=lambda: xsave_lie(flip(XMM3 + 7)),
    a_software_byte_behind_the_features_is_not_0=lambda: xsave_lie(flip(511)),
)

lies(
    "xsave.fresh-init",
    "xsave.get-xcomp-zero",
    a_reserved_header_byte_is_not_0=lambda: xsave_lie(flip(RESERVED + 47)),
)

lies("xsave.fresh-init", the_last_byte_of_a_fresh_area_is_not_0=lambda: xsave_lie(flip(4095)))


def _unwritten(start: int, stop: int) -> Interposer:
    """Leave in the buffer what the caller had there."""

    def change(call: Call) -> None:
        view = area(call)
        view[start:stop] = bytes(view[-1:]) * (stop - start)  # far behind the area: still the poison

    return after(GET, change)


lies(
    "xsave.get-writes-all",
    a_byte_of_a_gap_is_not_written=lambda: _unwritten(4000, 4001),
    the_reserved_bytes_are_not_written=lambda: _unwritten(472, 512),
    the_last_64_bytes_are_not_written=lambda: _unwritten(4032, 4096),
    one_byte_beyond_the_area_is_written=lambda: xsave_lie(put(4096, 0, 1)),
)


@mutation("xsave.get-writes-all")
def a_byte_far_beyond_the_area_is_written_and_one_inside_is_not() -> Interposer:
    def change(call: Call) -> None:
        view = area(call)
        view[1] = view[-1]
        view[9000] = 0

    return after(GET, change)


lies(
    "xsave.get-xcomp-zero",
    "xsave.set-get-identity",
    "xsave.live-after-run",
    the_highest_component_is_missing_from_xstate_bv=lambda: xsave_lie(without_bits(1 << top_component())),
)

lies(
    "xsave.get-masks-guest-cpuid",
    "mig.fewer-xfeatures",
    a_hidden_component_is_in_xstate_bv=lambda: xsave_lie(with_bits(1 << top_component())),
)

lies("xsave.get-masks-guest-cpuid", the_bytes_of_a_hidden_component_are_shown=lambda: xsave_lie(flip(top_byte())))
lies("xsave.get-fpsse-without-cpuid", without_xsave_in_cpuid_nothing_is_in_use=lambda: xsave_lie(put(XSTATE_BV, 0)))

lies(
    "xsave.get-fpsse-without-cpuid",
    "xsave.live-after-run",
    "xsave.set-get-identity",
    one_byte_of_st7_is_lost=lambda: xsave_lie(flip(ST7 + 9)),
    one_byte_of_xmm3_is_lost=lambda: xsave_lie(flip(XMM3 + 15)),
)

lies(
    "xsave.get-fpsse-without-cpuid",
    "xsave.live-after-run",
    mxcsr_is_always_initial=lambda: xsave_lie(put(MXCSR, 0x1F80, 4)),
)

lies(
    "xsave.get-pure",
    a_second_reading_differs_in_a_software_byte=lambda: xsave_lie(flip(470), nth(2)),
    a_reading_disturbs_a_register=lambda: once(GET, xsave_lie(flip(XMM3))),
    what_was_read_does_not_come_back_when_written=lambda: xsave_lie(flip(top_byte()), nth(3)),
)

lies(
    "xsave.live-after-run",
    "xsave.set-get-identity",
    one_byte_of_the_highest_component_is_lost=lambda: xsave_lie(flip(top_byte(), 0x80)),
)

lies(
    "xsave.live-after-run",
    the_x87_control_word_is_another_after_a_run=lambda: once(RUN, xsave_lie(flip(FCW, 0x40))),
    the_x87_tag_word_says_that_no_register_is_in_use=lambda: xsave_lie(put(FTW, 0, 1)),
)


@mutation("xsave.live-after-run")
def the_area_is_that_of_before_the_run() -> Interposer:
    stale = bytearray(4096)
    stale[MXCSR : MXCSR + 2] = b"\x80\x1f"

    def change(call: Call) -> None:
        area(call)[:4096] = bytes(stale)

    return once(RUN, xsave_lie(change))


lies(
    "xsave.init-optimisation",
    a_register_that_was_cleared_shows_its_last_value=lambda: xsave_lie(flip(XMM3, 0x55)),
    a_component_that_was_cleared_shows_its_last_value=lambda: xsave_lie(flip(top_byte(), 0x55)),
)


lies(
    "xsave.survives-exits",
    one_byte_of_xmm3_is_lost_over_an_exit=lambda: after_run(flip_now(XMM3 + 4)),
    one_byte_of_the_highest_component_is_lost_over_an_exit=lambda: after_run(flip_now(top_byte())),
    one_bit_of_st7_is_lost_over_an_exit=lambda: after_run(flip_now(ST7)),
    mxcsr_is_initial_after_an_exit=lambda: after_run(flip_now(MXCSR, 0x20)),
    all_vector_registers_are_cleared_by_an_exit=lambda: after_run(clear_now),
    the_guest_leaves_less_often_than_it_ticks=lambda: fewer_entries(),
)

lies(
    "xsave.legacy-get-agrees",
    kvm_get_xsave_lacks_the_highest_component=lambda: after("KVM_GET_XSAVE", flip(top_byte())),
    kvm_get_xsave_does_not_write=lambda: answer("KVM_GET_XSAVE", 0),
    kvm_get_xsave_names_no_features_in_the_software_bytes=lambda: after("KVM_GET_XSAVE", put(464, 0)),
)

lies(
    "xsave.no-supervisor",
    the_area_names_user_cet=lambda: xsave_lie(flip(XSTATE_BV + 1, 1 << 3)),
    the_area_names_supervisor_cet=lambda: xsave_lie(flip(XSTATE_BV + 1, 1 << 4)),
)


@mutation("xsave.no-supervisor")
def the_area_has_a_shadow_stack_pointer() -> Interposer:
    def change(call: Call) -> None:
        pointer = get_msr_now(call.fd, Msr.PL3_SSP)
        area(call)[3000:3008] = pointer.to_bytes(8, "little")

    return xsave_lie(change)


lies("xsave.no-supervisor", the_area_is_larger_with_supervisor_state=lambda: xsave_lie(lengthen(64)))
