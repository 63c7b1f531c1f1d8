# SPDX-License-Identifier: Apache-2.0
"""What memslots promise on every architecture: flags, places, sizes, numbers, and what a refusal leaves.

Each rule is judged for a new VM of the context's; the clauses of an architecture have the statements.
"""

from __future__ import annotations

import errno
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import refused, succeeds
from vmm.conformance.needs import capability
from vmm.kvm.handle import Handle
from vmm.kvm.ioctl import KvmError
from vmm.kvm.memory import PAGE_SIZE, GuestMemory
from vmm.kvm.vm import VirtualMachine

__all__ = [
    "MEMFD",
    "REGION2",
    "Slot",
    "deletion",
    "fixed_flags",
    "flags",
    "flags2",
    "memfd_alone",
    "misplaced",
    "numbers",
    "overlaps",
]

_LOG, _READONLY, _MEMFD = lib.KVM_MEM_LOG_DIRTY_PAGES, lib.KVM_MEM_READONLY, lib.KVM_MEM_GUEST_MEMFD
# Bits 15 to 0 are userspace's, and a later kernel may give one a meaning; those above are KVM's own.
# Source: include/linux/kvm_host.h, KVM_MEMSLOT_INVALID.
_KVM_OWN = 16
_PAGES = 4
_SIZE = _PAGES * PAGE_SIZE
_PLACE = 16 * _SIZE
_TOP = 1 << 64
REGION2, MEMFD = capability("KVM_CAP_USER_MEMORY2"), capability("KVM_CAP_GUEST_MEMFD")


class Slot:
    """Host memory, twice as much as a slot takes, to be made a slot by either call."""

    def __init__(self, context: Context, vm: VirtualMachine) -> None:
        self._vm = vm
        self._memory = context.own(GuestMemory(vm, 0, 0, 2 * _SIZE))

    def set(self, flags: int, size: int = _SIZE, gpa: int = 0, slot: int = 0, ahead: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION; the host's memory from ``ahead`` bytes on."""
        self._vm.set_memory_region(slot, gpa % _TOP, size, (self._memory.address + ahead) % _TOP, flags)

    def set2(self, flags: int, size: int = _SIZE, memfd: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION2."""
        region: dict[str, Any] = {
            "slot": 0, "flags": flags, "guest_phys_addr": 0, "memory_size": size,
            "userspace_addr": self._memory.address, "guest_memfd": memfd,
        }  # fmt: skip
        self._vm.ioctl(lib.KVM_SET_USER_MEMORY_REGION2, ffi.new("struct kvm_userspace_memory_region2 *", region))

    def remove(self, slot: int = 0) -> None:
        """Delete the slot."""
        self.set(0, 0, slot=slot)

    def dirty(self, slot: int = 0) -> None:
        """KVM_GET_DIRTY_LOG, which works only with the flag for it."""
        bitmap = ffi.new("uint64_t[]", 1)
        self._vm.ioctl(
            lib.KVM_GET_DIRTY_LOG, ffi.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": bitmap})
        )


def flags(context: Context) -> None:
    """KVM_SET_USER_MEMORY_REGION takes LOG_DIRTY_PAGES and READONLY and no other flag."""
    slot = Slot(context, context.vm())
    for good in (0, _LOG, _READONLY, _LOG | _READONLY):
        succeeds(f"flags {good:#x}", slot.set, good)
        slot.remove()
    # GUEST_MEMFD needs fields that this call does not have.
    refused("flag GUEST_MEMFD", errno.EINVAL, slot.set, _MEMFD)
    for bit in range(3, 32):
        refused(f"flags {1 << bit:#x}", errno.EINVAL, slot.set, 1 << bit)
        refused(f"flags {1 << bit | _LOG:#x}", errno.EINVAL, slot.set, 1 << bit | _LOG)
        refused("the dirty log of a slot that was refused", errno.ENOENT, slot.dirty)
    slot.set(_LOG)
    for bit in range(2, 32):
        refused(f"flags {1 << bit:#x} for a slot in use", errno.EINVAL, slot.set, 1 << bit)
    succeeds("the dirty log after the refusals", slot.dirty)


def flags2(context: Context) -> None:
    """KVM_SET_USER_MEMORY_REGION2 takes the same, and GUEST_MEMFD only where KVM has it."""
    vm = context.vm()
    slot = Slot(context, vm)
    for good in (0, _LOG, _READONLY, _LOG | _READONLY):
        succeeds(f"flags {good:#x}", slot.set2, good)
        slot.remove()
    if not vm.check_extension(lib.KVM_CAP_GUEST_MEMFD):
        refused("GUEST_MEMFD without KVM_CAP_GUEST_MEMFD", errno.EINVAL, slot.set2, _MEMFD)
    for bit in range(3, 32):
        if bit < _KVM_OWN and _takes(slot, 1 << bit):
            context.note(f"KVM of {context.host.kernel} takes flag {1 << bit:#x}")
            succeeds(f"removing the slot with flag {1 << bit:#x}, which KVM took", slot.remove)
        else:
            refused(f"flags {1 << bit:#x}", errno.EINVAL, slot.set2, 1 << bit)


def _takes(slot: Slot, flags: int, memfd: int = 0) -> bool:
    """Tell whether KVM_SET_USER_MEMORY_REGION2 takes flags that it takes in no kernel up to 7.2."""
    try:
        slot.set2(flags, memfd=memfd)
    except KvmError:
        return False
    return True


def fixed_flags(context: Context) -> None:
    """READONLY of a slot cannot be changed while it exists; LOG_DIRTY_PAGES can."""
    slot = Slot(context, context.vm())
    slot.set(0)
    refused("READONLY for a writable slot", errno.EINVAL, slot.set, _READONLY)
    succeeds("LOG_DIRTY_PAGES for a slot in use", slot.set, _LOG)
    succeeds("the dirty log", slot.dirty)
    succeeds("no flags for a slot in use", slot.set, 0)
    refused("the dirty log without its flag", errno.ENOENT, slot.dirty)
    slot.remove()
    slot.set(_READONLY)
    refused("a writable slot for READONLY", errno.EINVAL, slot.set, 0)


def memfd_alone(context: Context, options: int = 0) -> None:
    """GUEST_MEMFD goes neither with READONLY nor with LOG_DIRTY_PAGES; the memfd is made with ``options``."""
    vm = context.vm()
    offered = vm.check_extension(lib.KVM_CAP_GUEST_MEMFD)
    if not offered:
        context.skip(f"KVM_CAP_GUEST_MEMFD of an ordinary VM is {offered}")
    argument = ffi.new("struct kvm_create_guest_memfd *", {"size": 2 * _SIZE, "flags": options})
    memfd = vm.ioctl(lib.KVM_CREATE_GUEST_MEMFD, argument)
    context.own(Handle(memfd))
    slot = Slot(context, vm)
    succeeds("GUEST_MEMFD alone", slot.set2, _MEMFD, memfd=memfd)
    slot.remove()
    refused("GUEST_MEMFD with READONLY", errno.EINVAL, slot.set2, _MEMFD | _READONLY, memfd=memfd)
    if _takes(slot, _MEMFD | _LOG, memfd):
        succeeds("the dirty log of a slot with GUEST_MEMFD and LOG_DIRTY_PAGES, which KVM took", slot.dirty)
        context.note(f"KVM of {context.host.kernel} takes GUEST_MEMFD with LOG_DIRTY_PAGES")
        slot.remove()
    else:
        refused("GUEST_MEMFD with LOG_DIRTY_PAGES", errno.EINVAL, slot.set2, _MEMFD | _LOG, memfd=memfd)
    refused("GUEST_MEMFD by KVM_SET_USER_MEMORY_REGION", errno.EINVAL, slot.set, _MEMFD)


def overlaps(context: Context) -> None:
    """A slot that would share a page with another is EEXIST, made so or moved there; neighbours are fine."""
    slot = Slot(context, context.vm())
    slot.set(_LOG, gpa=_PLACE)
    for what, gpa in (
        ("the same pages", _PLACE),
        ("its first page", _PLACE - _SIZE + PAGE_SIZE),
        ("its last page", _PLACE + _SIZE - PAGE_SIZE),
    ):
        refused(f"a slot that has {what} of another", errno.EEXIST, slot.set, _LOG, gpa=gpa, slot=1)
        refused("the dirty log of the slot that was refused", errno.ENOENT, slot.dirty, 1)
    refused("a slot around another", errno.EEXIST, slot.set, 0, 2 * _SIZE, _PLACE - PAGE_SIZE, 1)
    succeeds("a slot right below", slot.set, 0, gpa=_PLACE - _SIZE, slot=1)
    succeeds("a slot right above", slot.set, _LOG, gpa=_PLACE + _SIZE, slot=2)
    succeeds("the dirty log after the refusals", slot.dirty)
    refused("moving a slot onto another", errno.EEXIST, slot.set, _LOG, gpa=_PLACE, slot=2)
    # Had it moved, its own pages would be free.
    refused("a slot where the refused one was to leave", errno.EEXIST, slot.set, 0, gpa=_PLACE + _SIZE, slot=3)
    succeeds("moving a slot onto pages of its own", slot.set, _LOG, gpa=_PLACE + _SIZE + PAGE_SIZE, slot=2)


def misplaced(context: Context) -> None:
    """Addresses and sizes that are not whole pages, and a slot around the end of the address space, are EINVAL."""
    slot = Slot(context, context.vm())
    for odd in (1, 512, PAGE_SIZE // 2):
        refused(f"a size with {odd} bytes more than whole pages", errno.EINVAL, slot.set, _LOG, _SIZE + odd)
        refused(f"a guest physical address {odd} bytes into a page", errno.EINVAL, slot.set, _LOG, gpa=_PLACE + odd)
        refused(f"host memory {odd} bytes into a page", errno.EINVAL, slot.set, _LOG, ahead=odd)
    refused("a slot around the end of the address space", errno.EINVAL, slot.set, _LOG, gpa=-PAGE_SIZE)
    refused("the dirty log of a slot that was refused", errno.ENOENT, slot.dirty)
    slot.set(_LOG, gpa=_PLACE)
    refused("another size for a slot in use", errno.EINVAL, slot.set, _LOG, 2 * _SIZE, _PLACE)
    refused("a smaller size for a slot in use", errno.EINVAL, slot.set, _LOG, PAGE_SIZE, _PLACE)
    refused("other host memory for a slot in use", errno.EINVAL, slot.set, _LOG, gpa=_PLACE, ahead=_SIZE)
    succeeds("the dirty log after the refusals", slot.dirty)
    succeeds("what the slot has already", slot.set, _LOG, gpa=_PLACE)


def deletion(context: Context) -> None:
    """Size 0 removes a slot, whatever else is given; there has to be one (EINVAL), and then its pages are free."""
    slot = Slot(context, context.vm())
    refused("removing what was never there", errno.EINVAL, slot.remove)
    slot.set(_LOG, gpa=_PLACE)
    refused("removing a slot of another number", errno.EINVAL, slot.remove, 1)
    succeeds("the dirty log after the refusals", slot.dirty)
    succeeds("removing a slot by another address", slot.remove)
    refused("the dirty log of a slot that was removed", errno.ENOENT, slot.dirty)
    refused("removing it again", errno.EINVAL, slot.remove)
    succeeds("a slot of another number in its place", slot.set, 0, gpa=_PLACE, slot=1)
    succeeds("a slot of its number elsewhere", slot.set, _LOG, gpa=2 * _PLACE)
    succeeds("its dirty log", slot.dirty)


def numbers(context: Context) -> None:
    """Slots have the numbers below KVM_CAP_NR_MEMSLOTS, in address spaces below KVM_CAP_MULTI_ADDRESS_SPACE."""
    vm = context.vm()
    slot = Slot(context, vm)
    slots = vm.check_extension(lib.KVM_CAP_NR_MEMSLOTS)
    spaces = vm.check_extension(lib.KVM_CAP_MULTI_ADDRESS_SPACE) or 1
    context.note(f"KVM_CAP_NR_MEMSLOTS is {slots}, of {spaces} address space{'s' * (spaces > 1)}")
    for number in (slots - 1, 0):
        succeeds(f"slot {number:#x}", slot.set, _LOG, gpa=_PLACE, slot=number)
        succeeds(f"the dirty log of slot {number:#x}", slot.dirty, number)
        slot.remove(number)
    for number in (slots, 0xFFFF):
        refused(f"slot {number:#x}", errno.EINVAL, slot.set, _LOG, slot=number)
    for space in (spaces, 0x7FFF, 0xFFFF):
        refused(f"a slot of address space {space:#x}", errno.EINVAL, slot.set, _LOG, slot=space << 16)
        refused("its dirty log", errno.EINVAL, slot.dirty, space << 16)
