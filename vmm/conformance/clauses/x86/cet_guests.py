# SPDX-License-Identifier: Apache-2.0
"""CET of two guests that take turns on one CPU: each keeps its own, in the registers of the CPU too."""

from __future__ import annotations

from collections.abc import Mapping

from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.registry import clause
from vmm.conformance.x86 import shadow
from vmm.conformance.x86.common import judged_call, stay_on_one_cpu
from vmm.conformance.x86.shadow import SHSTK, WRITABLE_STACKS, XSAVES, shadow_guest
from vmm.x86.guest import Guest
from vmm.x86.msr import get_msr, name
from vmm.x86.msr_names import Msr
from vmm.x86.xfeature import XFeature

# As often as each guest runs. What is never saved is another guest's at the second run.
_ROUNDS = 3
_XCOMP_BV = 520
_COMPACTED = 1 << 63


def _two_guests(context: Context, *values: Mapping[Msr, int]) -> list[Guest]:
    """Two guests on one CPU, in which WRMSR has set the registers."""
    stay_on_one_cpu()
    guests = [shadow_guest(context, user=0) for _ in values]
    for number, (guest, registers) in enumerate(zip(guests, values, strict=True)):
        for register, value in registers.items():
            judged_call(context, guest, "wrmsr", register, value)
            equal(f"faults of WRMSR {name(register)} in guest {number}", guest.mailbox.read("values", 15), 0)
    return guests


def _take_turns(context: Context, *values: Mapping[Msr, int]) -> None:
    """Run both guests in turn, and look at their registers with RDMSR and from the host."""
    guests = _two_guests(context, *values)
    for turn in range(_ROUNDS):
        for number, (guest, registers) in enumerate(zip(guests, values, strict=True)):
            judged_call(context, guest, "rdmsrs", *registers, *[0] * (len(registers) < 8))
            for position, (register, value) in enumerate(registers.items()):
                where = f"guest {number} at its run {turn + 1}"
                equal(f"{name(register)} in {where}", guest.mailbox.read("values", position), value)
                equal(f"{name(register)} for the host of {where}", get_msr(guest.vcpu, register), value)


@clause("cet.two-guests-supervisor-pointers", arch="x86", needs=(SHSTK,))
def supervisor_pointers(context: Context) -> None:
    """PL0_SSP, PL1_SSP, PL2_SSP and the interrupt table of two guests on one CPU stay each guest's own.

    KVM passes them through to the CPU, which keeps the last guest's if nothing saves component 12.

    Source: arch/x86/kvm/x86.c, kvm_load_guest_fpu; arch/x86/kernel/fpu/xstate.c, XFEATURE_MASK_GUEST_SUPERVISOR;
    Linux 6.18.
    """
    registers = (Msr.PL0_SSP, Msr.PL1_SSP, Msr.PL2_SSP, Msr.INT_SSP_TAB)
    first, second = (
        {register: base + 0x1000 * number for number, register in enumerate(registers)} for base in (0x10000, 0x20000)
    )
    _take_turns(context, first, second)


@clause("cet.two-guests-user", arch="x86", needs=(SHSTK,))
def user_registers(context: Context) -> None:
    """U_CET and PL3_SSP of two guests on one CPU stay each guest's own.

    Source: arch/x86/kvm/x86.c, kvm_load_guest_fpu; arch/x86/kvm/vmx/vmx.c, vmx_recalc_msr_intercepts; Linux 6.18.
    """
    _take_turns(
        context, {Msr.U_CET: WRITABLE_STACKS, Msr.PL3_SSP: 0x123450}, {Msr.U_CET: 1, Msr.PL3_SSP: 0x7FFFFFFFFFF8}
    )


@clause("cet.two-guests-s-cet", arch="x86", needs=(SHSTK,))
def supervisor_register(context: Context) -> None:
    """S_CET of two guests on one CPU stays each guest's own: it belongs to the VMCS or VMCB.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_get_msr, vmx_set_msr (GUEST_S_CET); arch/x86/kvm/svm/svm.c; Linux 6.18.
    """
    _take_turns(context, {Msr.S_CET: 2}, {Msr.S_CET: 0})


@clause("cet.two-guests-xss", arch="x86", needs=(SHSTK, XSAVES))
def supervisor_components(context: Context) -> None:
    """IA32_XSS of two guests on one CPU stays each guest's own, as RDMSR, the host and XCOMP_BV of XSAVES show it.

    KVM answers RDMSR by what it remembers; XSAVES goes by what the CPU has.

    Source: arch/x86/kvm/x86.c, kvm_load_xfeatures, kvm_load_guest_xsave_state; Intel SDM volume 1, 13.11.
    """
    offered = context.host.facts.cpuid.xss & shadow.CET
    if not offered:
        context.skip(f"CPUID 0xD.1 offers IA32_XSS {context.host.facts.cpuid.xss:#x}, needs a component of CET")
    values = {Msr.XSS: offered}, {Msr.XSS: offered & 1 << XFeature.CET_U if offered != 1 << XFeature.CET_U else 0}
    guests = _two_guests(context, *values)
    for turn in range(_ROUNDS):
        for number, (guest, registers) in enumerate(zip(guests, values, strict=True)):
            value, where = registers[Msr.XSS], f"guest {number} at its run {turn + 1}"
            judged_call(context, guest, "xsaves", offered | 1)
            stored = guest.memory.read(guest.payload.symbol("area") + _XCOMP_BV, 8)
            equal(f"XCOMP_BV of XSAVES in {where}", int.from_bytes(stored, "little"), _COMPACTED | value | 1)
            judged_call(context, guest, "rdmsrs", Msr.XSS, 0)
            equal(f"{name(Msr.XSS)} in {where}", guest.mailbox.read("values", 0), value)
            equal(f"{name(Msr.XSS)} for the host of {where}", get_msr(guest.vcpu, Msr.XSS), value)
