# SPDX-License-Identifier: Apache-2.0
"""Lies about the CET registers as the host sees them: what they take, what they refuse, where they are saved."""

from __future__ import annotations

import errno

from tests.mutations.lies import Proceed, accept, after, answer, assign, drift, on_refusal, once, refuse
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import change_msr, of_msr, sets
from tests.mutations.x86.lies import host_reads, of_ssp, one_reg_number, ssp_reads
from vmm.conformance.x86.shadow import UNKNOWN_ID
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

GET, SET, GET_REG, SET_REG = "KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_GET_ONE_REG", "KVM_SET_ONE_REG"
GET_LIST = "KVM_GET_REG_LIST"


def _takes(index: int, value: int) -> Interposer:
    """The MSR takes a value that it has to refuse."""
    return answer(SET, 1, sets(index, value))


def _refuses(index: int, value: int) -> Interposer:
    """The MSR refuses a value that it has to take."""
    return answer(SET, 0, sets(index, value))


lies(
    "cet.xss-bits",
    ia32_xss_refuses_supervisor_cet_alone=lambda: _refuses(Msr.XSS, 1 << 12),
    ia32_xss_takes_bit_63=lambda: _takes(Msr.XSS, 1 << 63),
    ia32_xss_takes_a_user_component=lambda: _takes(Msr.XSS, 1 << 2),
    ia32_xss_reads_without_the_user_component=lambda: host_reads(Msr.XSS, lambda value: value & ~(1 << 11)),
)


def _after_refused(index: int, value: int, instead: int) -> Interposer:
    """What was refused changes the MSR all the same."""
    begun = False

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal begun
        result = proceed()
        if call.name == SET:
            begun = result == 0 and sets(index, value)(call)
        elif begun and call.name == GET:
            change_msr(index, lambda _: instead)(call)
        return result

    return interposer


lies("cet.xss-bits", a_refused_ia32_xss_clears_it=lambda: _after_refused(Msr.XSS, 1 << 9, 0))

lies(
    "cet.ucet-scet-bits",
    u_cet_takes_reserved_bit_7=lambda: _takes(Msr.U_CET, 1 << 7),
    s_cet_takes_suppress_together_with_tracker=lambda: _takes(Msr.S_CET, 3 << 10),
    u_cet_refuses_suppress=lambda: _refuses(Msr.U_CET, 1 << 10),
    s_cet_loses_the_tracker_bit=lambda: host_reads(Msr.S_CET, lambda value: value & ~(1 << 11)),
    u_cet_loses_the_legacy_bitmap=lambda: host_reads(Msr.U_CET, lambda value: value & 0xFFF),
    a_refused_bit_of_s_cet_stays=lambda: _after_refused(Msr.S_CET, 1 << 9, 1 << 9),
)

lies(
    "cet.ucet-scet-need-features",
    u_cet_takes_tracking_without_ibt=lambda: _takes(Msr.U_CET, 1 << 2),
    s_cet_takes_the_legacy_bitmap_without_ibt=lambda: _takes(Msr.S_CET, 1 << 12),
    s_cet_takes_shadow_stack_writes_without_shstk=lambda: once(
        SET, _takes(Msr.S_CET, 2), when=sets(Msr.S_CET, 1 << 5)
    ),
    u_cet_is_refused_unless_there_are_both_features=lambda: answer(SET, 0, of_msr(Msr.U_CET)),
)

lies(
    "cet.ssp-alignment",
    pl2_ssp_takes_an_even_address=lambda: _takes(Msr.PL2_SSP, 2),
    pl0_ssp_takes_a_non_canonical_address=lambda: _takes(Msr.PL0_SSP, 1 << 60),
    pl3_ssp_refuses_multiples_of_4_that_are_none_of_8=lambda: _refuses(Msr.PL3_SSP, 4),
    pl1_ssp_is_32_bits_wide=lambda: host_reads(Msr.PL1_SSP, lambda value: value & 0xFFFFFFFF),
    the_interrupt_table_has_to_be_aligned=lambda: _refuses(Msr.INT_SSP_TAB, 0x1003),
    ssp_takes_an_even_address=lambda: accept(SET_REG, lambda call: bool(one_reg_number(call)[0] == 2)),
    a_refused_ssp_stays=lambda: once(SET_REG, ssp_reads(lambda _: 1), refused=True),
)

lies(
    "cet.pointers-need-shstk",
    pl1_ssp_needs_no_shstk=lambda: _takes(Msr.PL1_SSP, 0x1000),
    the_interrupt_table_needs_no_shstk=lambda: _takes(Msr.INT_SSP_TAB, 0x1000),
    ssp_needs_no_shstk=lambda: accept(SET_REG),
)

lies(
    "cet.guest-ssp-onereg",
    ssp_is_32_bits_wide=lambda: ssp_reads(lambda value: value & 0xFFFFFFFF),
    ssp_is_not_written=lambda: answer(SET_REG, 0),
    ssp_can_be_read_in_half=lambda: accept(GET_REG, lambda call: not of_ssp(call) and call.argument.id & 1 == 0),
    there_is_any_kvm_register=lambda: accept(GET_REG, lambda call: bool(call.argument.id == UNKNOWN_ID)),
)

lies(
    "cet.reg-list-shstk",
    room_for_none_is_enough=lambda: answer(GET_LIST, 0, lambda call: call.argument.n == 0),
    room_for_none_is_einval=lambda: drift(GET_LIST, errno.EINVAL),
    e2big_does_not_say_how_many_there_are=lambda: on_refusal(GET_LIST, assign("n", 0)),
)


@mutation("cet.reg-list-shstk")
def the_list_has_another_register() -> Interposer:
    def change(call: Call) -> None:
        call.argument.reg[0] += 1

    return after(GET_LIST, change)


lies("cet.reg-list-shstk", the_list_cannot_be_read=lambda: refuse(GET_LIST, errno.E2BIG))

lies(
    "cet.reset",
    s_cet_is_enabled_after_reset=lambda: host_reads(Msr.S_CET, lambda _: 1),
    pl2_ssp_is_not_0_after_reset=lambda: host_reads(Msr.PL2_SSP, lambda _: 0x1000),
    the_interrupt_table_is_not_0_after_reset=lambda: host_reads(Msr.INT_SSP_TAB, lambda _: 0x1000),
    ia32_xss_is_not_0_after_reset=lambda: host_reads(Msr.XSS, lambda _: 1 << 11),
    ssp_is_not_0_after_reset=lambda: ssp_reads(lambda _: 8),
)

lies(
    "cet.msrs-in-list",
    pl1_ssp_and_pl2_ssp_are_one_register=lambda: host_reads(Msr.PL1_SSP, lambda _: 0x30000),
    the_interrupt_table_cannot_be_written=lambda: answer(SET, 0, of_msr(Msr.INT_SSP_TAB)),
    ia32_xss_reads_as_0=lambda: host_reads(Msr.XSS, lambda _: 0),
    s_cet_reads_as_u_cet=lambda: host_reads(Msr.S_CET, lambda _: 1),
)
