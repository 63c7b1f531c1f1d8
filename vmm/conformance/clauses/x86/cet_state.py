# SPDX-License-Identifier: Apache-2.0
"""CET registers from the host: which values KVM takes, and where they are saved."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, refused_indicative, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import STRICT_MSRS, configured
from vmm.conformance.x86.shadow import IBT, SHSTK, SSP_ID, UNKNOWN_ID, XSAVES, set_ssp, ssp
from vmm.kvm.vcpu import Vcpu
from vmm.x86.cpuid import Cpuid
from vmm.x86.msr import get_msr, index_list, name, set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.xfeature import XFeature

_CET_U, _CET_S = 1 << XFeature.CET_U, 1 << XFeature.CET_S
_ENABLE = (Msr.U_CET, Msr.S_CET)
_POINTERS = (Msr.PL0_SSP, Msr.PL1_SSP, Msr.PL2_SSP, Msr.PL3_SSP)


def _without(table: Cpuid, *features: str) -> Cpuid:
    """Return the table without SHSTK (7.ECX[7]) or IBT (7.EDX[20])."""
    leaf = table.get(7)
    ecx = leaf.ecx & ~(1 << 7) if "SHSTK" in features else leaf.ecx
    edx = leaf.edx & ~(1 << 20) if "IBT" in features else leaf.edx
    return table.edit(7, 0, ecx=ecx, edx=edx)


def _accepts(vcpu: Vcpu, msr: int, values: dict[int, bool], why: str = "") -> None:
    """Try values one by one; an accepted one has to be read back, a refused one has to change nothing."""
    for value, accepted in values.items():
        before = get_msr(vcpu, msr)
        equal(f"{name(msr)} = {value:#x} accepted{why}", set_msr(vcpu, msr, value), accepted)
        equal(f"{name(msr)} after {value:#x}", get_msr(vcpu, msr), value if accepted else before)


@clause("cet.xss-bits", arch="x86", needs=(XSAVES,))
def xss_bits(context: Context) -> None:
    """IA32_XSS takes every subset of the components that the guest's CPUID 0xD.1 offers, and no other bit.

    Source: arch/x86/kvm/x86.c, kvm_set_msr_common (MSR_IA32_XSS, guest_supported_xss); Linux 6.18.
    """
    vcpu = configured(context)
    offered = context.host.facts.cpuid.xss
    values = {0: True, _CET_U: True, _CET_S: True, _CET_U | _CET_S: True}
    _accepts(vcpu, Msr.XSS, {v: ok and v & ~offered == 0 for v, ok in values.items()})
    _accepts(vcpu, Msr.XSS, {1 << bit: False for bit in range(64) if not offered >> bit & 1})


@clause("cet.ucet-scet-bits", arch="x86", needs=(SHSTK, IBT))
def enable_bits(context: Context) -> None:
    """U_CET and S_CET take their defined bits alone and together, and refuse reserved and contradicting ones.

    Bits 9:6 are reserved, SUPPRESS and TRACKER contradict each other, the legacy bitmap is page-aligned.

    Source: arch/x86/kvm/x86.c, kvm_is_valid_u_s_cet; Intel SDM volume 1, 17.1.2; Linux 6.18.
    """
    vcpu = configured(context)
    for msr in _ENABLE:
        _accepts(vcpu, msr, {1 << bit: True for bit in (0, 1, 2, 3, 4, 5, 10, 11)})
        _accepts(vcpu, msr, {0x3F: True, 0: True, 0x7F0000000000: True})
        _accepts(vcpu, msr, {1 << bit: False for bit in (6, 7, 8, 9)})
        _accepts(vcpu, msr, {1 << 10 | 1 << 11: False})


@clause("cet.ucet-scet-need-features", arch="x86", needs=(SHSTK, IBT))
def enable_bits_need_features(context: Context) -> None:
    """Without IBT in CPUID the tracking bits of U_CET and S_CET are refused, without SHSTK the shadow stack bits.

    Source: arch/x86/kvm/x86.c, kvm_is_valid_u_s_cet; Linux 6.18.
    """
    table = context.host.facts.cpuid
    only_stacks = configured(context, _without(table, "IBT"))
    only_tracking = configured(context, _without(table, "SHSTK"))
    for msr in _ENABLE:
        _accepts(only_stacks, msr, {1: True, 2: True, 4: False, 1 << 5: False, 1 << 10: False, 1 << 12: False})
        _accepts(only_tracking, msr, {4: True, 1 << 5: True, 1: False, 2: False})


@clause("cet.ssp-alignment", arch="x86", needs=(SHSTK,))
def shadow_stack_pointers(context: Context) -> None:
    """Shadow stack pointers take canonical multiples of 4, the interrupt table any canonical address, nothing else.

    Source: arch/x86/kvm/x86.c, __kvm_set_msr (MSR_IA32_PL0_SSP ...); Intel SDM volume 1, 17.2; Linux 6.18.
    """
    vcpu = configured(context)
    for msr in _POINTERS:
        _accepts(vcpu, msr, {4: True, 0x7FFFFFFFFFFC: True, 0xFFFF800000000000: True, 0: True})
        _accepts(vcpu, msr, {1: False, 2: False, 0x1003: False, 1 << 63: False, 1 << 60: False})
    _accepts(vcpu, Msr.INT_SSP_TAB, {1: True, 0x1003: True, 0: True, 1 << 63: False})
    for value, accepted in {8: True, 0: True, 1: False, 2: False, 1 << 63: False}.items():
        if accepted:
            succeeds(f"SSP = {value:#x}", set_ssp, vcpu, value)
            equal(f"SSP after {value:#x}", ssp(vcpu), value)
        else:
            refused_indicative(context, f"SSP = {value:#x}", errno.EINVAL, set_ssp, vcpu, value)
            equal(f"SSP after the refused {value:#x}", ssp(vcpu), 0)


@clause("cet.pointers-need-shstk", arch="x86", needs=(SHSTK, STRICT_MSRS))
def pointers_need_feature(context: Context) -> None:
    """Without SHSTK in the guest's CPUID the shadow stack pointers take no value but 0, and SSP none at all.

    They are unknown MSRs then, which kvm.ignore_msrs would have KVM take.

    Source: arch/x86/kvm/x86.c, __kvm_set_msr, kvm_set_one_reg; Linux 6.18.
    """
    vcpu = configured(context, _without(context.host.facts.cpuid, "SHSTK"))
    for msr in (*_POINTERS, Msr.INT_SSP_TAB):
        equal(f"{name(msr)} = 0x1000 accepted", set_msr(vcpu, msr, 0x1000), False)
        equal(f"{name(msr)} = 0 accepted", set_msr(vcpu, msr, 0), True)
    refused_indicative(context, "setting SSP", errno.EINVAL, set_ssp, vcpu, 0x1000)


@clause("cet.guest-ssp-onereg", arch="x86", needs=(SHSTK,))
def ssp_one_reg(context: Context) -> None:
    """SSP is read and written as the 64-bit KVM register 0; other sizes and unknown numbers are refused.

    The code returns EINVAL; the documentation calls its errnos indicative.

    Source: arch/x86/kvm/x86.c, kvm_translate_kvm_reg; arch/x86/include/uapi/asm/kvm.h, KVM_REG_GUEST_SSP; Linux 6.18.
    """
    vcpu = configured(context)
    equal("the register's id", SSP_ID, 0x2030000300000000)
    for value in (0x1000, 0x7FFFFFFFFFF8, 0):
        succeeds(f"setting SSP to {value:#x}", set_ssp, vcpu, value)
        equal("SSP", ssp(vcpu), value)
    small = SSP_ID & ~lib.KVM_REG_SIZE_MASK | lib.KVM_REG_SIZE_U32
    for what, identifier, size in (("SSP as 32 bits", small, 4), ("an unknown KVM register", UNKNOWN_ID, 8)):
        refused_indicative(context, f"reading {what}", errno.EINVAL, vcpu.get_one_reg, identifier)
        refused_indicative(context, f"writing {what}", errno.EINVAL, vcpu.set_one_reg, identifier, bytes(size))
    equal("SSP after the refusals", ssp(vcpu), 0)


@clause("cet.reg-list-shstk", arch="x86", needs=(SHSTK,))
def register_list(context: Context) -> None:
    """With SHSTK KVM_GET_REG_LIST has SSP: with room for none it is E2BIG and says how many there are.

    SSP is the only one in Linux 6.18 to 7.2; other registers are recorded.

    Source: arch/x86/kvm/x86.c, kvm_get_reg_list; Linux 6.18.
    """
    vcpu = configured(context)
    listing = ffi.new("struct kvm_reg_list *", {"n": 0, "reg": 0})
    refused("room for none", errno.E2BIG, vcpu.ioctl, lib.KVM_GET_REG_LIST, listing)
    true("n after E2BIG", listing.n > 0, listing.n, "how many there are")
    found = succeeds("the list with room for all", vcpu.reg_list)
    equal("how often SSP is in the list", found.count(SSP_ID), 1)
    equal("the number of registers listed", len(found), listing.n)
    if len(found) > 1:
        context.note(f"{len(found)} registers are listed")


@clause("cet.reset", arch="x86", needs=(SHSTK,))
def reset(context: Context) -> None:
    """Every CET register of a fresh vCPU is 0.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_vcpu_reset; Intel SDM volume 3, table 11-1; Linux 6.18.
    """
    vcpu = configured(context)
    for msr in (*_ENABLE, *_POINTERS, Msr.INT_SSP_TAB, Msr.XSS):
        equal(name(msr), get_msr(vcpu, msr), 0)
    equal("SSP", ssp(vcpu), 0)


@clause("cet.msrs-in-list", arch="x86", needs=(SHSTK,))
def registers_are_saved(context: Context) -> None:
    """All CET registers written by the host are read back through KVM's own list, each with its own value.

    Source: arch/x86/kvm/x86.c, msrs_to_save_base; Linux 6.18.
    """
    vcpu = configured(context)
    values = {Msr.U_CET: 1, Msr.S_CET: 2, Msr.PL0_SSP: 0x10000, Msr.PL1_SSP: 0x20000, Msr.PL2_SSP: 0x30000,
              Msr.PL3_SSP: 0x40000, Msr.INT_SSP_TAB: 0x50000, Msr.XSS: context.host.facts.cpuid.xss}  # fmt: skip
    for msr, value in values.items():
        equal(f"{name(msr)} accepted", set_msr(vcpu, msr, value), True)
    listed = index_list(context.kvm)
    for msr, value in values.items():
        equal(f"{name(msr)} in the list", msr in listed, True)
        equal(name(msr), get_msr(vcpu, msr), value)
