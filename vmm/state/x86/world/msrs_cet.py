# SPDX-License-Identifier: Apache-2.0
"""The rows of MSRs that go with extended state: XFD, control-flow enforcement, bounds, processor trace."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from vmm.kvm.bits import bits
from vmm.kvm.vcpu import Vcpu
from vmm.state.world.row import After, Canonical, Free, Of, Refusal, Row, Untold
from vmm.state.x86.world.msr_row import Guest, MsrRow, amd, at, cpuid, has, only_0
from vmm.state.x86.world.msrs_system import far, not_canonical
from vmm.x86 import xfeature
from vmm.x86.msr_names import Msr

__all__ = ["ONE_REG_ROWS", "ROWS", "XFD_ROWS"]

_SET = "arch/x86/kvm/x86.c, __kvm_set_msr"
_LEGACY = 0x7654_3210_C000  # a bitmap of legacy code: what KVM takes is aligned to 16 KiB
_TOP = 1 << 63
_SHSTK_BITS, _IBT_BITS, _SUPPRESS, _WAIT = 3, 0x3C, 1 << 10, 1 << 11
_MISALIGNED = (Refusal(1), Refusal(2))
_KEPT_BY_AMD = Untold("KVM on AMD leaves the VMCB's as it is, other than the manual")


def _controls(vcpu: Vcpu) -> Mapping[str, Any]:
    shadow, tracking = has(vcpu, "SHSTK"), has(vcpu, "IBT")
    if not (shadow or tracking):
        return only_0()
    most = (_SHSTK_BITS if shadow else 0) | (_LEGACY | _IBT_BITS if tracking else 0)
    refused = [1 << bit for bit in range(6, 10)]
    if tracking:
        refused += [_SUPPRESS | _WAIT, 1 << 12, 1 << 13]
    refused += [] if shadow else [1]
    refused += [] if tracking else [4, _TOP]
    least = (1 if shadow else 0) | (_SUPPRESS if tracking else 0)
    return {"values": Of(most, least, most & 0xFF, 0), "refused": [Refusal(value) for value in refused]}


def _supervisor(vcpu: Vcpu) -> Mapping[str, Any]:
    return {**_controls(vcpu), "init": _KEPT_BY_AMD if amd(vcpu) else After.FRESH}


def _pointer(vcpu: Vcpu) -> Mapping[str, Any]:
    return {"refused": [*_MISALIGNED, *not_canonical(vcpu)]} if has(vcpu, "SHSTK") else only_0()


def _pointers(vcpu: Vcpu) -> Mapping[str, Any]:
    return {**(far(vcpu) if has(vcpu, "SHSTK") else only_0()), "init": _KEPT_BY_AMD if amd(vcpu) else After.FRESH}


def _xfd(vcpu: Vcpu) -> Mapping[str, Any]:
    offered = cpuid(vcpu).xcr0 & xfeature.DYNAMIC
    access = {} if has(vcpu, "XFD") else {"rdmsr": Guest.FAULT, "wrmsr": Guest.FAULT}
    missing = [1 << bit for bit in (*bits(xfeature.DYNAMIC), 1, 2, 63) if not offered >> bit & 1]
    return {"values": Of(offered, 0), "refused": [Refusal(value) for value in missing], **access}


XFD_ROWS = (
    MsrRow(at(Msr.XFD, Msr.XFD_ERR), "arch/x86/kvm/x86.c, kvm_set_msr_common, kvm_guest_supported_xfd", fresh=0,
           values=None, init=After.KEPT, varies=_xfd),
)  # fmt: skip

ROWS = (
    MsrRow(at(Msr.U_CET), f"arch/x86/kvm/x86.h, kvm_is_valid_u_s_cet; {_SET}; kvm_xstate_reset", fresh=0,
           values=None, varies=_controls),
    MsrRow(at(Msr.S_CET), f"arch/x86/kvm/x86.h, kvm_is_valid_u_s_cet; {_SET}; vmx/vmx.c, vmx_vcpu_reset", fresh=0,
           values=None, varies=_supervisor),
    MsrRow(at(Msr.PL0_SSP, Msr.PL1_SSP, Msr.PL2_SSP, Msr.PL3_SSP), f"{_SET}; kvm_xstate_reset", fresh=0,
           values=Canonical(2), varies=_pointer),
    MsrRow(at(Msr.INT_SSP_TAB), f"{_SET}; vmx/vmx.c, vmx_vcpu_reset", fresh=0, values=Canonical(),
           varies=_pointers),
    MsrRow(at(0xD90), "arch/x86/kvm/vmx/vmx.c, vmx_set_msr, vmx_vcpu_reset: BNDCFGS", fresh=0,
           values=Of(0x7654_3210_F003, 1, 2, 0), refused=[Refusal(4), Refusal(0x800), Refusal(_TOP)],
           varies=lambda vcpu: {} if has(vcpu, "MPX") else only_0()),
    MsrRow(at(0x570), "arch/x86/kvm/vmx/vmx.c, vmx_rtit_ctl_check: RTIT_CTL", fresh=0,
           values=Untold("which bits it has says CPUID leaf 14H, and tracing ends every other MSR's writes"),
           refused=[Refusal(_TOP)], init=After.KEPT, runs=False, rdmsr=Untold("it is the CPU's with PT"),
           wrmsr=Untold("it traces")),
    MsrRow(at(0x571), "arch/x86/kvm/vmx/vmx.c, vmx_set_msr: RTIT_STATUS", fresh=0, values=Of(0),
           refused=[Refusal(_TOP)], init=After.KEPT, runs=False),
    MsrRow(at(0x572), "arch/x86/kvm/vmx/vmx.c, vmx_set_msr: RTIT_CR3_MATCH", fresh=0,
           values=Free(0x7FFF_FFE0), init=After.KEPT, runs=False),
    MsrRow(at(0x560), "arch/x86/kvm/vmx/vmx.c, pt_output_base_valid: RTIT_OUTPUT_BASE", fresh=0,
           values=Free(0x7FFF_FF80), refused=[Refusal(1), Refusal(_TOP)], init=After.KEPT, runs=False),
    MsrRow(at(0x561), "arch/x86/kvm/vmx/vmx.c, init_vmcs: RTIT_OUTPUT_MASK_PTRS", fresh=0x7F,
           values=Free(0xFFFF_FF80, 0x7F), init=After.KEPT, runs=False),
    MsrRow(at(*range(0x580, 0x588)), "arch/x86/kvm/vmx/vmx.c, vmx_set_msr: RTIT_ADDRn_A, _B", fresh=0,
           values=Canonical(), init=After.KEPT, runs=False, varies=far),
)  # fmt: skip

ONE_REG_ROWS = (
    Row("GUEST_SSP", f"{_SET}: MSR_KVM_INTERNAL_GUEST_SSP; kvm_translate_kvm_reg", fresh=0, values=Canonical(2),
        runs=False, varies=lambda vcpu: {
            "refused": [Refusal(refusal.value, errno.EINVAL) for refusal in (*_MISALIGNED, *not_canonical(vcpu))],
            "init": _KEPT_BY_AMD if amd(vcpu) else After.FRESH}),
)  # fmt: skip
