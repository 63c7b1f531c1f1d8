# SPDX-License-Identifier: Apache-2.0
"""Lies about MSRs: values that are lost in writing, in reading or on the way, or that the guest does not read."""

from __future__ import annotations

from collections.abc import Callable

from tests.mutations.lies import RUN, Shared, after, after_entry, answer, before, once, refuse
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import change_msr, msr_values, of_msr, set_msr_now
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

GET, SET = "KVM_GET_MSRS", "KVM_SET_MSRS"


def _lost(index: int) -> Interposer:
    """Whatever is written to an MSR becomes 0."""
    return before(SET, change_msr(index, lambda value: 0))


def _many(call: Call) -> bool:
    """Met by a batch of several MSRs."""
    return bool(call.argument.nmsrs > 1)


def _on_the_way(index: int) -> Interposer:
    """An MSR is lost when all are restored together."""
    return before(SET, change_msr(index, lambda value: 0), _many)


def _guest_reads(change: Callable[[Shared], None]) -> Interposer:
    return after_entry("rdmsrs", change, payload="state")


def _really(index: int) -> Interposer:
    """An MSR that reads as it should is something else when the guest runs."""
    return before(RUN, lambda call: set_msr_now(call.fd, index, 0))


def _fault(guest: Shared) -> None:
    guest.at(guest.payload.symbol("rows"))[2] = 1


lies(
    "mig.msrs-changed",
    sysenter_cs_loses_what_is_written=lambda: _lost(Msr.SYSENTER_CS),
    sysenter_esp_loses_what_is_written=lambda: _lost(Msr.SYSENTER_ESP),
    sysenter_eip_loses_what_is_written=lambda: _lost(Msr.SYSENTER_EIP),
    star_loses_what_is_written=lambda: _lost(Msr.STAR),
    lstar_loses_what_is_written=lambda: _lost(Msr.LSTAR),
    cstar_loses_what_is_written=lambda: _lost(Msr.CSTAR),
    syscall_mask_loses_what_is_written=lambda: _lost(Msr.SYSCALL_MASK),
    kernel_gs_base_loses_what_is_written=lambda: _lost(Msr.KERNEL_GS_BASE),
    pat_loses_what_is_written=lambda: before(SET, change_msr(Msr.PAT, lambda value: 0x0007040600070406)),
    lstar_is_refused=lambda: answer(SET, 0, of_msr(Msr.LSTAR)),
    lstar_reads_as_32_bits=lambda: after(GET, change_msr(Msr.LSTAR, lambda value: value & 0xFFFFFFFF)),
    star_does_not_come_over=lambda: _on_the_way(Msr.STAR),
    poll_control_does_not_come_over=lambda: before(SET, change_msr(Msr.KVM_POLL_CONTROL, lambda value: 1), _many),
    system_time_does_not_come_over=lambda: _on_the_way(Msr.KVM_SYSTEM_TIME_NEW),
    all_is_refused_on_the_way=lambda: refuse(SET, 22, _many),
    nothing_takes_another_value=lambda: answer(SET, 1, lambda call: len(msr_values(call)) == 1),
)

lies(
    "mig.msrs-in-guest",
    lstar_is_refused=lambda: answer(SET, 0, of_msr(Msr.LSTAR)),
    lstar_does_not_come_over=lambda: _on_the_way(Msr.LSTAR),
    all_is_refused_on_the_way=lambda: refuse(SET, 22, _many),
    the_guest_reads_another_sysenter_cs=lambda: _really(Msr.SYSENTER_CS),
    the_guest_reads_another_sysenter_esp=lambda: _really(Msr.SYSENTER_ESP),
    the_guest_reads_another_sysenter_eip=lambda: _really(Msr.SYSENTER_EIP),
    the_guest_reads_another_star=lambda: _really(Msr.STAR),
    the_guest_reads_another_lstar=lambda: _really(Msr.LSTAR),
    the_guest_reads_another_cstar=lambda: _really(Msr.CSTAR),
    the_guest_reads_another_syscall_mask=lambda: _really(Msr.SYSCALL_MASK),
    the_guest_reads_another_kernel_gs_base=lambda: _really(Msr.KERNEL_GS_BASE),
    the_guest_reads_another_pat=lambda: _really(Msr.PAT),
    the_first_rdmsr_faults=lambda: _guest_reads(_fault),
    the_values_are_read_after_the_run_of_another=lambda: once(
        GET, before(SET, change_msr(Msr.PAT, lambda value: 0x0007040600070406))
    ),
)
