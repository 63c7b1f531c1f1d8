# SPDX-License-Identifier: Apache-2.0
"""Quirks: which behaviours a VMM may turn off, KVM_CAP_DISABLE_QUIRKS2 and the older KVM_CAP_DISABLE_QUIRKS."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86.apic import LOCAL_APICS, with_local_apics
from vmm.kvm.vm import VirtualMachine
from vmm.x86.memory_types import GuestPat, Quirk, describe_quirks

_QUIRKS2 = capability("KVM_CAP_DISABLE_QUIRKS2")
_LINT0 = Quirk.LINT0_REENABLED
# The register LVT LINT0 of a local APIC at reset, as the quirk leaves it and as the manual has it.
_LVT0, _EXTERNAL, _MASKED = 0x350, 0x700, 0x10000


@clause("quirk.caps", arch="x86", needs=(_QUIRKS2,))
def capabilities(context: Context) -> None:
    """KVM_CAP_DISABLE_QUIRKS2 is the set of quirks that can be disabled: any other bit is EINVAL, and flags are too.

    KVM_CAP_DISABLE_QUIRKS takes the same bits and ignores those it does not know. Bits that have no name here are
    recorded.

    Source: arch/x86/kvm/x86.c, kvm_vm_ioctl_enable_cap; Documentation/virt/kvm/api.rst 7.31, 9.
    """
    vm = context.vm()
    mask = context.kvm.check_extension(lib.KVM_CAP_DISABLE_QUIRKS2)
    equal("KVM_CAP_DISABLE_QUIRKS2 of the VM", vm.check_extension(lib.KVM_CAP_DISABLE_QUIRKS2), mask)
    unknown = mask & ~sum(Quirk)
    if unknown:
        context.note(f"quirks without a name here: {describe_quirks(unknown)}")
    refused("flags", errno.EINVAL, vm.enable_cap, lib.KVM_CAP_DISABLE_QUIRKS2, 0, flags=1)
    for bit in range(64):
        value = 1 << bit
        if mask & value:
            succeeds(f"disabling quirk {value:#x}", _disable, vm, value)
        else:
            refused(f"quirk {value:#x}", errno.EINVAL, _disable, vm, value)
            both = value | mask & -mask
            refused(f"quirks {both:#x}", errno.EINVAL, _disable, vm, both)
        succeeds(f"KVM_CAP_DISABLE_QUIRKS {value:#x}", vm.enable_cap, lib.KVM_CAP_DISABLE_QUIRKS, value)
    succeeds("all quirks together", _disable, vm, mask)


@clause("quirk.ignore-guest-pat", arch="x86", needs=(_QUIRKS2,))
def ignore_guest_pat(context: Context) -> None:
    """KVM_X86_QUIRK_IGNORE_GUEST_PAT can be disabled only where the guest's PAT can be honoured.

    That is with second-level page tables, and on Intel only if the CPU snoops its own caches: without self-snoop
    or with shadow page tables KVM always ignores PAT. Where the quirk is not listed it cannot be disabled either; a
    KVM that could, and does not list it, does not know it.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_hardware_setup; arch/x86/kvm/x86.c, kvm_x86_vendor_init; Linux 6.16.
    """
    types = context.host.facts.memory_types
    quirk = int(Quirk.IGNORE_GUEST_PAT)
    vm, mask = context.vm(), context.kvm.check_extension(lib.KVM_CAP_DISABLE_QUIRKS2)
    shown = f"KVM_CAP_DISABLE_QUIRKS2 is {mask:#x}, page tables: {types.tables()}, self-snoop: {types.self_snoop}"
    if not mask & quirk:
        refused("disabling the quirk, which is not listed", errno.EINVAL, _disable, vm, quirk)
        if _may_honour(context):
            context.skip(f"this KVM does not know the quirk: {shown}")
    else:
        succeeds("disabling the quirk, which is listed", _disable, vm, quirk)
        if types.guest_pat is GuestPat.UNKNOWN:
            context.skip(f"nothing shows whether {context.host.backend} can honour PAT: {shown}")
        true("bit 9 of KVM_CAP_DISABLE_QUIRKS2", _may_honour(context), mask, f"0 ({shown}, {context.host.backend})")
    context.note(shown)


def _may_honour(context: Context) -> bool:
    """Tell whether nothing that is known of this host keeps its KVM from honouring PAT."""
    types = context.host.facts.memory_types
    return types.two_levels is not False and (types.self_snoop or context.host.backend != "kvm_intel")


def _disable(vm: VirtualMachine, mask: int) -> None:
    vm.enable_cap(lib.KVM_CAP_DISABLE_QUIRKS2, mask)


def _lint0(context: Context, *masks: int, refused_mask: int = 0) -> int:
    """Return LVT LINT0 of the first vCPU of a VM in which quirks were disabled, one set after the other."""
    with with_local_apics(context.kvm.create_vm()) as vm:
        if refused_mask:
            refused(f"quirks {refused_mask:#x}", errno.EINVAL, _disable, vm, refused_mask)
        for mask in masks:
            succeeds(f"disabling quirks {mask:#x}", _disable, vm, mask)
        lapic = vm.create_vcpu().get(lib.KVM_GET_LAPIC, "kvm_lapic_state")
    return int.from_bytes(bytes(ffi.buffer(lapic))[_LVT0 : _LVT0 + 4], "little")


@clause("quirk.one-way", arch="x86", needs=(_QUIRKS2, LOCAL_APICS))
def one_way(context: Context) -> None:
    """A disabled quirk stays disabled: another KVM_ENABLE_CAP adds to the set, and an empty one does not reset it.

    Seen in LVT LINT0 of a fresh local APIC, which KVM_X86_QUIRK_LINT0_REENABLED leaves unmasked. A call that is
    refused for another bit disables nothing, and a VM's quirks are its own. Before 6.16, and before a late release
    of 6.12, only the last call's set counted.

    Source: arch/x86/kvm/x86.c, kvm_vm_ioctl_enable_cap; arch/x86/kvm/lapic.c, kvm_lapic_reset.
    """
    other = Quirk.OUT_7E_INC_RIP
    mask = context.host.facts.memory_types.quirks
    if ~mask & (_LINT0 | other):
        context.skip(f"KVM_CAP_DISABLE_QUIRKS2 is {describe_quirks(mask)}, without the two that are disabled here")
    unknown = 1 << next(bit for bit in reversed(range(64)) if not mask >> bit & 1)
    equal("LVT LINT0 with the quirk", _lint0(context), _EXTERNAL)
    equal("LVT LINT0 with the quirk disabled", _lint0(context, _LINT0), _MASKED)
    equal("LVT LINT0 after an empty set", _lint0(context, _LINT0, 0), _MASKED)
    equal("LVT LINT0 after another quirk", _lint0(context, _LINT0, other), _MASKED)
    equal("LVT LINT0 with another quirk disabled", _lint0(context, other), _EXTERNAL)
    equal("LVT LINT0 after a refusal", _lint0(context, refused_mask=_LINT0 | unknown), _EXTERNAL)
    equal("LVT LINT0 of a new VM", _lint0(context), _EXTERNAL)
