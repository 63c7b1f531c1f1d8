# SPDX-License-Identifier: Apache-2.0
"""Guests with shadow stacks: what they need, and how one is set up and copied."""

from __future__ import annotations

from vmm._kvm import lib
from vmm.conformance.clauses.x86 import state
from vmm.conformance.context import Context
from vmm.conformance.host import Host
from vmm.conformance.needs import Need
from vmm.vcpu import Vcpu
from vmm.x86 import boot
from vmm.x86.guest import Guest
from vmm.x86.msr import Msr, set_msr
from vmm.x86.registers import set_xcr0
from vmm.x86.xfeature import XFeature

__all__ = [
    "CET",
    "CR4_CET",
    "ENDBR_EN",
    "IBT",
    "OSXSAVE",
    "SHSTK",
    "SH_STK_EN",
    "SSP_ID",
    "XSAVES",
    "SavedState",
    "capture",
    "restore",
    "set_ssp",
    "shadow_guest",
    "ssp",
    "twin",
]

CR4_CET = 1 << 23
OSXSAVE = 1 << 18
_STACKS_SIZE = 0x2000
SH_STK_EN, WR_SHSTK_EN, ENDBR_EN = 1, 2, 4
SSP_ID = int(lib.KVM_REG_X86 | lib.KVM_REG_SIZE_U64 | lib.KVM_X86_REG_TYPE_KVM << 32 | lib.KVM_REG_GUEST_SSP)
CET = 1 << XFeature.CET_U | 1 << XFeature.CET_S


def _feature(name: str, text: str) -> Need:
    def measure(host: Host) -> tuple[bool, str]:
        offered = host.facts.cpuid.has(name)
        return offered, f"KVM offers {name}: {offered}"

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


def shadow_guest(context: Context, *, user: int = SH_STK_EN | WR_SHSTK_EN, kernel: int = 0) -> Guest:
    """A guest with the cet payload, CR4.CET, both shadow stacks and the given U_CET and S_CET."""
    cr4 = OSXSAVE | CR4_CET
    guest = context.own(Guest(context.kvm, "cet", cpuid=context.host.facts.cpuid, cr4=cr4))
    boot.write_shadow_stacks(guest.memory)
    _map_stacks(guest)
    set_xcr0(guest.vcpu, context.host.facts.cpuid.xcr0)
    set_msr(guest.vcpu, Msr.XSS, context.host.facts.cpuid.xss & CET)
    set_msr(guest.vcpu, Msr.U_CET, user)
    set_msr(guest.vcpu, Msr.S_CET, kernel)
    if kernel & SH_STK_EN:
        set_msr(guest.vcpu, Msr.PL0_SSP, boot.KERNEL_SHADOW_STACK_TOKEN)
    set_ssp(guest.vcpu, boot.USER_SHADOW_STACK_TOP)
    return guest


def _map_stacks(guest: Guest) -> None:
    """Have KVM map the shadow stack pages before an exception needs them.

    Hardware does not mind; an emulated CPU may lose an event whose delivery meets an EPT violation there.
    """
    guest.call("touch", boot.USER_SHADOW_STACK_TOP - 8, boot.KERNEL_SHADOW_STACK_TOKEN)


SavedState = tuple[state.State, int]


def capture(context: Context, guest: Guest) -> SavedState:
    """Return the vCPU's state with its SSP, which is in no MSR list."""
    return state.capture(guest.vcpu, state.saved_msrs(context.kvm)), ssp(guest.vcpu)


def twin(context: Context, guest: Guest) -> Guest:
    """A new VM with all of the guest's memory, and none of its state."""
    copy = context.own(Guest(context.kvm, "cet", cpuid=guest.cpuid, cr4=guest.cr4))
    copy.memory.write(0, guest.memory.read(0, guest.payload.end))
    stacks = 2 << 20
    copy.memory.write(stacks, guest.memory.read(stacks, _STACKS_SIZE))
    mailbox = copy.payload.symbol("mailbox_params")
    before = copy.memory.read(mailbox, 4096)
    _map_stacks(copy)
    copy.memory.write(mailbox, before)
    return copy


def restore(vcpu: Vcpu, saved: SavedState, omit: str = "") -> None:
    """Write a state back; ``omit`` names one register that is left out: an MSR of Msr, or SSP."""
    pieces, pointer = saved
    kept = {index: value for index, value in pieces["MSRS"].items() if Msr.__members__.get(omit) != index}
    state.restore(vcpu, {**pieces, "MSRS": kept})
    if omit != "SSP":
        set_ssp(vcpu, pointer)
