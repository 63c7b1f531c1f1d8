# SPDX-License-Identifier: Apache-2.0
"""Lies about CET state in copies of a guest: registers that are lost, or not needed."""

from __future__ import annotations

from tests.mutations.lies import Proceed, Shared, answer, once
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import msr_values, set_msr_now
from tests.mutations.x86.lies import (
    GP,
    before_entry,
    before_run,
    faults,
    get_ssp_now,
    host_reads,
    in_cet_guest,
    not_restored,
    of_ssp,
    set_in_guest,
    set_ssp_now,
)
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

GET, SET, GET_REG, SET_REG = "KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_GET_ONE_REG", "KVM_SET_ONE_REG"
EVENTS, SET_XSAVE = "KVM_SET_VCPU_EVENTS", "KVM_SET_XSAVE"


lies(
    "cet.state-live",
    u_cet_is_not_saved=lambda: host_reads(Msr.U_CET, lambda value: 0),
    s_cet_does_not_come_over=lambda: not_restored(Msr.S_CET),
    s_cet_cannot_be_restored=lambda: once(
        GET, answer(SET, 0, lambda call: len(msr_values(call)) > 1 and Msr.S_CET in dict(msr_values(call)))
    ),
    pl0_ssp_does_not_come_over=lambda: not_restored(Msr.PL0_SSP),
    ssp_does_not_come_over=lambda: once(GET_REG, answer(SET_REG, 0, of_ssp)),
    the_copy_runs_with_ssp_an_entry_off=lambda: before_run(4, lambda fd: set_ssp_now(fd, get_ssp_now(fd) + 8)),
    the_copy_runs_without_pl3_ssp=lambda: before_run(4, lambda fd: set_msr_now(fd, Msr.PL3_SSP, 0)),
    the_copy_runs_without_u_cet=lambda: before_run(4, lambda fd: set_msr_now(fd, Msr.U_CET, 0)),
)


def _brings_itself(index: int) -> Interposer:
    """An MSR that was saved once is there after every restore."""
    kept = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal kept
        result = proceed()
        if call.name == GET and result > 0:
            kept = dict(msr_values(call)[:result]).get(index) or kept
        elif call.name == EVENTS and kept:
            set_msr_now(call.fd, index, kept)
        return result

    return interposer


lies(
    "cet.state-each-needed",
    u_cet_need_not_be_restored=lambda: _brings_itself(Msr.U_CET),
    s_cet_need_not_be_restored=lambda: _brings_itself(Msr.S_CET),
    pl3_ssp_need_not_be_restored=lambda: _brings_itself(Msr.PL3_SSP),
)

lies("cet.state-each-needed", "mig.xss-roundtrip", ia32_xss_need_not_be_restored=lambda: _brings_itself(Msr.XSS))


@mutation("cet.state-each-needed")
def ssp_need_not_be_restored() -> Interposer:
    kept = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal kept
        result = proceed()
        if call.name == GET_REG:
            kept = get_ssp_now(call.fd)
        elif call.name == EVENTS:
            set_ssp_now(call.fd, kept)
        return result

    return interposer


lies(
    "cet.state-each-needed",
    # Runs: the preparation and the guest, then preparation and run of each of the five copies, then the guest.
    the_state_does_not_fit_the_guest_itself_any_more=lambda: before_run(13, lambda fd: set_ssp_now(fd, 0)),
)

lies(
    "cet.xsaves-carries-user-state",
    xsaves_stores_no_u_cet=lambda: in_cet_guest("xsaves", lambda guest: guest.poke("area", 576, 3)),
    xsaves_stores_another_pl3_ssp=lambda: before_entry("xsaves", set_in_guest(Msr.PL3_SSP, 0x123458)),
    xrstors_of_user_state_faults=lambda: in_cet_guest("xrstors", faults(1, GP)),
    xrstors_does_not_load_u_cet=lambda: in_cet_guest("xrstors", set_in_guest(Msr.U_CET, 0)),
    the_host_reads_pl3_ssp_from_before_xrstors=lambda: host_reads(Msr.PL3_SSP, lambda value: 0),
)

lies(
    "cet.s-cet-not-xstate",
    xrstors_resets_s_cet=lambda: in_cet_guest("xrstors", set_in_guest(Msr.S_CET, 0)),
    xrstors_resets_the_interrupt_table=lambda: in_cet_guest("xrstors", set_in_guest(Msr.INT_SSP_TAB, 0)),
    xrstors_leaves_pl1_ssp=lambda: in_cet_guest("xrstors", set_in_guest(Msr.PL1_SSP, 0x2000)),
    xrstors_of_supervisor_state_faults=lambda: in_cet_guest("xrstors", faults(1, GP)),
)

lies(
    "cet.xsaves-intercept",
    xsaves_faults_where_it_works_or_works_where_it_faults=lambda: in_cet_guest(
        "xsaves", lambda guest: guest.set("values", 1 - guest.get("values", 15), 15)
    ),
)


@mutation("cet.xsaves-intercept")
def xsaves_is_gp_or_stores_other_components() -> Interposer:
    def change(guest: Shared) -> None:
        guest.set("vector", GP)
        guest.poke("area", 520, 3)

    return in_cet_guest("xsaves", change)
