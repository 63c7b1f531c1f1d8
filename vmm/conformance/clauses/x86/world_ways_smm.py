# SPDX-License-Identifier: Apache-2.0
"""The closed world: every field of every piece of a vCPU's state, in system management mode and behind it."""

from __future__ import annotations

from collections.abc import Mapping

from vmm.conformance.context import Context
from vmm.conformance.expect import succeeds
from vmm.conformance.registry import clause
from vmm.conformance.world.tally import Tally
from vmm.conformance.world.ways import Becomes, Traveller
from vmm.conformance.x86 import smm
from vmm.conformance.x86.smm import HANDLER, RSM, SMBASE, SMM, give_smram, send_smi
from vmm.conformance.x86.still import WAYS, WITHOUT_CR4, still_guest, still_guest_of_32_bits, tick, traveller
from vmm.state.world.row import After, Made
from vmm.state.x86.world.cpuid import CPUID
from vmm.x86.guest import Guest
from vmm.x86.registers import get_regs

# PE, EM, TS and PG are clear in SMM, all else of CR0 stays.
_CR0_CLEAR = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 31
_LOW = (1 << 32) - 1
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss")
# Those segments reach everywhere.
_SEGMENT = {
    "selector": 0, "base": 0, "limit": _LOW, "type": 3, "present": 1, "dpl": 0, "db": 0, "s": 1, "l": 0, "g": 1,
    "avl": 0, "unusable": 0,
}  # fmt: skip
# What SMM begins with.
_INSIDE: Mapping[str, Becomes] = {
    **{f"SREGS.{name}.{field}": value for name in _SEGMENTS for field, value in _SEGMENT.items()},
    "SREGS.cs.selector": SMBASE >> 4, "SREGS.cs.base": SMBASE, "SREGS.idt.base": 0, "SREGS.idt.limit": 0,
    "SREGS.cr0": Made(lambda cr0: cr0 & ~_CR0_CLEAR), "SREGS.cr4": 0, "SREGS.efer": 0,
    "REGS.rflags": 2, "DEBUGREGS.dr7": 0x400, "EVENTS.smi.smm": 1, "EVENTS.nmi.masked": 1,
    "EVENTS.interrupt.shadow": 0,
}  # fmt: skip
# What the state-save area of a CPU without long mode has half of; it has none of R8 to R15, which stay.
_HALVES = (
    *(f"REGS.{name}" for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")),
    *(f"SREGS.{name}.base" for name in ("gdt", "idt", "tr", "ldt", "fs", "gs")),
)


def _with_handler(guest: Guest) -> int:
    """Give a guest an SMI handler that ticks once and resumes; return its length to behind the tick."""
    handler = smm.tick(guest)
    give_smram(guest, handler + RSM)
    return len(handler)


def _there_and_back(
    context: Context, guest: Guest, way: Traveller, inside: Mapping[str, Becomes], behind: Mapping[str, Becomes]
) -> None:
    """Look at a guest in its SMI handler, and behind it."""
    length = _with_handler(guest)
    succeeds("KVM_SMI", send_smi, guest.vcpu)
    tick(context, guest.vcpu, "the SMI handler", 1)
    nested = way.before.get("EVENTS.nmi.masked", 0)
    way.judge(
        "in SMM",
        {**_INSIDE, **WITHOUT_CR4, **inside, "REGS.rip": HANDLER + length, "EVENTS.smi.smm_inside_nmi": nested},
    )
    tick(context, guest.vcpu, "the guest behind RSM", 1)
    way.judge("behind RSM", behind)


@clause("world.way-smm", arch="x86", needs=(*WAYS, SMM))
def through_smm(context: Context) -> None:
    """SMM begins with what it sets and every other field as it was, and RSM brings all of them back but RIP.

    Source: arch/x86/kvm/smm.c, enter_smm, emulator_leave_smm; AMD APM volume 2, 10.2.3; Intel SDM volume 3, "Initial
    SMM Execution Environment".
    """
    guest = still_guest(context)
    with Tally(context) as tally:
        way = traveller(guest.vcpu, tally, CPUID)
        way.settle(0)
        _there_and_back(context, guest, way, {}, {"REGS.rip": guest.payload.symbol("ticked")})


@clause("world.way-smm-32", arch="x86", needs=(*WAYS, SMM))
def through_smm_without_long_mode(context: Context) -> None:
    """The same for a CPU without long mode, whose state-save area is another: it has 32 bits of what it has.

    Source: arch/x86/kvm/smm.c, enter_smm_save_state_32, rsm_load_state_32.
    """
    guest = still_guest_of_32_bits(context)
    with Tally(context) as tally:
        way = traveller(guest.vcpu, tally)
        way.settle(1)
        behind = {
            **dict.fromkeys(_HALVES, Made(lambda value: value & _LOW)),
            "REGS.rip": get_regs(guest.vcpu).rip + len(smm.tick(guest)),
        }
        _there_and_back(context, guest, way, {"SREGS.efer": After.KEPT}, behind)
