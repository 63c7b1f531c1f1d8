# SPDX-License-Identifier: Apache-2.0
"""Flags of memslots: those there are, and that every other is refused."""

from __future__ import annotations

import errno
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import refused, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.handle import Handle
from vmm.kvm.ioctl import KvmError
from vmm.kvm.memory import GuestMemory
from vmm.kvm.vm import VirtualMachine

_SIZE = 0x10000
_LOG, _READONLY, _MEMFD = lib.KVM_MEM_LOG_DIRTY_PAGES, lib.KVM_MEM_READONLY, lib.KVM_MEM_GUEST_MEMFD
# Bits 15 to 0 are userspace's, and a later kernel may give one a meaning; those above are KVM's own.
# Source: include/linux/kvm_host.h, KVM_MEMSLOT_INVALID.
_KVM_OWN = 16
_REGION2 = capability("KVM_CAP_USER_MEMORY2")


class _Slot:
    """Host memory to be made slot 0 by either call."""

    def __init__(self, context: Context, vm: VirtualMachine) -> None:
        self._vm = vm
        self._memory = context.own(GuestMemory(vm, 0, 0, _SIZE))

    def set(self, flags: int, size: int = _SIZE) -> None:
        """KVM_SET_USER_MEMORY_REGION."""
        self._vm.set_memory_region(0, 0, size, self._memory.address, flags)

    def set2(self, flags: int, size: int = _SIZE, memfd: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION2."""
        region: dict[str, Any] = {
            "slot": 0, "flags": flags, "guest_phys_addr": 0, "memory_size": size,
            "userspace_addr": self._memory.address, "guest_memfd": memfd,
        }  # fmt: skip
        self._vm.ioctl(lib.KVM_SET_USER_MEMORY_REGION2, ffi.new("struct kvm_userspace_memory_region2 *", region))

    def remove(self) -> None:
        """Delete the slot."""
        self.set(0, 0)

    def dirty(self) -> None:
        """KVM_GET_DIRTY_LOG, which works only with the flag for it."""
        self._memory.dirty_pages()


@clause("memslot.flags", arch="x86")
def flags(context: Context) -> None:
    """KVM_SET_USER_MEMORY_REGION takes the flags LOG_DIRTY_PAGES and READONLY; every other bit is EINVAL.

    The set is closed: flags that came later belong to KVM_SET_USER_MEMORY_REGION2. A refusal leaves no slot, and
    leaves a slot as it was.

    Source: virt/kvm/kvm_main.c, kvm_vm_ioctl (KVM_SET_USER_MEMORY_REGION_V1_FLAGS), check_memory_region_flags.
    """
    slot = _Slot(context, context.vm())
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


@clause("memslot.flags2", arch="x86", needs=(_REGION2,))
def flags2(context: Context) -> None:
    """KVM_SET_USER_MEMORY_REGION2 takes the same flags, and GUEST_MEMFD only where KVM has it.

    Bits 31 to 16 are KVM's own and never taken. One of 15 to 3 that is taken is recorded: a kernel may have given it
    a meaning. KVM_MEM_NON_COHERENT_DMA, KVM_MEM_DMA and KVM_MEM_HONOR_GUEST_PAT were proposed; none is in Linux 7.2.

    Source: virt/kvm/kvm_main.c, check_memory_region_flags; include/uapi/linux/kvm.h, KVM_MEM_*; Linux 6.8.
    """
    vm = context.vm()
    slot = _Slot(context, vm)
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


def _takes(slot: _Slot, flags: int, memfd: int = 0) -> bool:
    """Tell whether KVM_SET_USER_MEMORY_REGION2 takes flags that it takes in no kernel up to 7.2."""
    try:
        slot.set2(flags, memfd=memfd)
    except KvmError:
        return False
    return True


@clause("memslot.readonly-fixed", arch="x86")
def readonly_fixed(context: Context) -> None:
    """READONLY of a slot cannot be changed while it exists (EINVAL); LOG_DIRTY_PAGES can.

    Source: virt/kvm/kvm_main.c, kvm_set_memory_region; Documentation/virt/kvm/api.rst 4.35.
    """
    slot = _Slot(context, context.vm())
    slot.set(0)
    refused("READONLY for a writable slot", errno.EINVAL, slot.set, _READONLY)
    succeeds("LOG_DIRTY_PAGES for a slot in use", slot.set, _LOG)
    succeeds("the dirty log", slot.dirty)
    succeeds("no flags for a slot in use", slot.set, 0)
    refused("the dirty log without its flag", errno.ENOENT, slot.dirty)
    slot.remove()
    slot.set(_READONLY)
    refused("a writable slot for READONLY", errno.EINVAL, slot.set, 0)


@clause("memslot.readonly-memfd", arch="x86", needs=(_REGION2, capability("KVM_CAP_GUEST_MEMFD")))
def readonly_memfd(context: Context) -> None:
    """GUEST_MEMFD goes neither with READONLY nor with LOG_DIRTY_PAGES: EINVAL.

    Read-only slots have MMIO semantics, which private memory cannot have. Dirty logging is "not currently supported":
    a KVM that takes it has to have the log, and it is recorded.

    Source: virt/kvm/kvm_main.c, check_memory_region_flags; Linux 6.8.
    """
    vm = context.vm()
    offered = vm.check_extension(lib.KVM_CAP_GUEST_MEMFD)
    if not offered:
        context.skip(f"KVM_CAP_GUEST_MEMFD of an ordinary VM is {offered}")
    memfd = vm.ioctl(lib.KVM_CREATE_GUEST_MEMFD, ffi.new("struct kvm_create_guest_memfd *", {"size": _SIZE}))
    context.own(Handle(memfd))
    slot = _Slot(context, vm)
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
