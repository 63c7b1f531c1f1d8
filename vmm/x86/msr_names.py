# SPDX-License-Identifier: Apache-2.0
"""The MSRs by name, and the CPUID features that bring them to a guest.

Source: Intel SDM volume 4; arch/x86/include/asm/msr-index.h; arch/x86/kvm/x86.c, msrs_to_save_base,
msrs_to_save_pmu, emulated_msrs_all, kvm_probe_msr_to_save; Hyper-V TLFS; Documentation/virt/kvm/x86/msr.rst.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache

__all__ = ["KNOWN", "NAMED", "NOBODY", "STATELESS", "Msr", "gate", "name", "saved_name"]


class Msr(IntEnum):
    """The MSRs this package uses. A member is called as in saved states: its name without IA32_.

    Source: Intel SDM volume 4; Hyper-V TLFS for HV_*; Documentation/virt/kvm/x86/msr.rst for KVM_*.
    """

    TSC = 0x10
    KVM_WALL_CLOCK = 0x11
    KVM_SYSTEM_TIME = 0x12
    APIC_BASE = 0x1B
    SMI_COUNT = 0x34
    FEATURE_CONTROL = 0x3A
    TSC_ADJUST = 0x3B
    SPEC_CTRL = 0x48
    UCODE_REV = 0x8B
    SMBASE = 0x9E
    PLATFORM_INFO = 0xCE
    UMWAIT_CONTROL = 0xE1
    MTRRCAP = 0xFE
    ARCH_CAPABILITIES = 0x10A
    MISC_FEATURES_ENABLES = 0x140
    SYSENTER_CS = 0x174
    SYSENTER_ESP = 0x175
    SYSENTER_EIP = 0x176
    MCG_STATUS = 0x17A
    MCG_CTL = 0x17B
    MISC_ENABLE = 0x1A0
    XFD = 0x1C4
    XFD_ERR = 0x1C5
    PAT = 0x277
    MTRR_DEF_TYPE = 0x2FF
    U_CET = 0x6A0
    S_CET = 0x6A2
    PL0_SSP = 0x6A4
    PL1_SSP = 0x6A5
    PL2_SSP = 0x6A6
    PL3_SSP = 0x6A7
    INT_SSP_TAB = 0x6A8
    TSC_DEADLINE = 0x6E0
    XSS = 0xDA0
    HV_VP_RUNTIME = 0x40000010
    HV_TIME_REF_COUNT = 0x40000020
    KVM_WALL_CLOCK_NEW = 0x4B564D00
    KVM_SYSTEM_TIME_NEW = 0x4B564D01
    KVM_ASYNC_PF_EN = 0x4B564D02
    KVM_STEAL_TIME = 0x4B564D03
    KVM_PV_EOI_EN = 0x4B564D04
    KVM_POLL_CONTROL = 0x4B564D05
    KVM_ASYNC_PF_INT = 0x4B564D06
    EFER = 0xC0000080
    STAR = 0xC0000081
    LSTAR = 0xC0000082
    CSTAR = 0xC0000083
    SYSCALL_MASK = 0xC0000084
    FS_BASE = 0xC0000100
    GS_BASE = 0xC0000101
    KERNEL_GS_BASE = 0xC0000102
    TSC_AUX = 0xC0000103


_MEMBERS = frozenset(Msr)

# A feature that KVM_GET_SUPPORTED_CPUID never has: a VMM adds it by leaves of its own.
NOBODY = "Hyper-V enlightenments"
_HYPERV = (NOBODY,)
_PMU = ("ARCH_PERFMON",)
_CET = ("SHSTK", "IBT")

# First index: (names of consecutive MSRs, the CPUID features of which one brings them; none: every guest has them).
_RANGES: dict[int, tuple[str, tuple[str, ...]]] = {
    0x10: ("IA32_TSC", ()),
    0x34: ("SMI_COUNT", ("SMM",)),
    0x3A: ("IA32_FEATURE_CONTROL", ("VMX", "SMX", "SGX")),
    0x3B: ("IA32_TSC_ADJUST", ("TSC_ADJUST",)),
    0x48: ("IA32_SPEC_CTRL", ("SPEC_CTRL", "SPEC_CTRL_SSBD", "AMD_IBRS", "AMD_STIBP", "AMD_SSBD", "INTEL_STIBP")),
    0x8B: ("IA32_UCODE_REV", ()),
    0x9E: ("IA32_SMBASE", ("SMM",)),
    0xC1: (" ".join(f"IA32_PMC{n}" for n in range(13)), _PMU),
    0xCE: ("PLATFORM_INFO", ()),
    0xE1: ("IA32_UMWAIT_CONTROL", ("WAITPKG",)),
    0x10A: ("IA32_ARCH_CAPABILITIES", ("ARCH_CAPABILITIES",)),
    0x122: ("IA32_TSX_CTRL", ("TSX_CTRL",)),
    0x140: ("MISC_FEATURES_ENABLES", ()),
    0x174: ("IA32_SYSENTER_CS IA32_SYSENTER_ESP IA32_SYSENTER_EIP", ()),
    0x17A: ("IA32_MCG_STATUS IA32_MCG_CTL", ()),
    0x186: (" ".join(f"IA32_PERFEVTSEL{n}" for n in range(18)), _PMU),
    0x1A0: ("IA32_MISC_ENABLE", ()),
    0x1C4: ("IA32_XFD IA32_XFD_ERR", ("XFD",)),
    0x1D9: ("IA32_DEBUGCTL", ()),
    0x1DB: ("LASTBRANCHFROMIP LASTBRANCHTOIP LASTINTFROMIP LASTINTTOIP", ("LBRV",)),
    0x1FC: ("IA32_POWER_CTL", ()),
    0x277: ("IA32_PAT", ()),
    0x309: ("IA32_FIXED_CTR0 IA32_FIXED_CTR1 IA32_FIXED_CTR2", _PMU),
    0x345: ("IA32_PERF_CAPABILITIES", ("PDCM",)),
    0x38D: ("IA32_FIXED_CTR_CTRL IA32_PERF_GLOBAL_STATUS IA32_PERF_GLOBAL_CTRL IA32_PERF_GLOBAL_OVF_CTRL", _PMU),
    0x3F1: ("IA32_PEBS_ENABLE MSR_PEBS_DATA_CFG", ("DS",)),
    0x480: (
        "IA32_VMX_BASIC IA32_VMX_PINBASED_CTLS IA32_VMX_PROCBASED_CTLS IA32_VMX_EXIT_CTLS IA32_VMX_ENTRY_CTLS "
        "IA32_VMX_MISC IA32_VMX_CR0_FIXED0 IA32_VMX_CR0_FIXED1 IA32_VMX_CR4_FIXED0 IA32_VMX_CR4_FIXED1 "
        "IA32_VMX_VMCS_ENUM IA32_VMX_PROCBASED_CTLS2 IA32_VMX_EPT_VPID_CAP IA32_VMX_TRUE_PINBASED_CTLS "
        "IA32_VMX_TRUE_PROCBASED_CTLS IA32_VMX_TRUE_EXIT_CTLS IA32_VMX_TRUE_ENTRY_CTLS IA32_VMX_VMFUNC",
        ("VMX",),
    ),
    0x4D0: ("IA32_MCG_EXT_CTL", ()),
    0x570: ("IA32_RTIT_CTL IA32_RTIT_STATUS IA32_RTIT_CR3_MATCH", ("INTEL_PT",)),
    0x560: ("IA32_RTIT_OUTPUT_BASE IA32_RTIT_OUTPUT_MASK", ("INTEL_PT",)),
    0x580: (" ".join(f"IA32_RTIT_ADDR{n}_{end}" for n in range(4) for end in "AB"), ("INTEL_PT",)),
    0x600: ("IA32_DS_AREA", ("DS",)),
    0x6A0: ("IA32_U_CET", _CET),
    0x6A2: ("IA32_S_CET", _CET),
    0x6A4: ("IA32_PL0_SSP IA32_PL1_SSP IA32_PL2_SSP IA32_PL3_SSP IA32_INT_SSP_TAB", ("SHSTK",)),
    0x6E0: ("IA32_TSC_DEADLINE", ("TSC_DEADLINE",)),
    0xD90: ("IA32_BNDCFGS", ("MPX",)),
    0xDA0: ("IA32_XSS", ("XSAVES",)),
    0x11: ("KVM_WALL_CLOCK KVM_SYSTEM_TIME", ("KVM_CLOCKSOURCE",)),
    0x40000000: ("HV_GUEST_OS_ID HV_HYPERCALL HV_VP_INDEX HV_RESET", _HYPERV),
    0x40000010: ("HV_VP_RUNTIME", _HYPERV),
    0x40000020: ("HV_TIME_REF_COUNT HV_REFERENCE_TSC HV_TSC_FREQUENCY HV_APIC_FREQUENCY", _HYPERV),
    0x40000073: ("HV_VP_ASSIST_PAGE", _HYPERV),
    0x40000080: ("HV_SCONTROL", _HYPERV),
    0x400000B0: ("HV_STIMER0_CONFIG", _HYPERV),
    0x400000F1: (
        "HV_SYNDBG_CONTROL HV_SYNDBG_STATUS HV_SYNDBG_SEND_BUFFER HV_SYNDBG_RECV_BUFFER HV_SYNDBG_PENDING_BUFFER",
        _HYPERV,
    ),
    0x400000FF: ("HV_SYNDBG_OPTIONS", _HYPERV),
    0x40000100: ("HV_CRASH_P0 HV_CRASH_P1 HV_CRASH_P2 HV_CRASH_P3 HV_CRASH_P4 HV_CRASH_CTL", _HYPERV),
    0x40000106: ("HV_REENLIGHTENMENT_CONTROL HV_TSC_EMULATION_CONTROL HV_TSC_EMULATION_STATUS", _HYPERV),
    0x40000118: ("HV_TSC_INVARIANT_CONTROL", _HYPERV),
    0x4B564D00: ("KVM_WALL_CLOCK_NEW KVM_SYSTEM_TIME_NEW", ("KVM_CLOCKSOURCE2",)),
    0x4B564D02: ("KVM_ASYNC_PF_EN", ("KVM_ASYNC_PF",)),
    0x4B564D03: ("KVM_STEAL_TIME", ("KVM_STEAL_TIME",)),
    0x4B564D04: ("KVM_PV_EOI_EN", ("KVM_PV_EOI",)),
    0x4B564D05: ("KVM_POLL_CONTROL", ("KVM_POLL_CONTROL",)),
    0x4B564D06: ("KVM_ASYNC_PF_INT KVM_ASYNC_PF_ACK", ("KVM_ASYNC_PF_INT",)),
    0xC0000080: ("EFER STAR LSTAR CSTAR SYSCALL_MASK", ()),
    0xC0000100: ("FS_BASE GS_BASE KERNEL_GS_BASE", ()),
    0xC0000103: ("TSC_AUX", ("RDTSCP", "RDPID")),
    0xC0000104: ("AMD64_TSC_RATIO", ("TSCRATEMSR",)),
    0xC0000300: (
        "PERF_CNTR_GLOBAL_STATUS PERF_CNTR_GLOBAL_CTL PERF_CNTR_GLOBAL_STATUS_CLR PERF_CNTR_GLOBAL_STATUS_SET",
        ("PERFMON_V2",),
    ),
    0xC0010000: (" ".join(f"K7_{kind}{n}" for kind in ("EVNTSEL", "PERFCTR") for n in range(4)), ()),
    0xC0010015: ("K7_HWCR", ()),
    0xC0010117: ("VM_HSAVE_PA", ("SVM",)),
    0xC001011F: ("AMD64_VIRT_SPEC_CTRL", ("VIRT_SSBD",)),
    0xC0010200: (" ".join(f"F15H_PERF_{kind}{n}" for n in range(6) for kind in ("CTL", "CTR")), ("PERFCTR_CORE",)),
    0xC0011029: ("AMD64_DE_CFG", ()),
}  # fmt: skip
_KNOWN = {
    first + offset: (spelled, features)
    for first, (names, features) in _RANGES.items()
    for offset, spelled in enumerate(names.split())
}
KNOWN = frozenset(_KNOWN)
# Those that KVM leaves out of its list of MSRs to save, or that are part of another structure too.
_UNLISTED = {0x1B: "IA32_APIC_BASE", 0xFE: "IA32_MTRRCAP", 0x2FF: "IA32_MTRR_DEF_TYPE"}
NAMED = KNOWN | _UNLISTED.keys()
# What is written acts at once, and nothing is kept: IA32_PERF_GLOBAL_OVF_CTRL and AMD's two. Linux 6.1 lists them.
STATELESS = frozenset({0x390, 0xC0000302, 0xC0000303})


def name(index: int) -> str:
    """Return an MSR's name, such as IA32_XFD; ``MSR 0x1c4`` where it has none here."""
    return _KNOWN[index][0] if index in _KNOWN else _UNLISTED.get(index, f"MSR {index:#x}")


@cache
def saved_name(index: int) -> str:
    """Return an MSR's name in a saved state and for ``--tolerate``, such as XFD; its number if format 1 has none."""
    return Msr(index).name if index in _MEMBERS else f"{index:#x}"


def gate(index: int) -> tuple[str, ...]:
    """Return the CPUID features of which a guest needs one to have this MSR; none if every guest has it."""
    return _KNOWN[index][1] if index in _KNOWN else ()
