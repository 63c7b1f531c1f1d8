# SPDX-License-Identifier: Apache-2.0
"""Where memslots may lie, how they are removed and numbered."""

from __future__ import annotations

import errno

from vmm._kvm import lib
from vmm.conformance import memslot_rules as rules
from vmm.conformance.context import Context
from vmm.conformance.expect import refused, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.memory import PAGE_SIZE

_LEAST_IPA, _DEFAULT_IPA = 32, 40


@clause("memslot.overlap", arch="arm64")
def overlap(context: Context) -> None:
    """Two slots share no page: making one so, or moving one there, is EEXIST and changes nothing.

    Source: virt/kvm/kvm_main.c, kvm_check_memslot_overlap; Documentation/virt/kvm/api.rst 4.35.
    """
    rules.overlaps(context)


@clause("memslot.misplaced", arch="arm64")
def misplaced(context: Context) -> None:
    """Addresses and sizes of a slot are whole pages and do not wrap, and in use only its place changes: else EINVAL.

    Source: virt/kvm/kvm_main.c, kvm_set_memory_region; Documentation/virt/kvm/api.rst 4.35.
    """
    rules.misplaced(context)


@clause("memslot.delete", arch="arm64")
def delete(context: Context) -> None:
    """Size 0 removes a slot, by its number alone; to remove what is not there is EINVAL.

    Source: virt/kvm/kvm_main.c, kvm_set_memory_region; Documentation/virt/kvm/api.rst 4.35.
    """
    rules.deletion(context)


@clause("memslot.numbers", arch="arm64")
def numbers(context: Context) -> None:
    """A slot's number is below KVM_CAP_NR_MEMSLOTS and its address space one that there is: else EINVAL.

    Source: virt/kvm/kvm_main.c, kvm_set_memory_region; Documentation/virt/kvm/api.rst 4.35.
    """
    rules.numbers(context)


@clause("memslot.beyond-ipa", arch="arm64", needs=(capability("KVM_CAP_ARM_VM_IPA_SIZE"),))
def beyond_ipa(context: Context) -> None:
    """A slot ends within the guest's address space, whose size KVM_CREATE_VM was given: else EFAULT.

    Source: arch/arm64/kvm/mmu.c, kvm_arch_prepare_memory_region.
    """
    limit = context.kvm.check_extension(lib.KVM_CAP_ARM_VM_IPA_SIZE)
    for bits in sorted({_LEAST_IPA, min(_DEFAULT_IPA, limit), limit}):
        slot = rules.Slot(context, context.own(context.kvm.create_vm(bits)))
        end = 1 << bits
        refused(f"a slot behind an address space of {bits} bits", errno.EFAULT, slot.set, 0, gpa=end)
        refused("a slot that has its last page behind it", errno.EFAULT, slot.set, 0, 2 * PAGE_SIZE, end - PAGE_SIZE)
        succeeds("a slot at its end", slot.set, 0, 2 * PAGE_SIZE, end - 2 * PAGE_SIZE)
        refused("moving it behind the end", errno.EFAULT, slot.set, 0, 2 * PAGE_SIZE, end - PAGE_SIZE)
        refused("a slot where the refused one was to leave", errno.EEXIST, slot.set, 0, PAGE_SIZE,
                end - 2 * PAGE_SIZE, 1)  # fmt: skip
