# SPDX-License-Identifier: Apache-2.0
"""The rows of feature MSRs: what the CPU has, its microcode, what VMX may. A VMM chooses them before a vCPU runs.

What KVM supports of each is what /dev/kvm gives (KVM_GET_MSRS); a vCPU has it until its VMM writes less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vmm.kvm.vcpu import Vcpu
from vmm.state.world.row import After, Free, Of, OneOf, Refusal, Untold
from vmm.state.x86.world.msr_row import ALL, INTEL, Guest, MsrRow, amd, at, feature, has
from vmm.x86.msr_names import Msr

__all__ = ["ROWS"]

_COMMON = "arch/x86/kvm/x86.c, kvm_set_msr_common, kvm_arch_vcpu_create, kvm_is_immutable_feature_msr"
_VMX = "arch/x86/kvm/vmx/nested.c, vmx_set_vmx_msr"
_TOP = 1 << 63
_CPUID_FAULT = 1 << 31
_TSX_CTRL_MSR = 1 << 7
_UCODE_INTEL, _UCODE_AMD = 0x1_0000_0000, 0x0100_0065
_FIRMWARE_WRITES = 1 << 13
_LOW, _HIGH = range(32), range(32, 64)
_BASIC, _PROCBASED2, _EPT_VPID, _VMFUNC, _MISC = 0x480, 0x48B, 0x48C, 0x491, 0x485
_CONTROLS = (0x48D, 0x48E, 0x48F, 0x490)
# PIN_BASED..., CPU_BASED...: what may be written are the "true" ones. CR0_FIXED1 and CR4_FIXED1 follow CPUID.
_OF_OTHERS = (0x481, 0x482, 0x483, 0x484, 0x487, 0x489)


def _lowest(value: int, bits: range, *, wanted: int) -> int:
    """Return the lowest of these bits that a value has (1) or lacks (0); 0 if there is none."""
    return next((1 << bit for bit in bits if value >> bit & 1 == wanted), 0)


def _highest(value: int, bits: range) -> int:
    return next((1 << bit for bit in reversed(bits) if value >> bit & 1), 0)


def _capabilities(vcpu: Vcpu) -> Mapping[str, Any]:
    value = feature(Msr.ARCH_CAPABILITIES)
    if has(vcpu, "ARCH_CAPABILITIES"):
        kept = value & _TSX_CTRL_MSR  # it decides whether the guest has TSX_CTRL
        return {"fresh": value, "values": Free(ALL & ~_TSX_CTRL_MSR, kept)}
    return {
        "fresh": OneOf((0, value), "from Linux 6.15 on a vCPU whose CPUID lacks it reads as 0"),
        "values": Of(0), "rdmsr": Guest.UNKNOWN,
    }  # fmt: skip


def _monitoring(vcpu: Vcpu) -> Mapping[str, Any]:
    value = feature(0x345)
    if has(vcpu, "PDCM"):
        return {"fresh": value, "values": Of(0, value & _FIRMWARE_WRITES)}
    return {
        "fresh": OneOf((0, value), "from Linux 6.15 on a vCPU whose CPUID lacks it reads as 0"),
        "values": Of(0), "refused": [], "rdmsr": Guest.UNKNOWN,
    }  # fmt: skip


def _basic(vcpu: Vcpu) -> Mapping[str, Any]:
    value = feature(_BASIC)
    wrong = (value ^ 1, value | 1 << 48, value | 1 << 31, value | 1 << 45, value | _TOP)
    return {
        "fresh": value, "values": Of(value & ~(1 << 55), value & ~(1 << 54), value),
        "refused": [Refusal(one) for one in wrong],
    }  # fmt: skip


def _control(index: int, vcpu: Vcpu) -> Mapping[str, Any]:
    """Bits 31:0 must be 1, bits 63:32 may be 1: a VMM may make more of the former and fewer of the latter."""
    value = feature(index)
    more = value | _lowest(value, _LOW, wanted=0)
    fewer = value & ~_highest(value, _HIGH)
    wrong = [value & ~bit for bit in (_lowest(value, _LOW, wanted=1),) if bit]
    wrong += [value | bit for bit in (_lowest(value, _HIGH, wanted=0),) if bit]
    return {"values": Of(fewer, more, value), "refused": [Refusal(one) for one in wrong]}


def _exact(index: int, vcpu: Vcpu) -> Mapping[str, Any]:
    return {"fresh": feature(index), **_control(index, vcpu)}


def _miscellaneous(vcpu: Vcpu) -> Mapping[str, Any]:
    value = feature(_MISC)
    wrong = (value | 1 << 9, value | 1 << 31, value ^ 1 << 32, value + (1 << 16), value + (1 << 25))
    return {
        "fresh": value, "values": Of(value & ~(1 << 6), value & ~(1 << 29), value),
        "refused": [Refusal(one) for one in wrong],
    }  # fmt: skip


def _fixed(index: int, vcpu: Vcpu) -> Mapping[str, Any]:
    value = feature(index)
    return {
        "fresh": value, "values": Of(value | 1 << 16, value | 1 << 5 | 1 << 18, value),
        "refused": [Refusal(value & ~_highest(value, _LOW)), Refusal(value & ~_lowest(value, _LOW, wanted=1))],
    }  # fmt: skip


def _subset(index: int, vcpu: Vcpu) -> Mapping[str, Any]:
    value = feature(index)
    every = range(64)
    fewer = (value & ~_highest(value, every), value & ~_lowest(value, every, wanted=1))
    return {
        "fresh": value, "values": Of(*fewer, value, 0),
        "refused": [Refusal(value | _lowest(value, every, wanted=0)), Refusal(value | _TOP)],
    }  # fmt: skip


def _known(index: int, vcpu: Vcpu) -> Mapping[str, Any]:
    return {"fresh": feature(index)}


def _vmx(index: int, what: str, varies: Callable[[int, Vcpu], Mapping[str, Any]] | None, **more: Any) -> MsrRow:
    def absent(vcpu: Vcpu) -> str:
        return INTEL(vcpu) or ("" if has(vcpu, "VMX") else "KVM offers no nested VMX")

    return MsrRow(
        at(index), f"{_VMX}: {what}", **{"fresh": None, "values": None} | more, init=After.KEPT, runs=False,
        frozen=True, wrmsr=Guest.FAULT, when=absent, varies=partial(varies, index) if varies else None,
    )  # fmt: skip


_BY_CPUID = Untold("KVM takes bits away that go with features which the vCPU's CPUID lacks")

ROWS = (
    MsrRow(at(Msr.ARCH_CAPABILITIES), _COMMON, fresh=None, values=None, init=After.KEPT, runs=False, frozen=True,
           wrmsr=Guest.UNKNOWN, varies=_capabilities),
    # Every change resets the counters: arch/x86/kvm/pmu.c, kvm_pmu_refresh. So it is written by itself.
    MsrRow(at(0x345), f"{_COMMON}; vmx/vmx.c, vmx_set_msr: PERF_CAPABILITIES", fresh=None, values=None,
           init=After.KEPT, runs=False, frozen=True, alone=True, refused=[Refusal(_TOP)], wrmsr=Guest.UNKNOWN,
           varies=_monitoring),
    MsrRow(at(Msr.PLATFORM_INFO), f"{_COMMON}; the guest's CPUID faults at CPL3 only with bit 31",
           fresh=_CPUID_FAULT, values=Free(ALL & ~_CPUID_FAULT, _CPUID_FAULT), masked=[(0, 0)], init=After.KEPT,
           runs=False, frozen=True, wrmsr=Guest.FAULT),
    MsrRow(at(Msr.UCODE_REV), f"{_COMMON}; vmx/vmx.c, __vmx_vcpu_reset; svm/svm.c, __svm_vcpu_reset",
           fresh=lambda vcpu: _UCODE_AMD if amd(vcpu) else _UCODE_INTEL, values=Free(ALL), init=After.KEPT,
           wrmsr=Guest.NOTHING),
    _vmx(_BASIC, "VMX_BASIC", lambda index, vcpu: _basic(vcpu)),
    _vmx(_MISC, "VMX_MISC", lambda index, vcpu: _miscellaneous(vcpu)),
    *(_vmx(index, "VMX_TRUE_PINBASED_CTLS, VMX_TRUE_PROCBASED_CTLS", _exact) for index in _CONTROLS[:2]),
    *(_vmx(index, "VMX_TRUE_EXIT_CTLS, VMX_TRUE_ENTRY_CTLS", _control, fresh=_BY_CPUID) for index in _CONTROLS[2:]),
    _vmx(_PROCBASED2, "VMX_PROCBASED_CTLS2", _control, fresh=_BY_CPUID),
    *(_vmx(index, "VMX_CR0_FIXED0, VMX_CR4_FIXED0", _fixed) for index in (0x486, 0x488)),
    _vmx(0x48A, "VMX_VMCS_ENUM", _known, values=Free(ALL)),
    _vmx(_EPT_VPID, "VMX_EPT_VPID_CAP", _subset),
    _vmx(_VMFUNC, "VMX_VMFUNC", _subset),
    *(_vmx(index, "those of which KVM makes others, or which follow CPUID", None, refused=[Refusal(0), Refusal(ALL)])
      for index in _OF_OTHERS),
)  # fmt: skip
