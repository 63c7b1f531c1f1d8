# SPDX-License-Identifier: Apache-2.0
"""IA32_PAT: as a register, and whether the types that it gives reach the caches.

KVM on Intel tells EPT to ignore the guest's types, until KVM_X86_QUIRK_IGNORE_GUEST_PAT is disabled or a
non-coherent VFIO group is added; on AMD the nested tables always take part; shadow page tables have no types.
"""

from __future__ import annotations

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.registry import clause
from vmm.conformance.x86.caching import (
    CACHED,
    PAT_HONOURED,
    PAT_IGNORED,
    PAT_QUIRK,
    STORES,
    UNCACHED,
    CachingGuest,
    expect_cached,
    expect_slower,
    expect_uncached,
)
from vmm.conformance.x86.common import configured
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import msr
from vmm.x86.guest import Guest
from vmm.x86.memory_types import PAT_AT_RESET, MemoryType, Quirk
from vmm.x86.msr_names import Msr

_GP = 13
_VALID = tuple(MemoryType)


@clause("pat.reset", arch="x86")
def reset(context: Context) -> None:
    """IA32_PAT of a new vCPU is 0x0007040600070406, before and after CPUID is set, for the host and the guest.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_reset; Intel SDM volume 3, 12.12.2 and 12.12.4.
    """
    equal("IA32_PAT before CPUID", msr.get_msr(context.vcpu(), Msr.PAT), PAT_AT_RESET)
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    equal("IA32_PAT after CPUID", msr.get_msr(guest.vcpu, Msr.PAT), PAT_AT_RESET)
    equal("IA32_PAT as the guest reads it", _guest_reads(context, guest), (0, PAT_AT_RESET))


def _guest_reads(context: Context, guest: Guest) -> tuple[int, int]:
    """Return (faults of RDMSR, IA32_PAT)."""
    guest.call("rdmsr", Msr.PAT, timeout=context.timeout)
    return guest.mailbox.read("values", 15), guest.mailbox.read("values")


def _with(kind: int, entry: int) -> int:
    """IA32_PAT at reset with another type in one entry."""
    return PAT_AT_RESET & ~(0xFF << 8 * entry) | kind << 8 * entry


@clause("pat.valid-types", arch="x86")
def valid_types(context: Context) -> None:
    """Each entry of IA32_PAT takes the types 0, 1, 4, 5, 6 and 7, from the host and from the guest.

    Source: arch/x86/kvm/x86.h, kvm_pat_valid; Intel SDM volume 3, table 12-10.
    """
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    for entry in range(8):
        for kind in _VALID:
            value = _with(kind, entry)
            equal(f"KVM_SET_MSRS of IA32_PAT {value:#x}", msr.set_msr(guest.vcpu, Msr.PAT, value), True)
            equal("IA32_PAT read back", msr.get_msr(guest.vcpu, Msr.PAT), value)
    for entry, kind in enumerate((*_VALID, *_VALID[:2])):
        value = _with(kind, entry)
        guest.call("wrmsr", Msr.PAT, value, timeout=context.timeout)
        equal(f"faults of WRMSR of IA32_PAT {value:#x}", guest.mailbox.read("values", 15), 0)
        equal("IA32_PAT as the guest reads it", _guest_reads(context, guest), (0, value))
        equal("IA32_PAT of the guest as the host reads it", msr.get_msr(guest.vcpu, Msr.PAT), value)


@clause("pat.invalid-type", arch="x86")
def invalid_type(context: Context) -> None:
    """A type other than 0, 1, 4, 5, 6 and 7 in any entry is refused, with #GP in the guest, and nothing changes.

    Source: arch/x86/kvm/x86.h, kvm_pat_valid; Intel SDM volume 3, 12.12.2.
    """
    vcpu = configured(context)
    reserved = [kind for kind in range(256) if kind not in _VALID]
    for kind in reserved:
        _refused(vcpu, _with(kind, 1))
    for entry in range(8):
        for kind in (2, 3, 8, 0x80, 0xFF):
            _refused(vcpu, _with(kind, entry))
    # Only where the host's value is checked: one that the CPU does not take must not come near it.
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    for value in (_with(2, 0), _with(3, 3), _with(8, 7), _with(0xFF, 4)):
        guest.call("wrmsr", Msr.PAT, value, timeout=context.timeout)
        equal(f"faults of WRMSR of IA32_PAT {value:#x}", guest.mailbox.read("values", 15), 1)
        equal("its vector", guest.fault().vector, _GP)
        equal("IA32_PAT after the fault", msr.get_msr(guest.vcpu, Msr.PAT), PAT_AT_RESET)


def _refused(vcpu: Vcpu, value: int) -> None:
    equal(f"KVM_SET_MSRS of IA32_PAT {value:#x}", msr.set_msr(vcpu, Msr.PAT, value), False)
    equal(f"IA32_PAT after the refused {value:#x}", msr.get_msr(vcpu, Msr.PAT), PAT_AT_RESET)


@clause("pat.quirk-default-wb", arch="x86", needs=(PAT_IGNORED,), timeout=30.0)
def ignored_by_default(context: Context) -> None:
    """By default, memory that the guest maps UC, UC-, WC or WT is cached write-back all the same.

    Told from the time of dependent loads, in ratios to a page mapped WB.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_get_mt_mask (EPT ignores PAT); arch/x86/kvm/mmu/spte.c, make_spte
    (no types in shadow page tables); Documentation/virt/kvm/api.rst 7.31.
    """
    for ratio in CachingGuest(context).load_ratios().values():
        expect_cached(context, ratio)


def _types_count(context: Context, guest: CachingGuest) -> None:
    """The types that PAT gives to pages have to be those of their memory."""
    ratios = guest.load_ratios()
    for kind in (MemoryType.UC, MemoryType.UC_MINUS, MemoryType.WC):
        expect_uncached(context, ratios[kind])
    expect_cached(context, ratios[MemoryType.WT])
    expect_slower(context, guest.store_ratio(MemoryType.UC, MemoryType.WC), STORES)


@clause("pat.quirk-disabled-honoured", arch="x86", needs=(PAT_QUIRK,), timeout=30.0)
def honoured_without_quirk(context: Context) -> None:
    """With KVM_X86_QUIRK_IGNORE_GUEST_PAT disabled, memory has the types of the guest's PAT.

    Loads from UC, UC- and WC pages come from memory, those from WT pages from the caches, and stores to WC
    pages are combined where those to UC pages are not.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_ignore_guest_pat; Documentation/virt/kvm/api.rst 7.31; Linux 6.16.
    """
    _types_count(context, CachingGuest(context, quirks=Quirk.IGNORE_GUEST_PAT))


@clause("pat.amd-honoured", arch="x86", needs=(PAT_HONOURED,), timeout=30.0)
def honoured_on_amd(context: Context) -> None:
    """With nested page tables on AMD, memory always has the types of the guest's PAT.

    Source: AMD APM volume 2, 15.25.8 "Combining memory types, MTRRs"; Documentation/virt/kvm/api.rst 7.31.
    """
    _types_count(context, CachingGuest(context))


@clause("pat.quirk-late", arch="x86", needs=(PAT_QUIRK,), info=True, timeout=30.0)
def quirk_disabled_late(context: Context) -> None:
    """What KVM_X86_QUIRK_IGNORE_GUEST_PAT does when it is disabled after the guest has used its pages.

    Nothing documents it: the code drops no translation then, so pages keep the type they were mapped with until
    something else drops them, such as a memslot that is set again.

    Source: arch/x86/kvm/x86.c, kvm_vm_ioctl_enable_cap (KVM_CAP_DISABLE_QUIRKS2: no zap), in contrast to
    kvm_noncoherent_dma_assignment_start_or_stop.
    """
    guest = CachingGuest(context)
    context.note(f"before: {_level(guest)}")
    guest.guest.vm.enable_cap(lib.KVM_CAP_DISABLE_QUIRKS2, Quirk.IGNORE_GUEST_PAT)
    context.note(f"disabled: {_level(guest)}")
    memory = guest.guest.memory
    guest.guest.vm.set_memory_region(memory.slot, memory.gpa, 0, memory.address)
    memory.register()
    context.note(f"after the memslot was set again: {_level(guest)}")


def _level(guest: CachingGuest) -> str:
    ratio = guest.load_ratios(rounds=5)[MemoryType.UC]
    if ratio.below(CACHED):
        return "UC pages are cached"
    return "UC pages are uncached" if ratio.above(UNCACHED) else f"undecided, {ratio}"
