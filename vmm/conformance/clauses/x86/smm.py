# SPDX-License-Identifier: Apache-2.0
"""System management mode: where a vCPU goes on an SMI, what it saves, and what RSM brings back."""

from __future__ import annotations

import random

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference
from vmm.conformance.registry import clause
from vmm.conformance.x86 import smm, state
from vmm.conformance.x86.common import AREA, GUEST_XSAVE, STRICT_MSRS, judged_call, vector_guest, vector_level
from vmm.conformance.x86.image import Image
from vmm.conformance.x86.smm import (
    HANDLER,
    RSM,
    SMBASE,
    SMM,
    SMRAM_SIZE,
    give_smram,
    run_to_tick,
    send_smi,
    stop_in_handler,
    tick,
)
from vmm.kvm.exits import Budget
from vmm.x86.guest import DONE, Guest
from vmm.x86.msr import get_msr, index_list, name, set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_regs, get_sregs

_OTHER_SMBASE = 0x40000
# PE, EM, TS and PG are clear in SMM, all else of CR0 stays: Intel SDM volume 3, "Initial SMM Execution Environment".
_CR0_CLEAR = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 31
# "SMBASE relocation is supported", of the SMM revision identifier. Intel SDM volume 3, "SMM Revision Identifier".
_RELOCATION = 1 << 17


def _ticking(context: Context, ticks: int = 2) -> Guest:
    """A guest stopped behind the first of its ticks, with an SMI handler that ticks once and resumes."""
    guest = context.own(Guest(context.kvm, "hello"))
    give_smram(guest, tick(guest) + RSM)
    guest.prepare("ticks", ticks)
    equal("the guest's first tick", guest.resume(context.timeout, ticks=1), Budget(1))
    guest.vcpu.complete()
    return guest


def _to_the_end(context: Context, guest: Guest, what: str) -> None:
    with judged(what, "an end without a fault"):
        equal(what, guest.finish(guest.resume(context.timeout), what), DONE)


@clause("smm.enters-handler", arch="x86", needs=(SMM,))
def enters_handler(context: Context) -> None:
    """After KVM_SMI the vCPU runs the handler at SMBASE + 0x8000 in real mode, and KVM_GET_VCPU_EVENTS says smi.smm.

    Source: Intel SDM volume 3, "Initial SMM Execution Environment"; arch/x86/kvm/smm.c, enter_smm;
    Documentation/virt/kvm/api.rst, KVM_SMI.
    """
    guest = _ticking(context)
    before = get_sregs(guest.vcpu)
    equal("smi.smm before the SMI", guest.vcpu.get_events().smi.smm, 0)
    stop_in_handler(context, guest)
    regs, sregs = get_regs(guest.vcpu), get_sregs(guest.vcpu)
    equal("smi.smm in the handler", guest.vcpu.get_events().smi.smm, 1)
    equal("RIP behind the handler's first instruction", regs.rip, HANDLER + len(tick(guest)))
    equal("the base of CS", sregs.cs.base, SMBASE)
    equal("the selector of CS", sregs.cs.selector, SMBASE >> 4)
    equal("CR0", sregs.cr0, before.cr0 & ~_CR0_CLEAR)
    equal("CR4 and EFER", (sregs.cr4, sregs.efer), (0, 0))
    _to_the_end(context, guest, "the guest behind RSM")
    equal("smi.smm behind RSM", guest.vcpu.get_events().smi.smm, 0)


@clause("smm.save-area", arch="x86", needs=(SMM,))
def save_area(context: Context) -> None:
    """The state-save area has the interrupted code's general and control registers, RIP, RFLAGS, EFER and SMBASE.

    Its layout is AMD's on every CPU, which firmware for KVM relies on.

    Source: arch/x86/kvm/smm.c, enter_smm_save_state_64; AMD APM volume 2, table 10-1.
    """
    guest = _ticking(context)
    regs, sregs = get_regs(guest.vcpu), get_sregs(guest.vcpu)
    stop_in_handler(context, guest)
    for number, register in enumerate(smm.GENERAL):
        equal(f"{register.upper()} saved", smm.saved(guest, smm.GENERAL_AT + 8 * number), getattr(regs, register))
    equal(
        "RIP and RFLAGS saved",
        (smm.saved(guest, smm.RIP_AT), smm.saved(guest, smm.RFLAGS_AT)),
        (regs.rip, regs.rflags),
    )
    control = {"CR0": smm.CR0_AT, "CR3": smm.CR3_AT, "CR4": smm.CR4_AT, "EFER": smm.EFER_AT}
    for register, at in control.items():
        equal(f"{register} saved", smm.saved(guest, at), getattr(sregs, register.lower()))
    equal("SMBASE saved", smm.saved(guest, smm.SMBASE_AT, size=4), SMBASE)
    revision = smm.saved(guest, smm.REVISION_AT, size=4)
    equal("the bit for SMBASE relocation in the revision", revision & _RELOCATION, _RELOCATION)


@clause("smm.resumes", arch="x86", needs=(SMM, *AREA))
def resumes(context: Context) -> None:
    """An SMI between two of a guest's exits changes none of its state at the second, whatever its handler did.

    The handler changes EAX and leaves no trace: RSM loads all of it from the state-save area.

    Source: Intel SDM volume 3, "Exiting From SMM"; arch/x86/kvm/smm.c, emulator_leave_smm.
    """
    ends = []
    for disturbed in (False, True):
        guest = context.own(Guest(context.kvm, "hello"))
        give_smram(guest, tick(guest) + b"\xb8\xad\xde" + RSM)  # MOV AX, 0xDEAD
        guest.prepare("ticks", 3)
        equal("the guest's first tick", guest.resume(context.timeout, ticks=1), Budget(1))
        guest.vcpu.complete()
        if disturbed:
            stop_in_handler(context, guest)
        run_to_tick(context, guest, "the guest to its second tick")
        ends.append(state.capture(guest.vcpu, ()))
    no_difference("the state with and without an SMI", state.compare(*ends))


@clause("smm.rsm-loads-save-area", arch="x86", needs=(SMM,))
def rsm_loads(context: Context) -> None:
    """What was changed in the state-save area is in the registers after RSM, SMBASE too: the next SMI goes there.

    Source: Intel SDM volume 3, "SMBASE Relocation"; arch/x86/kvm/smm.c, rsm_load_state_64.
    """
    guest = _ticking(context, ticks=3)
    stop_in_handler(context, guest)
    guest.memory.write(SMBASE + smm.RBX_AT, (0x1122334455667788).to_bytes(8, "little"))
    guest.memory.write(SMBASE + smm.SMBASE_AT, _OTHER_SMBASE.to_bytes(4, "little"))
    run_to_tick(context, guest, "the guest behind RSM")
    equal("RBX behind RSM", get_regs(guest.vcpu).rbx, 0x1122334455667788)
    equal(f"{name(Msr.SMBASE)} behind RSM", get_msr(guest.vcpu, Msr.SMBASE), _OTHER_SMBASE)
    give_smram(guest, tick(guest) + RSM, _OTHER_SMBASE)
    stop_in_handler(context, guest)
    equal("the base of CS at the next SMI", get_sregs(guest.vcpu).cs.base, _OTHER_SMBASE)
    equal("SMBASE saved there", smm.saved(guest, smm.SMBASE_AT, _OTHER_SMBASE, size=4), _OTHER_SMBASE)
    _to_the_end(context, guest, "the guest behind the second RSM")


@clause("smm.smbase-msr", arch="x86", needs=(SMM, STRICT_MSRS))
def smbase_msr(context: Context) -> None:
    """IA32_SMBASE is in KVM's list, 0x30000 in a fresh vCPU, and the host's alone: RDMSR and WRMSR are #GP.

    An SMI goes to where the host set it.

    Source: arch/x86/kvm/x86.c, emulated_msrs_all, kvm_set_msr_common, kvm_get_msr_common (MSR_IA32_SMBASE).
    """
    equal(f"{name(Msr.SMBASE)} in the list", Msr.SMBASE in index_list(context.kvm), True)
    guest = context.own(Guest(context.kvm, "hello"))
    equal(f"{name(Msr.SMBASE)} of a fresh vCPU", get_msr(guest.vcpu, Msr.SMBASE), SMBASE)
    for entry in ("rdmsr", "wrmsr"):
        judged_call(context, guest, entry, Msr.SMBASE, _OTHER_SMBASE)
        equal(f"faults of {entry} {name(Msr.SMBASE)}", guest.mailbox.read("values", 15), 1)
        equal(f"the fault of {entry} {name(Msr.SMBASE)}", guest.fault().name, "#GP")
    equal(f"{name(Msr.SMBASE)} after the fault", get_msr(guest.vcpu, Msr.SMBASE), SMBASE)
    equal(f"{name(Msr.SMBASE)} = {_OTHER_SMBASE:#x} accepted", set_msr(guest.vcpu, Msr.SMBASE, _OTHER_SMBASE), True)
    give_smram(guest, tick(guest) + RSM, _OTHER_SMBASE)
    guest.prepare("ticks", 1)
    stop_in_handler(context, guest)
    equal("the base of CS in the handler", get_sregs(guest.vcpu).cs.base, _OTHER_SMBASE)
    equal(f"{name(Msr.SMBASE)} in the handler", get_msr(guest.vcpu, Msr.SMBASE), _OTHER_SMBASE)


@clause("smm.own-memory", arch="x86", needs=(SMM,))
def own_memory(context: Context) -> None:
    """A memslot of address space 1 is what the vCPU sees in SMM, and nothing of it is there for code outside.

    Source: Documentation/virt/kvm/api.rst, 4.35 KVM_SET_USER_MEMORY_REGION (bits 16-31 of slot, address spaces);
    arch/x86/include/asm/kvm_host.h, kvm_arch_vcpu_memslots_id.
    """
    guest = context.own(Guest(context.kvm, "hello"))
    other = context.own(Guest(context.kvm, "hello"))  # its memory serves as SMRAM
    give_smram(guest, tick(guest) + RSM, memory=other.memory)
    guest.prepare("ticks", 1)
    stop_in_handler(context, guest)
    equal("SMBASE in the save area of address space 1", smm.saved(other, smm.SMBASE_AT, size=4), SMBASE)
    equal("the same bytes of address space 0", guest.memory.read(SMBASE, SMRAM_SIZE).count(0), SMRAM_SIZE)
    _to_the_end(context, guest, "the guest behind RSM")


@clause("smm.fpu-untouched", arch="x86", needs=(SMM, GUEST_XSAVE))
def fpu_untouched(context: Context) -> None:
    """An SMI and RSM leave x87, SSE, AVX and AVX-512 registers as they are: neither saves or loads any of them.

    Source: Intel SDM volume 3, "Initial SMM Execution Environment" (x87 and XMM state is not saved);
    arch/x86/kvm/smm.c, enter_smm.
    """
    guest, level = vector_guest(context), vector_level(context)
    image = Image.random(random.Random(context.options.seed))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    give_smram(guest, tick(guest) + RSM)
    judged_call(context, guest, f"fill_{level}", privilege=guest.USER)
    guest.prepare(f"verify_{level}", privilege=guest.USER)
    stop_in_handler(context, guest)
    with judged("the guest behind RSM", "an end without a fault"):
        guest.finish(guest.resume(context.timeout), "the guest behind RSM")
    image.check(guest)


@clause("smm.waits-for-rsm", arch="x86", needs=(SMM,))
def second_waits(context: Context) -> None:
    """An SMI that comes in SMM stays pending until RSM, and runs the handler once more then.

    Source: Intel SDM volume 3, "System Management Interrupt (SMI)"; arch/x86/kvm/x86.c,
    kvm_check_and_inject_events (smi_allowed).
    """
    guest = _ticking(context)
    stop_in_handler(context, guest)
    send_smi(guest.vcpu)
    events = guest.vcpu.get_events()
    equal("smi.smm and smi.pending with another SMI", (events.smi.smm, events.smi.pending), (1, 1))
    run_to_tick(context, guest, "the guest behind RSM")
    events = guest.vcpu.get_events()
    equal("smi.smm and smi.pending at that exit", (events.smi.smm, events.smi.pending), (1, 0))
    equal("RIP at that exit", get_regs(guest.vcpu).rip, HANDLER + len(tick(guest)))
    _to_the_end(context, guest, "the guest behind the second RSM")
