# SPDX-License-Identifier: Apache-2.0
"""Guests in system management mode: memory of KVM's second address space, a handler, and SMIs."""

from __future__ import annotations

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, succeeds
from vmm.conformance.needs import capability
from vmm.kvm.exits import Budget
from vmm.kvm.memory import GuestMemory
from vmm.kvm.vcpu import Vcpu
from vmm.x86.guest import Guest

__all__ = [
    "CR0_AT",
    "CR3_AT",
    "CR4_AT",
    "EFER_AT",
    "GENERAL",
    "GENERAL_AT",
    "HANDLER",
    "RBX_AT",
    "REVISION_AT",
    "RFLAGS_AT",
    "RIP_AT",
    "RSM",
    "SMBASE",
    "SMBASE_AT",
    "SMM",
    "SMRAM_SIZE",
    "SSP_AT",
    "give_smram",
    "run_to_tick",
    "saved",
    "send_smi",
    "stop_in_handler",
    "tick",
]

SMM = capability("KVM_CAP_X86_SMM")
# Where a vCPU's SMRAM begins after a reset, and where in it the handler is. Intel SDM volume 3, "SMRAM".
SMBASE, HANDLER = 0x30000, 0x8000
SMRAM_SIZE = 0x10000
# KVM_SET_USER_MEMORY_REGION: bits 31:16 of a slot are its address space; 1 is what a vCPU sees in SMM.
_IN_SMM = 1 << 16
RSM = b"\x0f\xaa"

# The state-save area of a vCPU with long mode, from SMBASE on. KVM's is AMD's, on Intel too: APM volume 2, 10.2.3;
# arch/x86/kvm/smm.c, check_smram_offsets. SSP_AT has been KVM's and AMD's since Linux 6.18.
EFER_AT, REVISION_AT, SMBASE_AT, SSP_AT = 0xFED0, 0xFEFC, 0xFF00, 0xFF18
CR4_AT, CR3_AT, CR0_AT, RFLAGS_AT, RIP_AT = 0xFF48, 0xFF50, 0xFF58, 0xFF70, 0xFF78
# The general registers, by the names that KVM_GET_REGS has for them, lowest address first.
GENERAL = (
    "r15",
    "r14",
    "r13",
    "r12",
    "r11",
    "r10",
    "r9",
    "r8",
    "rdi",
    "rsi",
    "rbp",
    "rsp",
    "rbx",
    "rdx",
    "rcx",
    "rax",
)
GENERAL_AT = 0xFF80
RBX_AT = GENERAL_AT + 8 * GENERAL.index("rbx")


def tick(guest: Guest) -> bytes:
    """Return the instruction with which a handler ticks: OUT of AL to the payload's port."""
    return bytes([0xE6, guest.payload.symbol("TICK_PORT_NUMBER")])


def give_smram(guest: Guest, handler: bytes, smbase: int = SMBASE, memory: GuestMemory | None = None) -> None:
    """Let the guest's own or other ``memory`` from ``smbase`` on be SMRAM, with a handler: 16-bit code.

    Without it KVM cannot save the state of a vCPU that takes an SMI, and gives the VM up.
    """
    memory = memory or guest.memory
    guest.vm.set_memory_region(_IN_SMM | smbase // SMRAM_SIZE, smbase, SMRAM_SIZE, memory.address + smbase)
    memory.write(smbase + HANDLER, handler)


def send_smi(vcpu: Vcpu) -> None:
    """KVM_SMI: the vCPU takes it when it runs next."""
    vcpu.ioctl_value(lib.KVM_SMI)


def stop_in_handler(context: Context, guest: Guest) -> None:
    """Send an SMI to a guest whose handler ticks, and run it to that tick."""
    succeeds("KVM_SMI", send_smi, guest.vcpu)
    run_to_tick(context, guest, "the SMI handler")


def run_to_tick(context: Context, guest: Guest, what: str) -> None:
    """Run a guest to its next tick, which has to come, and retire that instruction."""
    equal(f"the exit of {what}", succeeds(f"the run of {what}", guest.resume, context.timeout, ticks=1), Budget(1))
    guest.vcpu.complete()


def saved(guest: Guest, offset: int, smbase: int = SMBASE, size: int = 8) -> int:
    """Return a field of the state-save area."""
    return int.from_bytes(guest.memory.read(smbase + offset, size), "little")
