# SPDX-License-Identifier: Apache-2.0
"""Lies about MSRs: the list of them, and values that do not get from one side to the other."""

from __future__ import annotations

from typing import Any

from tests.mutations.lies import RUN, Proceed, Shared, after, after_entry, called, nth, succeed_with
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import change_list, get_msr_now, lists, set_msr_now
from tests.mutations.x86.lies import GP, host_reads, in_lists
from vmm._kvm import lib
from vmm.guest.payload import load
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

LIST, GET, SET, SREGS = "KVM_GET_MSR_INDEX_LIST", "KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_GET_SREGS"
# Listed by some KVM, and not among those that every one has to list.
_EXTRA = (0x1D9, 0xC001_011F, 0x4000_0000, 0x1DB)


def _twice(call: Call) -> None:
    for number, index in enumerate(lists(call)):
        if index in _EXTRA:
            call.argument.indices[number] = Msr.PAT


lies(
    "msr.list-baseline",
    lstar_is_not_listed=lambda: change_list(Msr.LSTAR),
    pat_is_not_listed=lambda: change_list(Msr.PAT),
    the_last_kvm_msr_is_not_listed=lambda: change_list(0x4B56_4D07),
    tsc_aux_is_not_listed=lambda: change_list(Msr.TSC_AUX),
    xfd_err_is_not_listed=lambda: change_list(Msr.XFD_ERR),
    xss_is_not_listed=lambda: change_list(Msr.XSS),
    a_shadow_stack_pointer_is_not_listed=lambda: change_list(Msr.PL2_SSP),
    spec_ctrl_is_not_listed=lambda: change_list(Msr.SPEC_CTRL),
    smbase_is_not_listed=lambda: change_list(Msr.SMBASE),
    a_msr_of_vmx_is_not_listed=lambda: change_list(0x480),
    a_msr_of_svm_is_not_listed=lambda: change_list(0xC001_0117),
    a_msr_is_listed_twice=lambda: after(LIST, _twice),
)


def _guest_reads(index: int, bits: int = 1, faults: int = 0) -> Interposer:
    """RDMSR of an MSR gives something else."""

    def change(operand: int, answer: Any) -> None:
        if operand == index:
            answer[0] ^= bits
            answer[2], answer[3] = faults, GP

    return in_lists("rdmsr_list", change)


def _guest_write_faults(index: int) -> Interposer:
    def change(operand: int, answer: Any) -> None:
        if operand == index:
            answer[2], answer[3] = 1, GP

    return in_lists("wrmsr_list", change, 16)


def _base(name: str) -> Interposer:
    """KVM_GET_SREGS gives another base."""

    def change(call: Call) -> None:
        getattr(call.argument, name).base ^= 0x1000

    return after(SREGS, change)


def _mailbox(entry: str, index: int) -> Interposer:
    def change(shared: Shared) -> None:
        shared.set("values", shared.get("values", index) ^ 1, index)

    return after_entry(entry, change, payload="lists")


lies(
    "msr.host-writes",
    a_msr_cannot_be_set=lambda: succeed_with(SET, lambda call, result: result - 1),
    the_guest_reads_another_fs_base=lambda: _guest_reads(Msr.FS_BASE),
    the_guest_reads_another_gs_base=lambda: _guest_reads(Msr.GS_BASE),
    the_guest_reads_another_kernel_gs_base=lambda: _guest_reads(Msr.KERNEL_GS_BASE),
    the_guest_reads_another_star=lambda: _guest_reads(Msr.STAR),
    the_guest_reads_another_lstar=lambda: _guest_reads(Msr.LSTAR),
    the_guest_reads_another_cstar=lambda: _guest_reads(Msr.CSTAR),
    the_guest_reads_another_syscall_mask=lambda: _guest_reads(Msr.SYSCALL_MASK),
    the_guest_reads_another_sysenter_cs=lambda: _guest_reads(Msr.SYSENTER_CS),
    the_guest_reads_another_sysenter_esp=lambda: _guest_reads(Msr.SYSENTER_ESP),
    the_guest_reads_another_sysenter_eip=lambda: _guest_reads(Msr.SYSENTER_EIP),
    rdmsr_of_lstar_faults=lambda: _guest_reads(Msr.LSTAR, 0, 1),
    the_host_reads_another_lstar=lambda: host_reads(Msr.LSTAR, lambda value: value ^ 8),
    the_host_has_another_fs_base=lambda: _base("fs"),
    the_host_has_another_gs_base=lambda: _base("gs"),
    fs_does_not_use_its_base=lambda: _mailbox("based", 0),
    gs_does_not_use_its_base=lambda: _mailbox("based", 1),
)

lies(
    "msr.guest-writes",
    wrmsr_of_lstar_faults=lambda: _guest_write_faults(Msr.LSTAR),
    wrmsr_of_fs_base_faults=lambda: _guest_write_faults(Msr.FS_BASE),
    the_host_reads_another_fs_base=lambda: host_reads(Msr.FS_BASE, lambda value: value ^ 0x1000),
    the_host_reads_another_gs_base=lambda: host_reads(Msr.GS_BASE, lambda value: value ^ 0x1000),
    the_host_reads_another_kernel_gs_base=lambda: host_reads(Msr.KERNEL_GS_BASE, lambda value: 0),
    the_host_reads_another_star=lambda: host_reads(Msr.STAR, lambda value: value ^ 1 << 48),
    the_host_reads_another_lstar=lambda: host_reads(Msr.LSTAR, lambda value: value & 0xFFFFFFFF),
    the_host_reads_another_cstar=lambda: host_reads(Msr.CSTAR, lambda value: 0),
    the_host_reads_another_syscall_mask=lambda: host_reads(Msr.SYSCALL_MASK, lambda value: value ^ 0x200),
    the_host_reads_another_sysenter_cs=lambda: host_reads(Msr.SYSENTER_CS, lambda value: value ^ 8),
    the_host_reads_another_sysenter_esp=lambda: host_reads(Msr.SYSENTER_ESP, lambda value: value ^ 8),
    the_host_reads_another_sysenter_eip=lambda: host_reads(Msr.SYSENTER_EIP, lambda value: value ^ 8),
    the_host_has_another_fs_base=lambda: _base("fs"),
    the_host_has_another_gs_base=lambda: _base("gs"),
)


def _shared_by_vcpus(index: int, *, by_guest: bool = False) -> Interposer:
    """What one vCPU has in an MSR, set by the host or by the guest, the others have too."""
    vcpus: list[int] = []
    writes = load("lists").symbol("wrmsr_list")
    entry = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal entry
        result = proceed()
        if call.name == "KVM_CREATE_VCPU":
            vcpus.append(result)
        elif call.name == "KVM_SET_REGS":
            entry = int(call.argument.rip)
        elif (by_guest and called(call) == RUN and entry == writes) or (not by_guest and call.name == SET):
            for fd in vcpus:
                if fd != call.fd:
                    set_msr_now(fd, index, get_msr_now(call.fd, index))
        return result

    return interposer


lies(
    "msr.vcpus-keep-their-own",
    vcpus_share_fs_base=lambda: _shared_by_vcpus(Msr.FS_BASE),
    vcpus_share_kernel_gs_base=lambda: _shared_by_vcpus(Msr.KERNEL_GS_BASE),
    vcpus_share_star=lambda: _shared_by_vcpus(Msr.STAR),
    vcpus_share_sysenter_eip=lambda: _shared_by_vcpus(Msr.SYSENTER_EIP),
    vcpus_share_gs_base_of_their_guest=lambda: _shared_by_vcpus(Msr.GS_BASE, by_guest=True),
    vcpus_share_lstar_of_their_guest=lambda: _shared_by_vcpus(Msr.LSTAR, by_guest=True),
    vcpus_share_syscall_mask_of_their_guest=lambda: _shared_by_vcpus(Msr.SYSCALL_MASK, by_guest=True),
    a_msr_cannot_be_set=lambda: succeed_with(SET, lambda call, result: result - 1),
    a_guest_reads_another_cstar=lambda: _guest_reads(Msr.CSTAR),
    wrmsr_of_lstar_faults=lambda: _guest_write_faults(Msr.LSTAR),
    the_host_reads_another_sysenter_cs=lambda: host_reads(Msr.SYSENTER_CS, lambda value: value ^ 8),
    the_host_has_another_fs_base=lambda: _base("fs"),
    a_vcpu_does_not_end=lambda: after(
        RUN, lambda call: setattr(call.argument.run, "exit_reason", lib.KVM_EXIT_HLT), nth(2)
    ),
)


lies(
    "msr.tsc-aux",
    vcpus_share_what_the_host_wrote=lambda: _shared_by_vcpus(Msr.TSC_AUX),
    vcpus_share_what_a_guest_wrote=lambda: _shared_by_vcpus(Msr.TSC_AUX, by_guest=True),
    it_cannot_be_set=lambda: succeed_with(SET, lambda call, result: result - 1),
    rdmsr_gives_another=lambda: _guest_reads(Msr.TSC_AUX),
    rdmsr_faults=lambda: _guest_reads(Msr.TSC_AUX, 0, 1),
    rdtscp_gives_another=lambda: _mailbox("aux", 0),
    wrmsr_faults=lambda: _guest_write_faults(Msr.TSC_AUX),
    the_host_reads_another=lambda: host_reads(Msr.TSC_AUX, lambda value: value ^ 1),
)


def _old_aux() -> Interposer:
    """RDTSCP of each of three vCPUs keeps what was there before WRMSR."""
    runs = 0

    def change(shared: Shared) -> None:
        nonlocal runs
        runs += 1
        if runs > 3:
            shared.set("values", 0x0102_0304 + runs - 4)

    return after_entry("aux", change, payload="lists")


lies("msr.tsc-aux", rdtscp_keeps_what_was_before=lambda: _old_aux())
