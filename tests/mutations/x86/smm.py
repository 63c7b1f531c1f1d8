# SPDX-License-Identifier: Apache-2.0
"""Lies about system management mode: where an SMI goes, what it saves, what RSM brings back."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import (
    RUN,
    Change,
    Proceed,
    Shared,
    after,
    after_entry,
    answer,
    assign,
    called,
    nth,
    once,
    refuse,
    succeed_with,
    toggle,
)
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import (
    MXCSR,
    ST7,
    XMM3,
    change_list,
    flip,
    flip_now,
    of_msr,
    top_byte,
    with_bits,
    xcr0_reads,
)
from tests.mutations.x86.lies import UD, faults, guest_did_not_fault, host_reads, set_in_guest
from vmm._kvm import ffi, lib
from vmm.conformance.x86 import smm
from vmm.conformance.x86.smm import GENERAL, GENERAL_AT, SMBASE
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

SMI, EVENTS, REGS, SREGS = "KVM_SMI", "KVM_GET_VCPU_EVENTS", "KVM_GET_REGS", "KVM_GET_SREGS"
OTHER = 0x40000


def _after_smi(name: str, change: Change, number: int = 0) -> Interposer:
    """Spoil the answers behind the SMI, or only the ``number``-th of them."""
    return once(SMI, after(name, change, nth(number)) if number else after(name, change))


def _smi_is_lost() -> Interposer:
    return answer(SMI, 0)


def _in_smram(offset: int, smbase: int = SMBASE) -> Interposer:
    """Spoil a field of the state-save area whenever the guest has left."""

    def change(guest: Shared) -> None:
        guest.at(smbase + offset)[0] ^= 0x40

    return after_entry("ticks", change)


def _no_return(number: int) -> Interposer:
    """The VM dies at one of the runs."""
    return refuse(RUN, errno.EIO, nth(number))


lies(
    "smm.enters-handler",
    an_smi_is_refused=lambda: refuse(SMI, errno.ENOTTY),
    an_smi_is_lost=lambda: _smi_is_lost(),
    a_vcpu_is_in_smm_from_the_start=lambda: after(EVENTS, assign("smi.smm", 1), nth(1)),
    the_handler_leaves_in_another_way=lambda: once(SMI, succeed_with(RUN, lambda call, result: lib.VMM_RUN_EXIT)),
    the_events_do_not_say_smm=lambda: _after_smi(EVENTS, assign("smi.smm", 0)),
    the_handler_is_elsewhere=lambda: _after_smi(REGS, toggle("rip", 0x8000)),
    cs_has_no_base=lambda: _after_smi(SREGS, assign("cs.base", 0)),
    cs_keeps_its_selector=lambda: _after_smi(SREGS, assign("cs.selector", 8)),
    paging_stays_on=lambda: _after_smi(SREGS, toggle("cr0", 1 << 31)),
    write_protection_is_turned_off=lambda: _after_smi(SREGS, toggle("cr0", 1 << 16)),
    cr4_is_kept=lambda: _after_smi(SREGS, assign("cr4", 0x20)),
    efer_is_kept=lambda: _after_smi(SREGS, assign("efer", 0xD00)),
    rsm_kills_the_vm=lambda: _no_return(3),
    the_vcpu_is_in_smm_for_ever=lambda: _after_smi(EVENTS, assign("smi.smm", 1), 2),
)

_FIELDS = {
    **{register: GENERAL_AT + 8 * number for number, register in enumerate(GENERAL)},
    "rip": smm.RIP_AT, "rflags": smm.RFLAGS_AT, "cr0": smm.CR0_AT, "cr3": smm.CR3_AT, "cr4": smm.CR4_AT,
    "efer": smm.EFER_AT, "smbase": smm.SMBASE_AT,
}  # fmt: skip


def _saves_another(field: str) -> Callable[[], Interposer]:
    return lambda: _in_smram(_FIELDS[field])


lies("smm.save-area", **{f"another_{field}_is_saved": _saves_another(field) for field in _FIELDS})

lies(
    "smm.save-area",
    smbase_cannot_be_relocated=lambda: after_entry(
        "ticks", lambda guest: guest.at(SMBASE + smm.REVISION_AT - 4).__setitem__(0, 0x64 << 32)
    ),
)


def _xmm3(call: Call) -> None:
    with_bits(2)(call)
    flip(XMM3)(call)


lies(
    "smm.resumes",
    an_smi_is_refused=lambda: refuse(SMI, errno.ENOTTY),
    an_smi_leaves_the_handlers_rax=lambda: _after_smi(REGS, assign("rax", 0xDEAD)),
    an_smi_moves_r15=lambda: _after_smi(REGS, toggle("r15", 1 << 63)),
    an_smi_changes_rip=lambda: _after_smi(REGS, toggle("rip", 2)),
    an_smi_turns_paging_off=lambda: _after_smi(SREGS, toggle("cr0", 1 << 31)),
    an_smi_changes_a_segment=lambda: _after_smi(SREGS, toggle("ss.base", 1 << 16)),
    an_smi_loses_the_idt=lambda: _after_smi(SREGS, assign("idt.limit", 0)),
    an_smi_changes_xcr0=lambda: once(SMI, xcr0_reads(3)),
    an_smi_changes_an_xmm_register=lambda: _after_smi("KVM_GET_XSAVE2", _xmm3),
    an_smi_changes_dr7=lambda: _after_smi("KVM_GET_DEBUGREGS", toggle("dr7", 1)),
    an_smi_halts_the_vcpu=lambda: _after_smi("KVM_GET_MP_STATE", assign("mp_state", lib.KVM_MP_STATE_HALTED)),
    an_smi_leaves_nmis_masked=lambda: _after_smi(EVENTS, assign("nmi.masked", 1)),
    the_guest_does_not_return=lambda: _no_return(5),
)

lies(
    "smm.rsm-loads-save-area",
    rsm_brings_rbx_as_it_was=lambda: _after_smi(REGS, assign("rbx", 0)),
    rsm_does_not_load_smbase=lambda: host_reads(Msr.SMBASE, lambda value: SMBASE),
    the_next_smi_goes_to_the_first_smbase=lambda: _after_smi(SREGS, assign("cs.base", SMBASE)),
    the_first_smbase_is_saved=lambda: _in_smram(smm.SMBASE_AT, OTHER),
    the_first_rsm_kills_the_vm=lambda: once(SMI, succeed_with(RUN, lambda call, result: lib.VMM_RUN_EXIT, nth(2))),
    the_second_rsm_kills_the_vm=lambda: _no_return(5),
)

lies(
    "smm.smbase-msr",
    ia32_smbase_is_not_listed=lambda: change_list(Msr.SMBASE),
    ia32_smbase_begins_at_0=lambda: host_reads(Msr.SMBASE, lambda value: 0 if value == SMBASE else value),
    the_guest_reads_ia32_smbase=lambda: after_entry("rdmsr", guest_did_not_fault),
    the_guest_writes_ia32_smbase=lambda: after_entry("wrmsr", guest_did_not_fault),
    reading_ia32_smbase_is_ud=lambda: after_entry("rdmsr", faults(1, UD)),
    writing_ia32_smbase_is_ud=lambda: after_entry("wrmsr", faults(1, UD)),
    what_the_guest_writes_is_kept=lambda: after_entry("wrmsr", set_in_guest(Msr.SMBASE, OTHER)),
    the_host_cannot_set_ia32_smbase=lambda: answer("KVM_SET_MSRS", 0, of_msr(Msr.SMBASE)),
    an_smi_goes_to_the_old_smbase=lambda: _after_smi(SREGS, assign("cs.base", SMBASE)),
    an_smi_resets_ia32_smbase=lambda: once(SMI, host_reads(Msr.SMBASE, lambda value: SMBASE)),
)

lies(
    "smm.own-memory",
    the_state_is_not_saved_there=lambda: _in_smram(smm.SMBASE_AT),
    rsm_kills_the_vm=lambda: _no_return(2),
    an_smi_is_lost=lambda: once(SMI, succeed_with(RUN, lambda call, result: lib.VMM_RUN_EXIT)),
)


@mutation("smm.own-memory")
def the_state_is_saved_in_address_space_0_too() -> Interposer:
    base = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal base
        if call.name == "KVM_SET_USER_MEMORY_REGION" and call.argument.slot == 0 and not base:
            base = int(call.argument.userspace_addr)
        result = proceed()
        if called(call) == RUN:
            ffi.cast("uint8_t *", base + SMBASE + smm.RIP_AT)[0] = 0x40
        return result

    return interposer


def _in_handler(change: Callable[[int], object]) -> Interposer:
    """Spoil the vCPU's registers while it is in the handler."""
    return _after_smi(RUN, lambda call: change(call.fd), 1)


lies(
    "smm.fpu-untouched",
    an_smi_changes_st7=lambda: _in_handler(flip_now(ST7)),
    an_smi_changes_mxcsr=lambda: _in_handler(flip_now(MXCSR, 0x20)),
    an_smi_changes_xmm3=lambda: _in_handler(flip_now(XMM3)),
    an_smi_changes_the_highest_component=lambda: _in_handler(flip_now(top_byte())),
    rsm_kills_the_vm=lambda: _no_return(3),
    an_smi_is_refused=lambda: refuse(SMI, errno.ENOTTY),
)

lies(
    "smm.waits-for-rsm",
    the_second_smi_is_lost=lambda: answer(SMI, 0, nth(2)),
    the_second_smi_is_not_shown=lambda: _after_smi(EVENTS, assign("smi.pending", 0)),
    the_second_smi_ends_smm=lambda: _after_smi(EVENTS, assign("smi.smm", 0), 1),
    the_second_smi_is_not_taken_behind_rsm=lambda: _after_smi(EVENTS, assign("smi.pending", 1)),
    the_second_smi_does_not_lead_to_smm=lambda: _after_smi(EVENTS, assign("smi.smm", 0), 2),
    the_second_handler_is_elsewhere=lambda: _after_smi(REGS, toggle("rip", 0x8000)),
    the_first_rsm_leaves_in_another_way=lambda: once(
        SMI, succeed_with(RUN, lambda call, result: lib.VMM_RUN_EXIT, nth(2))
    ),
    the_second_rsm_kills_the_vm=lambda: _no_return(4),
)
