# SPDX-License-Identifier: Apache-2.0
"""IA32_XFD and IA32_XFD_ERR where the guest has no XFD: the list, host writes, and #GP in the guest."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import SYSTEM_ATTRIBUTES, configured, judged_call
from vmm.x86 import xfeature
from vmm.x86.guest import Guest
from vmm.x86.msr import get_msr, index_list, name, set_msr
from vmm.x86.msr_names import Msr

_BOTH = (Msr.XFD, Msr.XFD_ERR)
# A KVM that knows of dynamic xfeatures knows these MSRs: the attribute came along with them. To an older one they are
# unknown MSRs, and kvm.ignore_msrs says what becomes of those.
_KNOWN = (SYSTEM_ATTRIBUTES,)


@clause("xfd.msr-list", arch="x86")
def msr_list(context: Context) -> None:
    """KVM_GET_MSR_INDEX_LIST has IA32_XFD and IA32_XFD_ERR exactly if KVM offers XFD.

    Source: arch/x86/kvm/x86.c, kvm_probe_msr_to_save.
    """
    offered = context.host.facts.cpuid.has("XFD")
    listed = index_list(context.kvm)
    for msr in _BOTH:
        equal(f"{name(msr)} in the list", msr in listed, offered)


@clause("xfd.set-rules", arch="x86", needs=_KNOWN)
def set_rules(context: Context) -> None:
    """Without dynamic components in CPUID, IA32_XFD and IA32_XFD_ERR take 0 from the host and nothing else.

    A refused value is a count of 0 MSRs set, no errno.

    Source: arch/x86/kvm/x86.c, kvm_set_msr_common (MSR_IA32_XFD, MSR_IA32_XFD_ERR).
    """
    table = context.host.facts.cpuid
    vcpu = configured(context, table.with_xcr0(table.xcr0 & ~xfeature.XTILE))
    for msr in _BOTH:
        equal(f"{name(msr)} of a fresh vCPU", get_msr(vcpu, msr), 0)
        for value, accepted in ((0, True), (1 << 18, False), (1 << 11, False), (1, False), (1 << 63, False)):
            taken = succeeds(f"KVM_SET_MSRS of {name(msr)} = {value:#x}", set_msr, vcpu, msr, value)
            equal(f"{name(msr)} = {value:#x} accepted", taken, accepted)
        equal(f"{name(msr)} after the refusals", get_msr(vcpu, msr), 0)


@clause("xfd.guest-gp", arch="x86", needs=_KNOWN)
def guest_faults(context: Context) -> None:
    """In a guest whose CPUID has no XFD, reading or writing IA32_XFD and IA32_XFD_ERR is #GP.

    Source: arch/x86/kvm/x86.c, kvm_get_msr_common, kvm_set_msr_common; Intel SDM volume 1, 13.14.
    """
    table = context.host.facts.cpuid
    table = table.with_xcr0(table.xcr0 & ~xfeature.XTILE).edit(0xD, 1, eax=table.get(0xD, 1).eax & ~(1 << 4))
    guest = context.own(Guest(context.kvm, "hello", cpuid=table))
    for msr in _BOTH:
        for entry, value in (("rdmsr", 0), ("wrmsr", 0), ("wrmsr", 1 << 18)):
            judged_call(context, guest, entry, msr, value)
            faults = guest.mailbox.read("values", 15)
            equal(f"faults of {entry} {name(msr)} {value:#x}", faults, 1)
            equal(f"vector of {entry} {name(msr)} {value:#x}", guest.fault().name, "#GP")
    judged_call(context, guest, "rdmsr", Msr.PAT)
    equal("faults of rdmsr IA32_PAT, for comparison", guest.mailbox.read("values", 15), 0)
