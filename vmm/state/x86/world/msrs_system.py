# SPDX-License-Identifier: Apache-2.0
"""The rows of MSRs of the CPU itself: system calls, memory types, speculation, debugging, machine checks, time.

INIT leaves most of them alone: arch/x86/kvm/x86.c, kvm_vcpu_reset resets them if it is not ``init_event`` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmm.kvm.vcpu import Vcpu
from vmm.state.world.row import After, Canonical, Free, Of, OneOf, Refusal, Untold
from vmm.state.x86.world.msr_row import ALL, Guest, MsrRow, amd, at, cpuid, feature, has, needs, only_0, unknown
from vmm.x86.msr_names import Msr

__all__ = ["ROWS", "far", "not_canonical"]

_SET = "arch/x86/kvm/x86.c, kvm_set_msr_common, kvm_get_msr_common"
_BOTH = "arch/x86/kvm/vmx/vmx.c, vmx_set_msr; svm/svm.c, svm_set_msr"
_RESET = "arch/x86/kvm/x86.c, kvm_vcpu_reset"
_32 = 0xFFFF_FFFF
_TOP = 1 << 63
_TSC_RATIO = 1 << 32
_CPUID_FAULT = 1 << 31
_NO_BTS_NO_PEBS = 0x1800
_TSX_CTRL_MSR = 1 << 7
_BUS_LOCK, _RTM_DEBUG = 1 << 2, 1 << 15


def not_canonical(vcpu: Vcpu) -> list[Refusal]:
    """Addresses that no CPU has: with 57 bits, and with 48 where that is all there is."""
    return [Refusal(_TOP), Refusal(1 << 56)] + ([] if has(vcpu, "LA57") else [Refusal(1 << 47)])


def far(vcpu: Vcpu) -> Mapping[str, Any]:
    """What a row says of an MSR that is an address."""
    return {"refused": not_canonical(vcpu)}


def _sysenter(vcpu: Vcpu) -> Mapping[str, Any]:
    return {"values": Free(_32)} if amd(vcpu) else {"values": Canonical()}


def _aux(vcpu: Vcpu) -> Mapping[str, Any]:
    high = 1 << 32 | 5
    decided: dict[str, Any] = {"masked": [(high, 5)]} if amd(vcpu) else {"refused": [Refusal(high), Refusal(_TOP)]}
    return decided | needs(vcpu, "RDTSCP", "RDPID")


def _feature_control(vcpu: Vcpu) -> Mapping[str, Any]:
    if amd(vcpu):
        return only_0()
    if has(vcpu, "VMX"):
        return {}
    return {"values": Of(1, 0), "wrmsr": Untold("its only bit locks it"), "masked": []}


def _speculation(vcpu: Vcpu) -> Mapping[str, Any]:
    groups = ("SPEC_CTRL", "AMD_IBRS"), ("INTEL_STIBP", "AMD_STIBP"), ("SPEC_CTRL_SSBD", "AMD_SSBD")
    bits = [1 << number for number, names in enumerate(groups) if has(vcpu, *names)]
    decided: dict[str, Any] = {"values": Of(*bits, sum(bits), 0)}
    if amd(vcpu):
        decided["init"] = Untold("a CPU that virtualizes it has it in the VMCB, which INIT leaves as it is")
    return decided if bits else decided | {"rdmsr": Guest.FAULT, "wrmsr": Guest.FAULT}


def _tsx(vcpu: Vcpu) -> Mapping[str, Any]:
    if amd(vcpu):
        return only_0()
    there = bool(feature(Msr.ARCH_CAPABILITIES) & _TSX_CTRL_MSR)
    return {} if there else {
        "values": Untold("the CPU has no such MSR, and whether KVM keeps one is its own affair"), "refused": [],
        "rdmsr": Guest.FAULT, "wrmsr": Guest.FAULT,
    }  # fmt: skip


def _xss(vcpu: Vcpu) -> Mapping[str, Any]:
    offered = cpuid(vcpu).xss
    if not has(vcpu, "XSAVES"):
        return {"values": Of(0), "refused": unknown(1), "rdmsr": Guest.FAULT, "wrmsr": Guest.UNKNOWN}
    missing = next(1 << bit for bit in range(64) if not offered >> bit & 1)
    return {"values": Of(offered, offered & -offered, 0), "refused": [Refusal(missing), Refusal(_TOP)]}


def _debugctl(vcpu: Vcpu) -> Mapping[str, Any]:
    if amd(vcpu):
        if not has(vcpu, "LBRV"):
            why = "whether KVM virtualizes last branches shows in a nested guest's CPUID only"
            return {"values": Untold(why), "wrmsr": Untold(why), "masked": [(0, 0)]}
        return {"values": Of(1, 0), "refused": [Refusal(1 << 16), Refusal(_TOP)], "wrmsr": Untold("it records")}
    bits = [bit for bit, name in ((_BUS_LOCK, "BUS_LOCK_DETECT"), (_RTM_DEBUG, "RTM")) if has(vcpu, name)]
    return {"values": Of(*bits, sum(bits), 0), "refused": [Refusal(_TOP), Refusal(1 << 16)], "wrmsr": Guest.SAME}


def _branches(vcpu: Vcpu) -> Mapping[str, Any]:
    if not amd(vcpu):
        return only_0() | {"rdmsr": Guest.SAME}
    if has(vcpu, "LBRV"):
        return {"values": Free(ALL), "wrmsr": Guest.FAULT}
    return {"wrmsr": Untold("whether KVM virtualizes last branches shows in a nested guest's CPUID only")}


def _adjust(vcpu: Vcpu) -> Mapping[str, Any]:
    return {} if has(vcpu, "TSC_ADJUST") else {"values": None, "masked": [(5, 0)], "wrmsr": Guest.NOTHING}


def _ratio(vcpu: Vcpu) -> Mapping[str, Any]:
    if has(vcpu, "TSCRATEMSR"):
        return {"values": Free((1 << 40) - 1), "refused": [Refusal(1 << 40), Refusal(_TOP)]}
    either = OneOf((_TSC_RATIO, 1), "KVM has the ratio of a CPU that has none as a number of no bits")
    return {"fresh": either, "masked": [(0, either)], "rdmsr": Guest.FAULT, "wrmsr": Guest.FAULT}


def _hsave(vcpu: Vcpu) -> Mapping[str, Any]:
    if amd(vcpu):
        return {"values": Free(0x7FFF_F000), "masked": [(0x1234_5678, 0x1234_5000)]}
    return {"masked": [(0x1234_5000, 0)], "wrmsr": Guest.NOTHING}


ROWS = (
    MsrRow(at(Msr.SYSENTER_CS), f"{_BOTH}; VMX has 32 bits of it; Intel SDM volume 4: a selector", fresh=0,
           values=Free(_32), wrmsr_values=Free(0xFFFF), init=After.KEPT),
    MsrRow(at(Msr.SYSENTER_ESP, Msr.SYSENTER_EIP),
           "arch/x86/kvm/x86.c, __kvm_set_msr: cut to a canonical address; svm/svm.c, svm_get_msr: 32 bits",
           fresh=0, values=Free(_32), init=After.KEPT, masked=[(_TOP | 0x123, 0x123)], varies=_sysenter),
    MsrRow(at(Msr.STAR), f"{_BOTH}; vmx.c, vmx_uret_msrs_list", fresh=0, values=Free(ALL), init=After.KEPT),
    MsrRow(at(Msr.SYSCALL_MASK), f"{_BOTH}; Intel SDM volume 4, IA32_FMASK: 32 bits", fresh=0, values=Free(_32),
           init=After.KEPT),
    MsrRow(at(Msr.LSTAR, Msr.CSTAR, Msr.KERNEL_GS_BASE), f"arch/x86/kvm/x86.c, __kvm_set_msr; {_BOTH}", fresh=0,
           values=Canonical(), init=After.KEPT, varies=far),
    MsrRow(at(Msr.PAT), f"{_RESET}; kvm_pat_valid; Intel SDM volume 3, 13.12", fresh=0x0007_0406_0007_0406,
           values=Of(0x0606_0606_0606_0606, 0x0001_0405_0607_0406, 0x0706_0504_0100_0706, 0x0007_0406_0007_0406),
           refused=[Refusal(2), Refusal(0x0300_0000_0000_0006), Refusal(0x0007_0406_0807_0406), Refusal(_TOP)],
           init=After.KEPT),
    MsrRow(at(Msr.TSC_AUX), "arch/x86/kvm/x86.c, __kvm_set_msr", fresh=0, values=Free(_32), init=After.KEPT,
           varies=_aux),
    MsrRow(at(Msr.TSC_ADJUST), f"{_SET}: the host's write moves no TSC", fresh=0, values=Free(ALL), init=After.KEPT,
           varies=_adjust),
    MsrRow(at(0xC000_0104), "arch/x86/kvm/svm/svm.c, svm_set_msr, __svm_vcpu_reset: AMD64_TSC_RATIO",
           fresh=_TSC_RATIO, values=None, init=After.KEPT, varies=_ratio, when=lambda vcpu: "" if amd(vcpu) else
           "this vCPU is not AMD's"),
    MsrRow(at(Msr.FEATURE_CONTROL), "arch/x86/kvm/vmx/vmx.c, is_vmx_feature_control_msr_valid", fresh=0,
           values=Of(4, 2, 6, 0), masked=[(5, 5), (0, 0)], refused=[Refusal(1 << 3), Refusal(_TOP)], init=After.KEPT,
           varies=_feature_control),
    MsrRow(at(Msr.SPEC_CTRL), f"{_BOTH}, vmx_vcpu_reset, svm_vcpu_reset; the CPU decides what is legal", fresh=0,
           values=None, varies=_speculation),
    MsrRow(at(0x122), "arch/x86/kvm/vmx/vmx.c, vmx_set_msr, vmx_vcpu_after_set_cpuid: TSX_CTRL",
           fresh=OneOf((0, 2), "RTM is disabled where the guest's CPUID lacks what the CPU has"),
           values=Of(1, 2, 3, 0), refused=[Refusal(4), Refusal(_TOP)], init=After.KEPT, varies=_tsx),
    MsrRow(at(0xC001_011F), "arch/x86/kvm/svm/svm.c, svm_set_msr, svm_vcpu_reset: VIRT_SPEC_CTRL", fresh=0,
           values=Of(4, 0), refused=[Refusal(1), Refusal(_TOP)], varies=lambda vcpu: needs(vcpu, "VIRT_SSBD")),
    MsrRow(at(Msr.UMWAIT_CONTROL), "arch/x86/kvm/vmx/vmx.c, vmx_set_msr, vmx_vcpu_reset", fresh=0,
           values=Free(_32 & ~2), refused=[Refusal(2), Refusal(1 << 32), Refusal(_TOP)],
           varies=lambda vcpu: only_0() if amd(vcpu) else needs(vcpu, "WAITPKG")),
    MsrRow(at(Msr.XSS), f"{_SET}; {_RESET}; cpuid.c, cpuid_get_supported_xss", fresh=0, values=None, init=After.KEPT,
           varies=_xss),
    MsrRow(at(0x1D9), f"{_BOTH}, vmx_is_valid_debugctl: DEBUGCTL", fresh=0, values=None, init=After.KEPT,
           runs=False, varies=_debugctl),
    MsrRow(at(0x1DB, 0x1DC, 0x1DD, 0x1DE), f"arch/x86/kvm/svm/svm.c, svm_set_msr (lbrv); {_SET}: last branches",
           fresh=0, values=Of(0), init=After.KEPT, varies=_branches),
    MsrRow(at(Msr.MISC_ENABLE), f"{_SET}; {_RESET}", fresh=_NO_BTS_NO_PEBS, values=Free(ALL), init=After.KEPT,
           wrmsr_values=Of(_NO_BTS_NO_PEBS | 1, _NO_BTS_NO_PEBS | 1 << 34, _NO_BTS_NO_PEBS)),
    MsrRow(at(0x1FC), f"{_SET}: POWER_CTL", fresh=0, values=Free(ALL), init=After.KEPT),
    MsrRow(at(0xC001_0015), f"{_SET}: HWCR (from Linux 6.7 on with TscFreqSel)", fresh=0, values=Of(1 << 18, 0),
           masked=[(1 << 18 | 0x148, 1 << 18)], refused=[Refusal(1), Refusal(1 << 4), Refusal(_TOP)],
           init=After.KEPT),
    MsrRow(at(Msr.MCG_STATUS), "arch/x86/kvm/x86.c, set_msr_mce", fresh=0, values=Free(ALL), init=After.KEPT),
    MsrRow(at(Msr.MCG_CTL), "arch/x86/kvm/x86.c, set_msr_mce: without MCG_CTL_P, which KVM_X86_SETUP_MCE gives",
           fresh=0, values=Of(0), refused=[Refusal(1), Refusal(ALL)], init=After.KEPT, rdmsr=Guest.FAULT,
           wrmsr=Guest.FAULT),
    MsrRow(at(0x4D0), "arch/x86/kvm/vmx/vmx.c, vmx_set_msr: MCG_EXT_CTL", fresh=0, values=Of(1, 0),
           refused=[Refusal(2), Refusal(_TOP)], init=After.KEPT, rdmsr=Guest.FAULT, wrmsr=Guest.FAULT,
           varies=lambda vcpu: only_0() if amd(vcpu) else {}),
    MsrRow(at(Msr.SMBASE), f"{_SET}; {_RESET}", fresh=0x3_0000, values=Free(ALL), init=After.KEPT,
           rdmsr=Guest.FAULT, wrmsr=Guest.FAULT),
    MsrRow(at(Msr.SMI_COUNT), f"{_SET}; {_RESET}", fresh=0, values=Free(ALL), wrmsr=Guest.FAULT),
    MsrRow(at(Msr.MISC_FEATURES_ENABLES), f"{_SET}; {_RESET}", fresh=0, values=Of(1, 0), init=After.KEPT,
           runs=False, refused=[Refusal(2), Refusal(_TOP)]),
    MsrRow(at(0xC001_0117), f"arch/x86/kvm/svm/svm.c, svm_set_msr; {_SET}: VM_HSAVE_PA", fresh=0, values=None,
           init=After.KEPT, varies=_hsave),
)  # fmt: skip
