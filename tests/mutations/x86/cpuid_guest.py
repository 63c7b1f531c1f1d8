# SPDX-License-Identifier: Apache-2.0
"""Lies about CPUID in the guest, and about what it hides."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tests.mutations.lies import Condition, accept, after, drift, kvm_table, on_refusal
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import change_entry
from tests.mutations.x86.lies import GP, UD, in_lists, msr_readable
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer

GET_CPUID, SET_MSRS, SET_SREGS, GET_SREGS = "KVM_GET_CPUID2", "KVM_SET_MSRS", "KVM_SET_SREGS", "KVM_GET_SREGS"
_PKRS, _UINTR_TT, _LBR_CTL, _FRED_CONFIG = 0x6E1, 0x98A, 0x14CE, 0x1D4
_ANY = 0x55


def _reads(function: int, index: int, register: int, bits: int = 1) -> Interposer:
    """The guest reads other bits in a register (0 to 3) of a leaf, of leaf 1 where KVM's table lacks it."""
    if kvm_table().find(function, index) is None:
        function, index = 1, _ANY

    def change(operand: int, answer: Any) -> None:
        if operand == index << 32 | function:
            answer[register] ^= bits

    return in_lists("cpuid_list", change)


def _absent(operand: int, answer: Any) -> None:
    if not any(answer[0:4]) and not operand >> 32:
        answer[0] = 1


lies(
    "cpuid.guest-reads-table",
    the_guest_reads_another_signature=lambda: _reads(1, _ANY, 0),
    the_guest_reads_other_features=lambda: _reads(1, _ANY, 3, 1 << 25),
    the_guest_reads_osxsave_when_it_is_off=lambda: _reads(1, _ANY, 2, 1 << 27),
    the_guest_reads_other_extended_features=lambda: _reads(7, 0, 1, 1 << 5),
    the_guest_reads_another_size_of_the_xsave_area=lambda: _reads(0xD, 0, 1, 0x40),
    the_guest_reads_another_size_of_a_component=lambda: _reads(0xD, 2, 0),
    the_guest_reads_other_tiles=lambda: _reads(0x1D, 1, 1),
    the_guest_reads_another_multiplier=lambda: _reads(0x1E, 0, 1),
    the_guest_reads_another_hypervisor=lambda: _reads(0x40000000, _ANY, 1),
    the_guest_reads_another_extended_leaf=lambda: _reads(0x80000008, _ANY, 0),
    a_leaf_that_there_is_not_has_something=lambda: in_lists("cpuid_list", _absent),
    the_table_has_another_signature=lambda: after(GET_CPUID, change_entry(1, eax=lambda value: value ^ 1)),
    the_table_has_another_osxsave=lambda: after(GET_CPUID, change_entry(1, ecx=lambda value: value ^ 1 << 27)),
    the_table_has_another_size_of_the_xsave_area=lambda: after(GET_CPUID, change_entry(0xD, ebx=lambda value: 577)),
)


def _msr(entry: str, index: int, faults: int, vector: int = GP, value: int = 0, size: int = 8) -> Interposer:
    """RDMSR or WRMSR of an MSR has another outcome."""

    def change(operand: int, answer: Any) -> None:
        if operand == index:
            answer[0], answer[2], answer[3] = value, faults, vector

    return in_lists(entry, change, size)


def _cr4(bit: int, change: Callable[[Any], object]) -> Interposer:
    """MOV to CR4 with a bit has another outcome."""
    return in_lists("cr4_list", lambda operand, answer: change(answer) if operand >> bit & 1 else None)


def _taken(bit: int) -> Callable[[Any], object]:
    def change(answer: Any) -> None:
        answer[bit // 32] |= 1 << bit % 32
        answer[2] = 0

    return change


def _is_ud(answer: Any) -> None:
    answer[3] = UD


def _stays(bit: int) -> Callable[[Any], object]:
    def change(answer: Any) -> None:
        answer[bit // 32] |= 1 << bit % 32

    return change


def _with(bit: int) -> Condition:
    """Met by a KVM_SET_SREGS with a bit of CR4."""
    return lambda call: bool(call.argument.cr4 >> bit & 1)


def _set_osxmmexcpt(call: Call) -> None:
    """Clear CR4.OSXMMEXCPT behind the clause's back."""
    sregs = ffi.new("struct kvm_sregs *")
    lib.vmm_ioctl(call.fd, lib.KVM_GET_SREGS, sregs)
    sregs.cr4 &= ~(1 << 10)
    lib.vmm_ioctl(call.fd, lib.KVM_SET_SREGS, sregs)


lies(
    "cpuid.hidden-state-unreachable",
    the_guest_reads_pkrs=lambda: _msr("rdmsr_list", _PKRS, 0),
    the_guest_reads_a_msr_of_user_interrupts=lambda: _msr("rdmsr_list", _UINTR_TT, 0),
    a_fault_of_rdmsr_is_another=lambda: _msr("rdmsr_list", _LBR_CTL, 1, UD),
    a_fault_of_rdmsr_leaves_a_value=lambda: _msr("rdmsr_list", _FRED_CONFIG, 1, GP, 7),
    the_guest_writes_pkrs=lambda: _msr("wrmsr_list", _PKRS, 0, size=16),
    the_guest_writes_a_msr_of_fred=lambda: _msr("wrmsr_list", _FRED_CONFIG, 0, size=16),
    a_fault_of_wrmsr_is_another=lambda: _msr("wrmsr_list", _LBR_CTL, 1, UD, size=16),
    the_host_reads_pkrs=lambda: msr_readable(_PKRS, 0),
    the_host_reads_a_msr_of_lbrs=lambda: msr_readable(_LBR_CTL, 0),
    the_host_writes_a_hidden_msr=lambda: _set_msrs_takes(_UINTR_TT),
    the_host_sets_cr4_pks=lambda: accept(SET_SREGS, _with(24)),
    the_host_sets_cr4_fred=lambda: accept(SET_SREGS, _with(32)),
    the_host_gets_another_errno_for_cr4_uintr=lambda: drift(SET_SREGS, errno.EPERM, _with(25)),
    a_refused_cr4_changes_another_bit=lambda: on_refusal(SET_SREGS, _set_osxmmexcpt),
    the_guest_sets_cr4_pks=lambda: _cr4(24, _taken(24)),
    the_guest_sets_cr4_lass=lambda: _cr4(27, _taken(27)),
    a_fault_of_mov_to_cr4_is_another=lambda: _cr4(25, _is_ud),
    a_fault_of_mov_to_cr4_leaves_the_bit=lambda: _cr4(19, _stays(19)),
)


def _set_msrs_takes(index: int) -> Interposer:
    """KVM_SET_MSRS says that it set a MSR which KVM does not have."""

    def interposer(call: Call, proceed: Callable[[], int]) -> int:
        matches = call.name == SET_MSRS and call.argument.entries[0].index == index
        return 1 if matches else proceed()

    return interposer
