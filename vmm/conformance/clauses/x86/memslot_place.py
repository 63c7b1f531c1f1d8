# SPDX-License-Identifier: Apache-2.0
"""Where memslots may lie, how they are removed and numbered."""

from __future__ import annotations

from vmm.conformance import memslot_rules as rules
from vmm.conformance.context import Context
from vmm.conformance.registry import clause


@clause("memslot.overlap", arch="x86")
def overlap(context: Context) -> None:
    """Two slots share no page: making one so, or moving one there, is EEXIST and changes nothing.

    Source: virt/kvm/kvm_main.c, kvm_check_memslot_overlap; Documentation/virt/kvm/api.rst 4.35.
    """
    rules.overlaps(context)


@clause("memslot.misplaced", arch="x86")
def misplaced(context: Context) -> None:
    """Addresses and sizes of a slot are whole pages and do not wrap, and in use only its place changes: else EINVAL.

    Source: virt/kvm/kvm_main.c, kvm_set_memory_region; Documentation/virt/kvm/api.rst 4.35.
    """
    rules.misplaced(context)


@clause("memslot.delete", arch="x86")
def delete(context: Context) -> None:
    """Size 0 removes a slot, by its number alone; to remove what is not there is EINVAL.

    Source: virt/kvm/kvm_main.c, kvm_set_memory_region; Documentation/virt/kvm/api.rst 4.35.
    """
    rules.deletion(context)


@clause("memslot.numbers", arch="x86")
def numbers(context: Context) -> None:
    """A slot's number is below KVM_CAP_NR_MEMSLOTS and its address space one that there is: else EINVAL.

    Source: virt/kvm/kvm_main.c, kvm_set_memory_region; Documentation/virt/kvm/api.rst 4.35.
    """
    rules.numbers(context)
