# SPDX-License-Identifier: Apache-2.0
"""Guests with shadow stacks: what they need, and how one is set up and copied."""

from __future__ import annotations

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged
from vmm.conformance.needs import Need
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import untiled_features
from vmm.kvm.exits import Budget
from vmm.kvm.vcpu import Vcpu
from vmm.probe.host import Host
from vmm.x86 import boot
from vmm.x86.boot import CR4_CET, CR4_OSXSAVE
from vmm.x86.guest import DONE, Guest
from vmm.x86.msr_names import Msr
from vmm.x86.registers import set_xcr0
from vmm.x86.xfeature import XFeature

__all__ = [
    "CET",
    "DEPTH",
    "ENDBR_EN",
    "IBT",
    "SHSTK",
    "SH_STK_EN",
    "SSP_ID",
    "UNKNOWN_ID",
    "WRITABLE_STACKS",
    "XSAVES",
    "SavedState",
    "call",
    "capture",
    "goes_on",
    "restore",
    "set_ssp",
    "set_up_msr",
    "shadow_guest",
    "ssp",
    "stopped_inside",
    "tracking_guest",
    "twin",
]

_STACKS_SIZE = 0x2000
SH_STK_EN, WR_SHSTK_EN, ENDBR_EN = 1, 2, 4
WRITABLE_STACKS = SH_STK_EN | WR_SHSTK_EN
# How deep the guest's calls go.
DEPTH = 12
SSP_ID = int(lib.KVM_REG_X86 | lib.KVM_REG_SIZE_U64 | lib.KVM_X86_REG_TYPE_KVM << 32 | lib.KVM_REG_GUEST_SSP)
# The highest of KVM's own registers: a later kernel may have a second one.
UNKNOWN_ID = SSP_ID | 0xFFFFFFFF
CET = 1 << XFeature.CET_U | 1 << XFeature.CET_S


def _feature(feature: str, text: str) -> Need:
    def measure(host: Host) -> tuple[bool, str]:
        offered = host.facts.cpuid.has(feature)
        return offered, f"KVM offers {feature}: {offered}"

    return Need(text, measure)


SHSTK = _feature("SHSTK", "shadow stacks for guests")
IBT = _feature("IBT", "indirect branch tracking for guests")
XSAVES = _feature("XSAVES", "XSAVES for guests")


def ssp(vcpu: Vcpu) -> int:
    """Return the live shadow stack pointer."""
    return int.from_bytes(vcpu.get_one_reg(SSP_ID), "little")


def set_ssp(vcpu: Vcpu, value: int) -> None:
    """Set the live shadow stack pointer."""
    vcpu.set_one_reg(SSP_ID, value.to_bytes(8, "little"))


def set_up_msr(vcpu: Vcpu, msr: int, value: int) -> None:
    """Set an MSR before anything is judged; Refused if KVM does not take it."""
    state.set_msrs(vcpu, {msr: value})


def tracking_guest(context: Context, *, user: int) -> Guest:
    """A guest with the cet payload, CR4.CET and the given U_CET; it needs no shadow stacks and has none."""
    cr4 = CR4_OSXSAVE | CR4_CET
    guest = context.own(Guest(context.kvm, "cet", cpuid=context.host.facts.cpuid, cr4=cr4))
    set_xcr0(guest.vcpu, untiled_features(context))
    if context.host.facts.cpuid.xss & CET:
        set_up_msr(guest.vcpu, Msr.XSS, context.host.facts.cpuid.xss & CET)
    set_up_msr(guest.vcpu, Msr.U_CET, user)
    return guest


def shadow_guest(context: Context, *, user: int = WRITABLE_STACKS, kernel: int = 0) -> Guest:
    """A guest with the cet payload, CR4.CET, both shadow stacks and the given U_CET and S_CET."""
    guest = tracking_guest(context, user=0)
    boot.write_shadow_stacks(guest.memory)
    set_up_msr(guest.vcpu, Msr.U_CET, user)
    set_up_msr(guest.vcpu, Msr.S_CET, kernel)
    if kernel & SH_STK_EN:
        set_up_msr(guest.vcpu, Msr.PL0_SSP, boot.KERNEL_SHADOW_STACK_TOKEN)
    set_ssp(guest.vcpu, boot.USER_SHADOW_STACK_TOP)
    return guest


SavedState = tuple[state.State, int]


def capture(context: Context, guest: Guest) -> SavedState:
    """Return the vCPU's state with its SSP, which is in no MSR list."""
    return state.capture(guest.vcpu, state.saved_msrs(context.kvm)), ssp(guest.vcpu)


def twin(context: Context, guest: Guest) -> Guest:
    """A new VM with all of the guest's memory, and none of its state."""
    copy = context.own(Guest(context.kvm, "cet", cpuid=guest.cpuid, cr4=guest.cr4))
    copy.take_memory(guest)
    stacks = 2 << 20
    copy.memory.write(stacks, guest.memory.read(stacks, _STACKS_SIZE))
    return copy


def restore(vcpu: Vcpu, saved: SavedState, omit: str = "") -> None:
    """Write a state back, which KVM has to take; ``omit`` names one register to leave out: an MSR of Msr, or SSP."""
    pieces, pointer = saved
    kept = {index: value for index, value in pieces["MSRS"].items() if Msr.__members__.get(omit) != index}
    with judged(f"restoring the state without {omit}" if omit else "restoring the state"):
        state.restore(vcpu, {**pieces, "MSRS": kept})
        if omit != "SSP":
            set_ssp(vcpu, pointer)


def call(context: Context, guest: Guest, entry: str, *parameters: int, privilege: int = 0) -> int:
    """Run an entry point to its event, which is returned; at CPL0 unless told otherwise."""
    return guest.call(entry, *parameters, privilege=privilege, timeout=context.timeout)


def stopped_inside(context: Context) -> Guest:
    """A guest in the middle of `live`: at CPL0 in an exception from CPL3, with both shadow stacks in use."""
    guest = shadow_guest(context, user=WRITABLE_STACKS, kernel=WRITABLE_STACKS)
    guest.prepare("live", DEPTH, privilege=3)
    equal("the exit inside", guest.resume(context.timeout, ticks=1), Budget(1))
    guest.vcpu.complete()
    return guest


def goes_on(context: Context, guest: Guest, what: str) -> None:
    """Run a guest that was stopped to its end, which has to come without a fault."""
    with judged(f"the run of {what}", "an end without a fault"):
        event = guest.finish(guest.resume(context.timeout), what)
    equal(f"the event of {what}", event, DONE)
