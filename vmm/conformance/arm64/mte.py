# SPDX-License-Identifier: Apache-2.0
"""Memory tags (MTE): guests whose memory has them, instructions that use them, and the call that copies them.

Source: Arm ARM, D10 "The Memory Tagging Extension"; Documentation/virt/kvm/api.rst 4.130 and 7.28.
"""

from __future__ import annotations

from typing import NamedTuple

from vmm._kvm import ffi, lib
from vmm.arm64.guest import Guest
from vmm.arm64.registers import SYSTEM
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import finish
from vmm.conformance.context import Context
from vmm.conformance.needs import capability
from vmm.kvm.memory import PAGE_SIZE
from vmm.kvm.vm import VirtualMachine

__all__ = [
    "GRANULES",
    "IRG",
    "LDG",
    "LDR",
    "MTE",
    "PAGE",
    "STG",
    "Ran",
    "copy",
    "execute",
    "get",
    "place",
    "put",
    "tagged",
    "with_tag",
]

MTE = capability("KVM_CAP_ARM_MTE")
# A page of the guest's memory that holds nothing else.
PAGE = 3 << 20
# Tags of a page, a byte each.
GRANULES = PAGE_SIZE // 16
# With X0 alone: load its granule's tag into it, store its tag there, give it a random one, load a word.
LDG, STG, IRG, LDR = 0xD9600000, 0xD9200800, 0x9ADF1000, 0xF9400000
_TAG_AT = 56
# SCTLR_EL1.ATA and TCF (synchronous), TCR_EL1.TBI0; in MAIR_EL1 index 1 becomes tagged Normal memory.
_ATA, _SYNCHRONOUS, _TBI, _TAGGED = 1 << 43, 1 << 40, 1 << 37, 0xF000


class Ran(NamedTuple):
    """X0 behind an instruction, and ESR_EL1 of the fault that it took or 0."""

    value: int
    esr: int


def tagged(context: Context) -> Guest:
    """A guest whose memory has tags, which its tables and SCTLR_EL1 do not use yet."""
    capabilities = {int(lib.KVM_CAP_ARM_MTE): ()}
    return context.own(Guest(context.kvm, "hello", features=(Feature.PSCI_0_2,), capabilities=capabilities))


def with_tag(address: int, tag: int) -> int:
    """An address with a logical tag."""
    return address | tag << _TAG_AT


def execute(
    context: Context, guest: Guest, what: str, instruction: int, x0: int = 0, *, checked: bool = False
) -> Ran:
    """The guest executes an instruction where it may use tags, with accesses ``checked`` or not."""
    guest.prepare("execute", instruction, x0)
    sctlr, tcr = (SYSTEM[name] for name in ("SCTLR_EL1", "TCR_EL1"))
    write(guest.vcpu, sctlr, read(guest.vcpu, sctlr) | _ATA | _SYNCHRONOUS * checked)
    write(guest.vcpu, tcr, read(guest.vcpu, tcr) | _TBI)
    write(guest.vcpu, SYSTEM["MAIR_EL1"], _TAGGED)
    finish(context, guest, what)
    return Ran(guest.mailbox.values[0], guest.mailbox.read("esr") if guest.mailbox.values[15] else 0)


def copy(
    vm: VirtualMachine, ipa: int, length: int, address: int, flags: int, reserved: tuple[int, int] = (0, 0)
) -> int:
    """KVM_ARM_MTE_COPY_TAGS: return of how many bytes of memory the tags were copied."""
    argument = {
        "guest_ipa": ipa, "length": length, "addr": ffi.cast("void *", address), "flags": flags,
        "reserved": list(reserved),
    }  # fmt: skip
    return vm.ioctl(lib.KVM_ARM_MTE_COPY_TAGS, ffi.new("struct kvm_arm_copy_mte_tags *", argument))


def get(vm: VirtualMachine, ipa: int, length: int = PAGE_SIZE) -> tuple[int, bytes]:
    """Read tags into poison: what the call returned, and the tags."""
    tags = bytearray([0xAA]) * (length // 16)
    done = copy(vm, ipa, length, place(tags), lib.KVM_ARM_TAGS_FROM_GUEST)
    return done, bytes(tags)


def put(vm: VirtualMachine, ipa: int, tags: bytes) -> int:
    """Write tags, one a byte: what the call returned."""
    value = bytearray(tags)
    return copy(vm, ipa, 16 * len(value), place(value), lib.KVM_ARM_TAGS_TO_GUEST)


def place(buffer: bytearray) -> int:
    """Return where a buffer lies in this process."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer("uint8_t[]", buffer)))
