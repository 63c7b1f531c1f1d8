# SPDX-License-Identifier: Apache-2.0
"""Lies about general, control, segment and debug registers: lost in writing, in reading, or in the guest."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import reduce
from typing import Any

from tests.mutations.lies import (
    RUN,
    Shared,
    accept,
    after,
    after_entry,
    assign,
    before,
    drift,
    nth,
    on_refusal,
    refuse,
    toggle,
)
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import set_msr_now, struct_now
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

GET_REGS, SET_REGS = "KVM_GET_REGS", "KVM_SET_REGS"
GET_SREGS, SET_SREGS = "KVM_GET_SREGS", "KVM_SET_SREGS"
GET_DEBUG, SET_DEBUG = "KVM_GET_DEBUGREGS", "KVM_SET_DEBUGREGS"
_LAST = len(ffi.typeof("struct kvm_regs").fields) - 2


def _really(kind: str, path: str, bits: int) -> Interposer:
    """A register that reads as it should is something else when the guest runs."""
    get, set_ = {
        "kvm_regs": (lib.KVM_GET_REGS, lib.KVM_SET_REGS),
        "kvm_sregs": (lib.KVM_GET_SREGS, lib.KVM_SET_SREGS),
        "kvm_debugregs": (lib.KVM_GET_DEBUGREGS, lib.KVM_SET_DEBUGREGS),
    }[kind]

    def change(value: Any) -> None:
        *outer, last = path.split(".")
        owner: Any = reduce(getattr, outer, value)
        setattr(owner, last, getattr(owner, last) ^ bits)

    # KVM_SET_REGS would discard nothing that the clauses look at.
    return before(RUN, lambda call: struct_now(call.fd, get, set_, kind, change), nth(1))


def _general(at: int) -> Interposer:
    """The guest finds another value in one of the general registers."""

    def change(guest: Shared) -> None:
        guest.at(guest.payload.symbol("general"))[at] ^= 1

    return after_entry("registers", change, payload="state")


def _general_lost(name: str) -> Interposer:
    return before(SET_REGS, assign(name, 0))


def _value(entry: str, at: int) -> Interposer:
    """The guest reads another value."""
    return after_entry(entry, lambda guest: guest.set("values", guest.get("values", at) ^ 1, at), payload="state")


def _table(symbol: str, byte: int) -> Interposer:
    return after_entry("control", lambda guest: guest.poke(symbol, byte), payload="state")


def _breakpoint(number: int) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        call.argument.db[number] = 0

    return change


lies(
    "mig.regs-in-guest",
    rax_loses_what_is_written=lambda: _general_lost("rax"),
    rsp_loses_what_is_written=lambda: _general_lost("rsp"),
    r15_loses_what_is_written=lambda: _general_lost("r15"),
    flags_lose_what_is_written=lambda: before(SET_REGS, assign("rflags", 2)),
    rip_is_not_restored=lambda: before(SET_REGS, toggle("rip", 0x10), nth(3)),
    rbx_is_not_shown=lambda: after(GET_REGS, assign("rbx", 0)),
    general_registers_are_refused=lambda: refuse(SET_REGS, errno.EINVAL, nth(2)),
    the_copy_refuses_general_registers=lambda: refuse(SET_REGS, errno.EINVAL, nth(3)),
    the_guest_finds_another_rax=lambda: _general(0),
    the_guest_finds_another_rbx=lambda: _general(1),
    the_guest_finds_another_rcx=lambda: _general(2),
    the_guest_finds_another_rdx=lambda: _general(3),
    the_guest_finds_another_rsi=lambda: _general(4),
    the_guest_finds_another_rdi=lambda: _general(5),
    the_guest_finds_another_rsp=lambda: _general(6),
    the_guest_finds_another_rbp=lambda: _general(7),
    the_guest_finds_another_r8=lambda: _general(8),
    the_guest_finds_another_r11=lambda: _general(11),
    the_guest_finds_another_r15=lambda: _general(15),
    the_guest_has_no_carry=lambda: _really("kvm_regs", "rflags", 1),
    the_guest_has_another_r15=lambda: _really("kvm_regs", "r15", 1 << 40),
    the_guest_starts_elsewhere=lambda: _really("kvm_regs", "rip", 1 << 40),
)

lies(
    "mig.sregs-in-guest",
    cr0_loses_what_is_written=lambda: before(SET_SREGS, lambda call: toggle("cr0", 1 << 16)(call), nth(2)),
    cr2_loses_what_is_written=lambda: before(SET_SREGS, assign("cr2", 0)),
    cr3_loses_its_low_bits=lambda: before(SET_SREGS, lambda call: assign("cr3", call.argument.cr3 & ~0xFFF)(call)),
    cr4_loses_tsd=lambda: before(SET_SREGS, lambda call: assign("cr4", call.argument.cr4 & ~4)(call)),
    cr8_loses_what_is_written=lambda: before(SET_SREGS, assign("cr8", 0)),
    the_apic_base_loses_what_is_written=lambda: before(SET_SREGS, assign("apic_base", 0xFEE00900)),
    cr8_is_not_shown=lambda: after(GET_SREGS, assign("cr8", 0)),
    cr8_of_kvm_run_is_not_taken=lambda: before(RUN, lambda call: setattr(call.argument.run, "cr8", 0)),
    cr8_of_kvm_run_is_another_afterwards=lambda: after(
        RUN, lambda call: setattr(call.argument.run, "cr8", 0xB), nth(3)
    ),
    the_guest_reads_another_cr8=lambda: _value("cr8", 0),
    the_guest_has_another_apic_base=lambda: _really("kvm_sregs", "apic_base", 1 << 20),
    efer_loses_sce=lambda: before(SET_SREGS, lambda call: assign("efer", call.argument.efer & ~1)(call)),
    fs_base_loses_what_is_written=lambda: before(SET_SREGS, assign("fs.base", 0)),
    gs_base_loses_what_is_written=lambda: before(SET_SREGS, assign("gs.base", 0)),
    the_gdt_limit_loses_what_is_written=lambda: before(SET_SREGS, assign("gdt.limit", 63)),
    the_idt_limit_is_not_shown=lambda: after(GET_SREGS, assign("idt.limit", 511)),
    control_registers_are_refused=lambda: refuse(SET_SREGS, errno.EINVAL, nth(2)),
    the_copy_refuses_control_registers=lambda: refuse(SET_SREGS, errno.EINVAL, nth(3)),
    the_guest_reads_another_cr0=lambda: _value("control", 0),
    the_guest_reads_another_cr2=lambda: _value("control", 1),
    the_guest_reads_another_cr3=lambda: _value("control", 2),
    the_guest_reads_another_cr4=lambda: _value("control", 3),
    the_guest_reads_another_tr=lambda: _value("control", 4),
    the_guest_reads_another_cs=lambda: _value("control", 5),
    the_guest_reads_another_ss=lambda: _value("control", 6),
    the_guest_reads_another_ds=lambda: _value("control", 7),
    the_guest_reads_another_es=lambda: _value("control", 8),
    the_guest_reads_another_fs=lambda: _value("control", 9),
    the_guest_reads_another_gs=lambda: _value("control", 10),
    the_guest_reads_another_gdt_limit=lambda: _table("gdt", 0),
    the_guest_reads_another_gdt_base=lambda: _table("gdt", 2),
    the_guest_reads_another_idt_limit=lambda: _table("idt", 0),
    the_guest_reads_another_idt_base=lambda: _table("idt", 2),
    the_guest_has_another_fs_base=lambda: before(RUN, lambda call: set_msr_now(call.fd, Msr.FS_BASE, 0)),
    the_guest_has_another_gs_base=lambda: before(RUN, lambda call: set_msr_now(call.fd, Msr.GS_BASE, 0)),
    the_guest_has_another_efer=lambda: _really("kvm_sregs", "efer", 1),
    the_guest_has_another_cr2=lambda: _really("kvm_sregs", "cr2", 1 << 20),
)

lies(
    "mig.debugregs",
    dr0_loses_what_is_written=lambda: before(SET_DEBUG, _breakpoint(0)),
    dr1_loses_what_is_written=lambda: before(SET_DEBUG, _breakpoint(1)),
    dr2_loses_what_is_written=lambda: before(SET_DEBUG, _breakpoint(2)),
    dr3_loses_what_is_written=lambda: before(SET_DEBUG, _breakpoint(3)),
    dr6_loses_what_is_written=lambda: before(SET_DEBUG, assign("dr6", 0xFFFF0FF0), nth(1)),
    dr7_loses_what_is_written=lambda: before(SET_DEBUG, assign("dr7", 0x400), nth(1)),
    dr6_reads_with_its_high_half=lambda: after(GET_DEBUG, toggle("dr6", 1 << 32)),
    flags_are_not_0=lambda: after(GET_DEBUG, assign("flags", 1)),
    flags_are_accepted=lambda: accept(SET_DEBUG, lambda call: bool(call.argument.flags == 1)),
    the_highest_flag_is_accepted=lambda: accept(SET_DEBUG, lambda call: bool(call.argument.flags >> 63)),
    dr6_with_bit_32_is_accepted=lambda: accept(SET_DEBUG, lambda call: bool(call.argument.dr6 >> 32 & 1)),
    dr6_with_bit_63_is_accepted=lambda: accept(SET_DEBUG, lambda call: bool(call.argument.dr6 >> 63)),
    dr7_with_bit_32_is_accepted=lambda: accept(SET_DEBUG, lambda call: bool(call.argument.dr7 >> 32 & 1)),
    dr7_with_bit_63_is_accepted=lambda: accept(SET_DEBUG, lambda call: bool(call.argument.dr7 >> 63)),
    flags_are_e2big=lambda: drift(SET_DEBUG, errno.E2BIG),
    refused_breakpoints_are_taken=lambda: on_refusal(SET_DEBUG, lambda call: _take_now(call, dr6=False)),
    a_refused_dr6_is_taken=lambda: on_refusal(SET_DEBUG, lambda call: _take_now(call, dr6=True)),
)


def _take_now(call: Call, *, dr6: bool) -> None:
    """Really set part of what was refused."""

    def change(value: Any) -> None:
        if dr6:
            value.dr6 = call.argument.dr6 & 0xFFFFFFFF
        else:
            value.db[2] = call.argument.db[2]

    struct_now(call.fd, lib.KVM_GET_DEBUGREGS, lib.KVM_SET_DEBUGREGS, "kvm_debugregs", change)


lies(
    "mig.debugregs-in-guest",
    dr2_loses_what_is_written=lambda: before(SET_DEBUG, _breakpoint(2)),
    dr6_loses_what_is_written=lambda: before(SET_DEBUG, assign("dr6", 0xFFFF0FF0)),
    dr7_is_not_shown=lambda: after(GET_DEBUG, assign("dr7", 0x400)),
    debug_registers_are_refused=lambda: refuse(SET_DEBUG, errno.EINVAL),
    the_copy_refuses_debug_registers=lambda: refuse(SET_DEBUG, errno.EINVAL, nth(2)),
    the_guest_reads_another_dr0=lambda: _value("debug", 0),
    the_guest_reads_another_dr1=lambda: _value("debug", 1),
    the_guest_reads_another_dr2=lambda: _value("debug", 2),
    the_guest_reads_another_dr3=lambda: _value("debug", 3),
    the_guest_reads_another_dr6=lambda: _value("debug", 4),
    the_guest_reads_another_dr7=lambda: _value("debug", 5),
    the_guest_has_another_dr6=lambda: _really("kvm_debugregs", "dr6", 2),
    mov_from_dr_faults=lambda: _really("kvm_debugregs", "dr7", 1 << 13),
)
