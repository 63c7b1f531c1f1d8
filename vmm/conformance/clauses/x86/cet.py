# SPDX-License-Identifier: Apache-2.0
"""CET where the guest has none: CR4.CET, the lists, IA32_XSS."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import XCOMP, configured
from vmm.conformance.x86.shadow import SSP_ID
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import permission
from vmm.x86.boot import CR4_CET
from vmm.x86.cpuid import Cpuid
from vmm.x86.guest import Guest
from vmm.x86.msr import get_msr, index_list, name, set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_sregs, set_sregs
from vmm.x86.xfeature import XFeature


def _without_cet(table: Cpuid) -> Cpuid:
    leaf = table.get(7)
    return table.edit(7, 0, ecx=leaf.ecx & ~(1 << 7), edx=leaf.edx & ~(1 << 20))


@clause("cet.cr4-reserved", arch="x86")
def cr4_cet_reserved(context: Context) -> None:
    """Without shadow stacks and IBT in the guest's CPUID, CR4.CET is EINVAL for the host and #GP in the guest.

    Source: arch/x86/kvm/x86.c, kvm_is_valid_cr4; arch/x86/kvm/cpuid.c, cr4_guest_rsvd_bits.
    """
    guest = context.own(Guest(context.kvm, "hello", cpuid=_without_cet(context.host.facts.cpuid)))
    guest.call("read_cr4", timeout=context.timeout)
    # Not what the guest read: an emulated CPU may show it a bit of the host's.
    cr4 = int(get_sregs(guest.vcpu).cr4)
    guest.call("write_cr4", cr4 | CR4_CET, timeout=context.timeout)
    equal("faults of MOV to CR4", guest.mailbox.read("values", 15), 1)
    equal("the fault of MOV to CR4", guest.fault().name, "#GP")
    sregs = get_sregs(guest.vcpu)
    sregs.cr4 |= CR4_CET
    refused("KVM_SET_SREGS with CR4.CET", errno.EINVAL, set_sregs, guest.vcpu, sregs)
    equal("CR4 after the refusals", get_sregs(guest.vcpu).cr4, cr4)


@clause("cet.msr-list", arch="x86")
def msr_list(context: Context) -> None:
    """The CET MSRs are in KVM's list as far as KVM offers their features, and IA32_XSS if it takes any value but 0.

    Source: arch/x86/kvm/x86.c, kvm_probe_msr_to_save (6.18 and later).
    """
    table = context.host.facts.cpuid
    listed = index_list(context.kvm)
    shadow_stacks = table.has("SHSTK")
    for index in (Msr.U_CET, Msr.S_CET):
        equal(f"{name(index)} in the list", index in listed, shadow_stacks or table.has("IBT"))
    for index in (Msr.PL0_SSP, Msr.PL1_SSP, Msr.PL2_SSP, Msr.PL3_SSP):
        equal(f"{name(index)} in the list", index in listed, shadow_stacks)
    if table.xss:
        equal(f"{name(Msr.XSS)} in the list", Msr.XSS in listed, True)


@clause("cet.reg-list", arch="x86", needs=(capability("KVM_CAP_ONE_REG"),))
def register_list(context: Context) -> None:
    """Without shadow stacks in the guest's CPUID KVM_GET_REG_LIST lists no SSP; a bad pointer is EFAULT.

    It lists nothing at all in Linux 6.18 to 7.2. Registers that a later kernel has can be read and are recorded.

    Source: arch/x86/kvm/x86.c, kvm_get_reg_list; Linux 6.18.
    """
    vcpu = configured(context, _without_cet(context.host.facts.cpuid))
    listing = ffi.new("struct kvm_reg_list *", {"n": 0, "reg": 0})
    try:
        vcpu.ioctl(lib.KVM_GET_REG_LIST, listing)
    except KvmError:
        _others_listed(context, vcpu)
    else:
        equal("n where none has room", listing.n, 0)
    bad = ffi.cast("struct kvm_reg_list *", 0x10)
    refused("a bad pointer", errno.EFAULT, vcpu.ioctl, lib.KVM_GET_REG_LIST, bad)


def _others_listed(context: Context, vcpu: Vcpu) -> None:
    """A list for which there was no room: it has members, each can be read, and SSP is not one of them."""
    found = succeeds("KVM_GET_REG_LIST with room for all", vcpu.reg_list)
    true("the number of registers after E2BIG", len(found) > 0, len(found), "more than 0")
    equal("SSP in the list", SSP_ID in found, False)
    for register in found:
        succeeds(f"reading register {register:#x}", vcpu.get_one_reg, register)
    context.note(f"other registers: {', '.join(f'{register:#x}' for register in found)}")


@clause("cet.xss-read-write-asymmetry", arch="x86", info=True)
def xss_asymmetry(context: Context) -> None:
    """Without XSAVES in the guest's CPUID the host can read IA32_XSS as 0; whether it can write 0 is recorded.

    Source: arch/x86/kvm/x86.c, kvm_get_msr_common, kvm_set_msr_common (MSR_IA32_XSS).
    """
    table = context.host.facts.cpuid
    vcpu = configured(context, table.edit(0xD, 1, eax=table.get(0xD, 1).eax & ~(1 << 3)))
    try:
        context.note(f"reads {get_msr(vcpu, Msr.XSS):#x}; writing 0 is accepted: {set_msr(vcpu, Msr.XSS, 0)}")
    except (LookupError, KvmError) as error:
        context.note(str(error))
    equal(f"{name(Msr.XSS)} with CET_U accepted", set_msr(vcpu, Msr.XSS, 1 << XFeature.CET_U), False)


@clause("cet.guest-only-xfeature", arch="x86", needs=(XCOMP,))
def guest_only_component(context: Context) -> None:
    """The host never shows CET_S among its own xfeatures, even where guests have it.

    Source: arch/x86/kernel/fpu/xstate.c, XFEATURE_MASK_GUEST_SUPERVISOR (6.17 and later); fpu_xstate_prctl.
    """
    equal("CET_S in ARCH_GET_XCOMP_SUPP", permission.host_supported() >> XFeature.CET_S & 1, 0)
    equal("CET_S in ARCH_GET_XCOMP_PERM", permission.host_permitted() >> XFeature.CET_S & 1, 0)
