# SPDX-License-Identifier: Apache-2.0
"""Lies about CET guests and their host."""

from __future__ import annotations

import errno

from tests.mutations.lies import RUN, accept, after, answer, assign, drift, nth, once, refuse, toggle
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import XSTATE_BV, change_entry, of_msr
from tests.mutations.x86.lies import host_reads, in_cet_guest, ptrace_shows, ssp_reads
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr
from vmm.x86.xfeature import XFeature

PERMISSION = "ARCH_REQ_XCOMP_GUEST_PERM"


def _own(field: str, bits: int) -> Interposer:
    """After a run the VMM finds another shadow stack of its own."""

    def change(call: Call) -> None:
        if call.argument.shadow != ffi.NULL:
            toggle(field, bits)(call)

    return after(RUN, change)


lies(
    "cet.host-shadow-stack-intact",
    ssp_of_the_vmm_is_the_guests=lambda: _own("shadow.after", 0x100),
    ssp_of_the_vmm_is_lost=lambda: after(RUN, lambda call: _lose(call)),
    the_vmm_can_no_longer_write_its_shadow_stack=lambda: _own("shadow.read", 1),
    the_guest_shuts_down=lambda: after(RUN, assign("run.exit_reason", lib.KVM_EXIT_SHUTDOWN), nth(2)),
    the_guest_does_not_end=lambda: after(RUN, assign("run.exit_reason", lib.KVM_EXIT_SHUTDOWN), nth(3)),
    the_guest_cannot_run=lambda: refuse(RUN, errno.EIO, nth(2)),
    a_return_of_the_guest_is_missing=lambda: in_cet_guest("descend", lambda guest: guest.set("values", 11)),
    u_cet_of_the_guest_is_the_vmms=lambda: host_reads(Msr.U_CET, lambda value: 3),
    pl3_ssp_of_the_guest_is_the_vmms=lambda: host_reads(Msr.PL3_SSP, lambda value: 0x7FFFF7FF0000),
    ssp_of_the_guest_is_the_vmms=lambda: ssp_reads(lambda value: 0x7FFFF7FF0000),
)


def _lose(call: Call) -> None:
    if call.argument.shadow != ffi.NULL:
        call.argument.shadow.before = call.argument.shadow.after = 0


lies(
    "cet.needs-no-permission",
    cet_u_can_be_requested=lambda: accept(PERMISSION, nth(1)),
    cet_s_can_be_requested=lambda: accept(PERMISSION, nth(2)),
    a_request_for_cet_u_is_einval=lambda: drift(PERMISSION, errno.EINVAL, nth(1)),
    a_request_for_cet_s_is_ebusy=lambda: drift(PERMISSION, errno.EBUSY, nth(2)),
    cet_s_is_not_offered_without_permission=lambda: after(
        "KVM_GET_SUPPORTED_CPUID", change_entry(0xD, 1, ecx=lambda value: value & ~(1 << XFeature.CET_S))
    ),
    ia32_xss_takes_no_cet=lambda: answer("KVM_SET_MSRS", 0, of_msr(Msr.XSS)),
    u_cet_is_not_kept=lambda: host_reads(Msr.U_CET, lambda value: 0),
    pl0_ssp_is_not_kept=lambda: host_reads(Msr.PL0_SSP, lambda value: 0),
    pl3_ssp_is_not_taken=lambda: answer("KVM_SET_MSRS", 0, of_msr(Msr.PL3_SSP)),
)


def _after_the_first(lie: bytes, at: int) -> Interposer:
    """What ptrace shows beside the guest has other bytes."""
    shown = 0

    def change(area: bytearray) -> None:
        nonlocal shown
        shown += 1
        if shown > 1:
            area[at : at + len(lie)] = lie

    return ptrace_shows(change)


lies(
    "cet.hidden-from-ptrace",
    the_regset_grows_by_cet=lambda: _after_the_first(bytes(24), 1 << 14),
    the_regset_names_cet_s=lambda: _after_the_first((1 << XFeature.CET_S | 7).to_bytes(8, "little"), 464),
    the_regset_names_another_component=lambda: _after_the_first((1 << 62 | 7).to_bytes(8, "little"), 464),
    xstate_bv_names_cet_s=lambda: _after_the_first((1 << XFeature.CET_S | 7).to_bytes(8, "little"), XSTATE_BV),
    the_regset_has_the_guests_pl0_ssp=lambda: _after_the_first((0xABCD1230).to_bytes(8, "little"), 600),
    the_regset_has_the_guests_pl1_ssp=lambda: _after_the_first((0xABCD2340).to_bytes(8, "little"), 600),
    the_regset_has_the_guests_pl2_ssp=lambda: _after_the_first((0xABCD3450).to_bytes(8, "little"), 608),
    the_guest_cannot_run=lambda: once("KVM_SET_MSRS", refuse(RUN, errno.EIO, nth(2))),
)
