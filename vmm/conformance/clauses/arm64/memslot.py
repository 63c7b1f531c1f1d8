# SPDX-License-Identifier: Apache-2.0
"""Flags of memslots: those there are, and that every other is refused."""

from __future__ import annotations

from vmm._kvm import lib
from vmm.conformance import memslot_rules as rules
from vmm.conformance.context import Context
from vmm.conformance.registry import clause


@clause("memslot.flags", arch="arm64")
def flags(context: Context) -> None:
    """KVM_SET_USER_MEMORY_REGION takes the flags LOG_DIRTY_PAGES and READONLY; every other bit is EINVAL.

    The set is closed: flags that came later belong to KVM_SET_USER_MEMORY_REGION2. A refusal leaves no slot, and
    leaves a slot as it was.

    Source: virt/kvm/kvm_main.c, kvm_vm_ioctl (KVM_SET_USER_MEMORY_REGION_V1_FLAGS), check_memory_region_flags.
    """
    rules.flags(context)


@clause("memslot.flags2", arch="arm64", needs=(rules.REGION2,))
def flags2(context: Context) -> None:
    """KVM_SET_USER_MEMORY_REGION2 takes the same flags, and GUEST_MEMFD only where KVM has it.

    Bits 31 to 16 are KVM's own and never taken. One of 15 to 3 that is taken is recorded.

    Source: virt/kvm/kvm_main.c, check_memory_region_flags; include/uapi/linux/kvm.h, KVM_MEM_*; Linux 6.8.
    """
    rules.flags2(context)


@clause("memslot.readonly-fixed", arch="arm64")
def readonly_fixed(context: Context) -> None:
    """READONLY of a slot cannot be changed while it exists (EINVAL); LOG_DIRTY_PAGES can.

    Source: virt/kvm/kvm_main.c, kvm_set_memory_region; Documentation/virt/kvm/api.rst 4.35.
    """
    rules.fixed_flags(context)


@clause("memslot.readonly-memfd", arch="arm64", needs=(rules.REGION2, rules.MEMFD))
def readonly_memfd(context: Context) -> None:
    """GUEST_MEMFD goes neither with READONLY nor with LOG_DIRTY_PAGES: EINVAL.

    A guest_memfd of arm64 has to be one that can be mapped. A KVM that takes dirty logging has to have the log, and
    it is recorded.

    Source: virt/kvm/kvm_main.c, check_memory_region_flags; arch/arm64/kvm/mmu.c, kvm_arch_prepare_memory_region.
    """
    rules.memfd_alone(context, lib.GUEST_MEMFD_FLAG_MMAP)
