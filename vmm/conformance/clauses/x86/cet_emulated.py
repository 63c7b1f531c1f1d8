# SPDX-License-Identifier: Apache-2.0
"""CET where KVM would have to do the CPU's work: instructions it emulates, task switches, INIT outside KVM_RUN."""

from __future__ import annotations

import struct
from typing import Any

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86 import shadow
from vmm.conformance.x86.apic import INIT_BY_MESSAGE, make_runnable, signal_init, with_local_apics
from vmm.conformance.x86.common import AREA, pattern, plain_features, untiled_features
from vmm.conformance.x86.shadow import ENDBR_EN, SH_STK_EN, SHSTK, set_up_msr, shadow_guest, ssp
from vmm.kvm.exits import Exit, InternalError, IoOut, MmioRead
from vmm.x86 import cpuid
from vmm.x86.boot import CR4_CET
from vmm.x86.guest import DONE, Guest
from vmm.x86.msr import get_msr, name
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_regs, get_sregs, get_xcr0, set_regs, set_sregs, set_xcr0
from vmm.x86.xsave import get_xsave, set_xsave

_NO_MEMORY = 0xD0000000
# Which of them a CPU does more for than jump: with shadow stacks, and with branch tracking.
_REFUSED = {
    "call_read": SH_STK_EN | ENDBR_EN,
    "jump_read": ENDBR_EN,
    "return_read": SH_STK_EN,
}


@clause(
    "cet.emulation-refused",
    arch="x86",
    needs=(SHSTK, capability("KVM_CAP_EXIT_ON_EMULATION_FAILURE")),
)
def emulation_refused(context: Context) -> None:
    """KVM does not emulate a near branch whose shadow stack or branch tracking it would skip, but gives up on it.

    That is KVM_EXIT_INTERNAL_ERROR with the instruction not begun. Without CET, and where CET has nothing to do with
    the branch, it emulates it.

    Source: arch/x86/kvm/emulate.c, x86_decode_insn (is_shstk_instruction, is_ibt_instruction); Linux 6.18.
    """
    guest = shadow_guest(context, user=0)
    guest.vm.enable_cap(lib.KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
    for privilege, register in ((0, Msr.S_CET), (3, Msr.U_CET)):
        for entry, features in _REFUSED.items():
            for enabled in (0, *_switches(guest)):
                set_up_msr(guest.vcpu, register, enabled)
                what = f"{entry} at CPL {privilege} with {name(register)} {enabled}"
                _branch(context, guest, what, entry, privilege, refused=bool(features & enabled))
                set_up_msr(guest.vcpu, register, 0)


def _switches(guest: Guest) -> tuple[int, ...]:
    """The bits of U_CET and S_CET that turn something on: AMD has no branch tracking."""
    return (SH_STK_EN, ENDBR_EN) if guest.cpuid.has("IBT") else (SH_STK_EN,)


def _branch(context: Context, guest: Guest, what: str, entry: str, privilege: int, *, refused: bool) -> None:
    guest.prepare(entry, _NO_MEMORY, privilege=privilege)
    pointer = ssp(guest.vcpu)
    exit = succeeds(what, guest.resume, context.timeout)
    if not refused:
        equal(f"the exit of {what}", exit, MmioRead(_NO_MEMORY, 8))
        guest.vcpu.reply(guest.payload.symbol("arrived"))
        with judged(f"the target of {what}", "an end without a fault"):
            equal(f"the event behind {what}", guest.finish(guest.resume(context.timeout), what), DONE)
        equal(f"arrivals of {what}", guest.mailbox.values[0], 1)
        return
    _gave_up(f"the exit of {what}", exit)
    equal(f"RIP of {what}", get_regs(guest.vcpu).rip, guest.payload.symbol(f"at_{entry}"))
    equal(f"SSP of {what}", ssp(guest.vcpu), pointer)
    equal(f"arrivals of {what}", guest.mailbox.values[0], 0)


def _gave_up(what: str, exit: Exit) -> None:
    """The exit says that KVM cannot emulate; what else it says is left to KVM."""
    shown = exit._replace(data=()) if isinstance(exit, InternalError) else exit
    equal(what, shown, InternalError(lib.KVM_INTERNAL_ERROR_EMULATION, ()))


# 32-bit protected mode without paging: what the task switch needs, below the payload.
_GDT, _OLD_TSS, _NEW_TSS, _CODE = 0x10000, 0x10100, 0x10200, 0x10300
_CODE_AT, _DATA_AT, _OLD_AT, _NEW_AT = 0x08, 0x10, 0x18, 0x20
# With CR4.CET a 32-bit TSS has an SSP too, at 104.
_TSS_LIMIT, _BUSY = 0x6B, 2
_CR0 = 0x10031  # WP NE ET PE


def _two_tasks(guest: Guest) -> Any:
    """Write two tasks, the second of which ends, and put the vCPU into the first, about to jump to the second."""
    flat = 0x00CF << 48 | 0xFFFF
    segments = [0, flat | 0x9B << 40, flat | 0x93 << 40]
    tasks = [_TSS_LIMIT | base << 16 | kind << 40 for base, kind in ((_OLD_TSS, 0x8B), (_NEW_TSS, 0x89))]
    guest.memory.write(_GDT, struct.pack("<5Q", *segments, *tasks))
    target = _CODE + 0x20
    new = bytearray(_TSS_LIMIT + 1)
    # EIP, EFLAGS, eight general registers, then ES, CS, SS, DS, FS and GS. Intel SDM volume 3, "Task-State Segment".
    struct.pack_into("<10I", new, 32, target, 2, 0, 0, 0, 0, _CODE, 0, 0, 0)
    struct.pack_into("<6I", new, 72, _DATA_AT, _CODE_AT, *[_DATA_AT] * 4)
    struct.pack_into("<H", new, 102, _TSS_LIMIT + 1)
    guest.memory.write(_NEW_TSS, bytes(new))
    guest.memory.write(_OLD_TSS, bytes(_TSS_LIMIT + 1))
    guest.memory.write(_CODE, struct.pack("<BIH", 0xEA, 0, _NEW_AT))  # a far jump to the task
    event = guest.payload.symbol("EVENT_PORT_NUMBER")
    guest.memory.write(target, bytes([0xB0, DONE, 0xE6, event]))
    guest.prepare("_start")
    sregs = get_sregs(guest.vcpu)
    # A field that is not named keeps what it was in long mode.
    code = {"limit": 0xFFFFFFFF, "selector": _CODE_AT, "type": 0xB, "present": 1, "db": 1, "s": 1, "l": 0, "g": 1}
    sregs.cs = code
    for segment in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, segment, {**code, "selector": _DATA_AT, "type": 3})
    sregs.tr = {"base": _OLD_TSS, "limit": _TSS_LIMIT, "selector": _OLD_AT, "type": 0xB, "present": 1}
    sregs.gdt = {"base": _GDT, "limit": 5 * 8 - 1}
    sregs.idt = {"base": 0, "limit": 0}
    sregs.cr0, sregs.cr4, sregs.efer = _CR0, CR4_CET, 0
    set_sregs(guest.vcpu, sregs)
    regs = get_regs(guest.vcpu)
    regs.rip, regs.rsp, regs.rflags = _CODE, _CODE, 2
    set_regs(guest.vcpu, regs)


@clause("cet.task-switch-emul", arch="x86", needs=(SHSTK,))
def task_switch_emulated(context: Context) -> None:
    """KVM emulates a task switch only while U_CET and S_CET have shadow stacks and tracking off, else it gives up.

    That is KVM_EXIT_INTERNAL_ERROR, and the guest is in the old task. Intel and AMD leave task switches to KVM.

    Source: arch/x86/kvm/x86.c, kvm_task_switch; Linux 6.18.
    """
    guest = shadow_guest(context, user=0)
    tracking: list[dict[Msr, int]] = [{Msr.U_CET: ENDBR_EN}, {Msr.S_CET: ENDBR_EN}]
    for registers in ({}, {Msr.U_CET: SH_STK_EN}, *tracking * guest.cpuid.has("IBT")):
        _two_tasks(guest)
        for register, value in registers.items():
            set_up_msr(guest.vcpu, register, value)
        what = ", ".join(f"{name(register)} {value}" for register, value in registers.items()) or "CET off"
        exit = succeeds(f"the task switch with {what}", guest.resume, context.timeout)
        if registers:
            _gave_up(f"the exit of the task switch with {what}", exit)
        else:
            done = IoOut(guest.payload.symbol("EVENT_PORT_NUMBER"), 1, DONE)
            equal(f"the exit of the task switch with {what}", exit, done)
        equal(f"TR after it with {what}", get_sregs(guest.vcpu).tr.selector, _OLD_AT if registers else _NEW_AT)
        busy = guest.memory.read(_GDT + _NEW_AT + 5, 1)[0] & _BUSY
        equal(f"the busy bit of the new task with {what}", busy, 0 if registers else _BUSY)
        for register in registers:
            set_up_msr(guest.vcpu, register, 0)


@clause("cet.init-outside-run", arch="x86", needs=(SHSTK, *AREA, *INIT_BY_MESSAGE), dangerous=True)
def init_outside_run(context: Context) -> None:
    """INIT that KVM_GET_MP_STATE takes clears the CET registers too, and leaves the other components and XCR0.

    A KVM with CET for guests but without the commit 9bc610b6a2a7 puts away registers that are not loaded then: those
    of the VMM become the guest's.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_get_mpstate, kvm_xstate_reset; Linux 6.18.
    """
    vm = with_local_apics(context.vm())
    vm.create_vcpu(0)
    second = vm.create_vcpu(1)
    table = context.host.facts.cpuid
    cpuid.set_cpuid(second, table)
    features = plain_features(context)
    set_xcr0(second, untiled_features(context))
    registers = {Msr.U_CET: 1, Msr.S_CET: 1, Msr.PL0_SSP: 0x1000, Msr.PL1_SSP: 0x2000, Msr.PL2_SSP: 0x3000,
                 Msr.PL3_SSP: 0x4000, Msr.INT_SSP_TAB: 0x5000}  # fmt: skip
    for msr, value in {**registers, Msr.XSS: table.xss & shadow.CET}.items():
        set_up_msr(second, msr, value)
    shadow.set_ssp(second, 0x6000)
    written = pattern(features, context.options.seed)
    set_xsave(second, written)
    make_runnable(second)
    signal_init(vm, second)
    equal("mp_state, which takes INIT", second.mp_state, lib.KVM_MP_STATE_INIT_RECEIVED)
    for msr in registers:
        equal(f"{name(msr)} after INIT", get_msr(second, msr), 0)
    equal("SSP after INIT", ssp(second), 0)
    equal("XCR0 after INIT", get_xcr0(second), untiled_features(context))
    equal(f"{name(Msr.XSS)} after INIT", get_msr(second, Msr.XSS), table.xss & shadow.CET)
    no_difference("the other components after INIT", written.same_state(get_xsave(second)))
