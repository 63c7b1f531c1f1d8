# SPDX-License-Identifier: Apache-2.0
"""How two hosts' CPUID leaves compare: which registers are feature bits, which are numbers, which say nothing.

Source: Intel SDM volume 2, instruction CPUID; AMD APM volume 3, appendix E; arch/x86/kvm/cpuid.c,
kvm_set_cpu_caps and __do_cpuid_func, for what KVM offers; arch/x86/include/uapi/asm/kvm_para.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm.x86.cpuid_names import FEATURES
from vmm.x86.xfeature import AVX512, MPX, XTILE, XFeature, mask

__all__ = [
    "AS_A_WHOLE",
    "BITS",
    "BY_CAPABILITY",
    "BY_XFEATURE",
    "GROUPS",
    "NUMBERS",
    "PLACES",
    "REQUIRED",
    "RUNTIME",
    "SILENT",
    "Number",
    "Place",
]

Place = tuple[int, int, str]

# The names that cpuid_names does not have.
_MORE: dict[Place, dict[int, str]] = {
    (1, 0, "ecx"): {
        2: "DTES64", 4: "DS_CPL", 6: "SMX", 7: "EIST", 8: "TM2", 10: "CNXT_ID", 11: "SDBG", 14: "XTPR", 15: "PDCM",
        18: "DCA",
    },
    (1, 0, "edx"): {2: "DE", 18: "PSN", 21: "DS", 22: "ACPI", 28: "HTT", 29: "TM", 31: "PBE"},
    (6, 0, "eax"): {2: "ARAT"},
    (7, 0, "ebx"): {
        2: "SGX", 4: "HLE", 6: "FDP_EXCPTN_ONLY", 11: "RTM", 12: "RDT_M", 13: "ZERO_FCS_FDS", 15: "RDT_A",
        22: "PCOMMIT", 26: "AVX512PF", 27: "AVX512ER",
    },
    (7, 0, "ecx"): {
        0: "PREFETCHWT1", 5: "WAITPKG", 13: "TME", 23: "KL", 24: "BUS_LOCK_DETECT", 25: "CLDEMOTE", 27: "MOVDIRI",
        28: "MOVDIR64B", 29: "ENQCMD", 30: "SGX_LC", 31: "PKS",
    },
    (7, 0, "edx"): {
        1: "SGX_KEYS", 2: "AVX512_4VNNIW", 3: "AVX512_4FMAPS", 9: "SRBDS_CTRL", 10: "MD_CLEAR",
        11: "RTM_ALWAYS_ABORT", 13: "RTM_FORCE_ABORT", 14: "SERIALIZE", 15: "HYBRID", 16: "TSXLDTRK", 18: "PCONFIG",
        19: "ARCH_LBR", 27: "INTEL_STIBP", 30: "CORE_CAPABILITIES", 31: "SPEC_CTRL_SSBD",
    },
    (7, 1, "eax"): {
        0: "SHA512", 1: "SM3", 2: "SM4", 3: "RAO_INT", 6: "LASS", 7: "CMPCCXADD", 8: "ARCH_PERFMON_EXT", 10: "FZRM",
        11: "FSRS", 12: "FSRC", 18: "LKGS", 19: "WRMSRNS", 20: "NMI_SRC", 22: "HRESET", 27: "MSRLIST", 31: "MOVRS",
    },
    (7, 1, "ebx"): {0: "PPIN"},
    (7, 1, "ecx"): {5: "MSR_IMM"},
    (7, 1, "edx"): {10: "AVX_VNNI_INT16", 14: "PREFETCHITI", 15: "USER_MSR", 18: "CET_SSS"},
    (7, 2, "edx"): {0: "PSFD", 1: "IPRED_CTRL", 2: "RRSBA_CTRL", 3: "DDPD_U", 4: "BHI_CTRL", 5: "MCDT_NO"},
    (0x12, 0, "eax"): {0: "SGX1", 1: "SGX2", 11: "SGX_EDECCSSA"},
    (0x1E, 1, "eax"): {
        0: "AMX_INT8_ALIAS", 1: "AMX_BF16_ALIAS", 2: "AMX_COMPLEX_ALIAS", 3: "AMX_FP16_ALIAS", 4: "AMX_FP8",
        6: "AMX_TF32", 7: "AMX_AVX512", 8: "AMX_MOVRS",
    },
    (0x24, 0, "ebx"): {16: "AVX10_128", 17: "AVX10_256", 18: "AVX10_512"},
    (0x24, 1, "ecx"): {2: "AVX10_VNNI_INT"},
    (0x40000001, 0, "eax"): {
        0: "KVM_CLOCKSOURCE", 1: "KVM_NOP_IO_DELAY", 2: "KVM_MMU_OP", 3: "KVM_CLOCKSOURCE2", 4: "KVM_ASYNC_PF",
        5: "KVM_STEAL_TIME", 6: "KVM_PV_EOI", 7: "KVM_PV_UNHALT", 9: "KVM_PV_TLB_FLUSH", 10: "KVM_ASYNC_PF_VMEXIT",
        11: "KVM_PV_SEND_IPI", 12: "KVM_POLL_CONTROL", 13: "KVM_PV_SCHED_YIELD", 14: "KVM_ASYNC_PF_INT",
        15: "KVM_MSI_EXT_DEST_ID", 16: "KVM_HC_MAP_GPA_RANGE", 17: "KVM_MIGRATION_CONTROL",
        24: "KVM_CLOCKSOURCE_STABLE_BIT",
    },
    (0x80000001, 0, "ecx"): {
        0: "LAHF_LM", 1: "CMP_LEGACY", 2: "SVM", 3: "EXTAPIC", 4: "CR8_LEGACY", 5: "ABM", 6: "SSE4A",
        7: "MISALIGNSSE", 8: "3DNOWPREFETCH", 9: "OSVW", 10: "IBS", 11: "XOP", 12: "SKINIT", 13: "WDT", 15: "LWP",
        16: "FMA4", 17: "TCE", 19: "NODEID_MSR", 21: "TBM", 22: "TOPOEXT", 23: "PERFCTR_CORE", 24: "PERFCTR_NB",
        26: "BPEXT", 27: "PTSC", 28: "PERFCTR_LLC", 29: "MWAITX",
    },
    # The bits below 25 that are not named here repeat those of 1.EDX.
    (0x80000001, 0, "edx"): {
        **{bit: f"{name}_ALIAS" for bit, name in FEATURES[1, 0, "edx"].items() if bit < 25 and bit not in (11, 19)},
        2: "DE_ALIAS", 19: "MP", 22: "MMXEXT", 25: "FXSR_OPT", 30: "3DNOWEXT", 31: "3DNOW",
    },
    (0x80000007, 0, "edx"): {8: "INVTSC"},
    (0x80000008, 0, "ebx"): {
        0: "CLZERO", 1: "IRPERF", 2: "XSAVEERPTR", 4: "RDPRU", 9: "WBNOINVD", 12: "AMD_IBPB", 14: "AMD_IBRS",
        15: "AMD_STIBP", 16: "AMD_IBRS_ALWAYS_ON", 17: "AMD_STIBP_ALWAYS_ON", 18: "AMD_IBRS_PREFERRED",
        19: "AMD_IBRS_SAME_MODE", 20: "EFER_LMSLE_MBZ", 23: "AMD_PPIN", 24: "AMD_SSBD", 25: "VIRT_SSBD",
        26: "AMD_SSB_NO", 27: "CPPC", 28: "AMD_PSFD", 29: "BTC_NO", 30: "AMD_IBPB_RET", 31: "BRS",
    },
    (0x8000000A, 0, "edx"): {
        0: "NPT", 1: "LBRV", 2: "SVML", 3: "NRIPS", 4: "TSCRATEMSR", 5: "VMCBCLEAN", 6: "FLUSHBYASID",
        7: "DECODEASSISTS", 10: "PAUSEFILTER", 12: "PFTHRESHOLD", 13: "AVIC", 15: "V_VMSAVE_VMLOAD", 16: "VGIF",
        17: "GMET", 18: "X2AVIC", 20: "V_SPEC_CTRL", 25: "VNMI", 28: "SVME_ADDR_CHK", 29: "BUS_LOCK_THRESHOLD",
        30: "IDLE_HLT",
    },
    (0x8000001F, 0, "eax"): {
        0: "SME", 1: "SEV", 2: "VM_PAGE_FLUSH", 3: "SEV_ES", 4: "SEV_SNP", 5: "VMPL", 9: "V_TSC_AUX",
        10: "SME_COHERENT", 14: "DEBUG_SWAP",
    },
    (0x80000021, 0, "eax"): {
        0: "NO_NESTED_DATA_BP", 1: "WRMSR_XX_BASE_NS", 2: "LFENCE_RDTSC", 5: "VERW_CLEAR", 6: "NULL_SEL_CLR_BASE",
        8: "AUTOIBRS", 9: "NO_SMM_CTL_MSR", 17: "GP_ON_USER_CPUID", 20: "PREFETCHI", 23: "AVX512_BMM", 24: "ERAPS",
        27: "SBPB", 28: "IBPB_BRTYPE", 29: "SRSO_NO", 30: "SRSO_USER_KERNEL_NO", 31: "SRSO_BP_SPEC_REDUCE",
    },
    (0x80000021, 0, "ecx"): {1: "TSA_SQ_NO", 2: "TSA_L1_NO"},
    (0x80000022, 0, "eax"): {0: "PERFMON_V2", 1: "AMD_LBR_V2", 2: "AMD_LBR_PMC_FREEZE"},
    (0xC0000001, 0, "edx"): {
        2: "XSTORE", 3: "XSTORE_EN", 6: "XCRYPT", 7: "XCRYPT_EN", 8: "ACE2", 9: "ACE2_EN", 10: "PHE", 11: "PHE_EN",
        12: "PMM", 13: "PMM_EN",
    },
}  # fmt: skip
# XCR0 and IA32_XSS are compared as xfeatures.
_XSTATE = {(0xD, 0, "eax"), (0xD, 0, "edx"), (0xD, 1, "ecx"), (0xD, 1, "edx")}
# Registers of feature bits: a guest may have no bit that the destination lacks.
BITS: dict[Place, dict[int, str]] = {
    place: FEATURES.get(place, {}) | _MORE.get(place, {}) for place in (FEATURES | _MORE) if place not in _XSTATE
}
# Bits that KVM keeps up to date by itself: arch/x86/kvm/cpuid.c, kvm_update_cpuid_runtime.
RUNTIME: dict[Place, int] = {(1, 0, "ecx"): 1 << 3 | 1 << 27, (1, 0, "edx"): 1 << 9, (7, 0, "ecx"): 1 << 4}
PLACES: dict[str, tuple[Place, int]] = {
    name: (place, bit) for place, names in BITS.items() for bit, name in names.items()
}
# Not KVM's to give: a VMM sets the first by what a capability says (Documentation/virt/kvm/api.rst, 4.46), and the
# others, about its own topology and itself, as it likes.
BY_CAPABILITY: dict[str, str | None] = {
    "TSC_DEADLINE": "KVM_CAP_TSC_DEADLINE_TIMER", "HYPERVISOR": None, "HTT": None, "CMP_LEGACY": None,
}  # fmt: skip
# What every 64-bit guest needs: no mask can take it away.
REQUIRED = frozenset({
    "FPU", "TSC", "MSR", "PAE", "CX8", "CMOV", "FXSR", "SSE", "SSE2", "SYSCALL", "LM",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Number:
    """Bits of a register that are a number of which the guest may have no more than the destination.

    ``inverted`` bits say that something is missing: the guest must have all that the destination has. With
    ``optional`` a 0 on the destination says nothing.
    """

    name: str
    high: int
    low: int
    inverted: bool = False
    optional: bool = False

    @property
    def mask(self) -> int:
        """The bits of the number."""
        return (1 << self.high + 1) - (1 << self.low)

    def of(self, register: int) -> int:
        """Return the number that a register holds."""
        return (register & self.mask) >> self.low


NUMBERS: dict[Place, tuple[Number, ...]] = {
    (1, 0, "ebx"): (Number("CLFLUSH_SIZE", 15, 8),),
    (0xA, 0, "eax"): (
        Number("PMU_VERSION", 7, 0), Number("PMU_COUNTERS", 15, 8), Number("PMU_COUNTER_WIDTH", 23, 16),
        Number("PMU_EVENTS", 31, 24),
    ),
    (0xA, 0, "ebx"): (Number("PMU_EVENTS_MISSING", 31, 0, inverted=True),),
    (0xA, 0, "edx"): (Number("PMU_FIXED_COUNTERS", 4, 0), Number("PMU_FIXED_COUNTER_WIDTH", 12, 5)),
    (0x24, 0, "ebx"): (Number("AVX10_VERSION", 7, 0),),
    (0x80000008, 0, "eax"): (
        Number("MAXPHYADDR", 7, 0), Number("LINEAR_ADDRESS_BITS", 15, 8),
        Number("GUEST_MAXPHYADDR", 23, 16, optional=True),
    ),
    (0x8000000A, 0, "eax"): (Number("SVM_REVISION", 7, 0),),
    (0x8000000A, 0, "ebx"): (Number("SVM_ASIDS", 31, 0),),
    (0x80000021, 0, "ebx"): (Number("RAP_SIZE", 23, 16),),
    (0x80000022, 0, "ebx"): (Number("PMU_CORE_COUNTERS", 3, 0),),
}  # fmt: skip
# Leaves whose registers belong together: they are equal, or the feature that shows them is masked.
AS_A_WHOLE = {0x12: "SGX", 0x14: "INTEL_PT", 0x1B: "PCONFIG"}
# Leaves and registers that a VMM sets as it likes, or that only describe: (leaf, None) is the whole leaf.
SILENT: frozenset[tuple[int, str | None]] = frozenset({
    (0, None),  # highest leaf, vendor
    (1, "eax"), (1, "ebx"),  # model; APIC id, threads (CLFLUSH_SIZE is compared)
    (2, None), (3, None), (4, None), (5, None),  # caches, serial number, MONITOR
    (6, "ebx"), (6, "ecx"), (6, "edx"),  # power management, of which KVM offers ARAT alone
    (7, "eax"),  # highest subleaf, of subleaf 0
    (0xA, "ecx"), (0xA, "edx"),  # fixed counters as a bitmap; flags behind the numbers compared
    (0xB, None), (0x1F, None),  # topology
    (0xD, None),  # compared as xfeatures
    (0x15, None), (0x16, None), (0x18, None), (0x1A, None),  # frequencies, TLBs, kind of core
    (0x1D, None), (0x1E, None),  # compared as AMX
    (0x24, "eax"),  # highest subleaf
    (0x40000000, None), (0x40000001, "edx"), (0x40000010, None),  # signature, hints, frequencies
    (0x80000000, None), (0x80000001, "eax"), (0x80000001, "ebx"),  # highest leaf, model
    (0x80000002, None), (0x80000003, None), (0x80000004, None),  # the model's name
    (0x80000005, None), (0x80000006, None), (0x80000019, None), (0x8000001A, None), (0x8000001D, None),
    (0x80000007, "eax"), (0x80000007, "ebx"), (0x80000007, "ecx"),
    (0x80000008, "eax"), (0x80000008, "ecx"), (0x80000008, "edx"),  # numbers compared; cores
    (0x8000000A, "ecx"),
    (0x8000001E, None), (0x80000026, None),  # topology
    (0x8000001F, "ebx"), (0x8000001F, "ecx"), (0x8000001F, "edx"),  # for VMs that cannot be saved this way
    (0x80000021, "ebx"), (0x80000022, "ebx"),
    (0xC0000000, None), (0xC0000002, None), (0xC0000003, None), (0xC0000004, None),
})  # fmt: skip

# Components that come together or not at all: Intel SDM volume 1, 13.3; arch/x86/kvm/x86.c, __kvm_set_xcr.
GROUPS = (MPX, AVX512, XTILE, mask(XFeature.CET_U, XFeature.CET_S))
_AVX = (
    "AVX", "F16C", "FMA", "FMA4", "XOP", "AVX2", "VAES", "VPCLMULQDQ", "AVX_VNNI", "AVX_IFMA", "AVX_VNNI_INT8",
    "AVX_VNNI_INT16", "AVX_NE_CONVERT", "SHA512", "SM3", "SM4",
)  # fmt: skip
_AVX512 = (*(name for name in PLACES if name.startswith("AVX512")), "AVX10", "AVX10_512", "AMX_AVX512")
_AMX = tuple(name for name in PLACES if name.startswith("AMX_"))
# The features that are of no use without a component.
BY_XFEATURE: dict[int, tuple[str, ...]] = {
    XFeature.YMM: (*_AVX, *_AVX512, "AVX10_128", "AVX10_256", "AVX10_VNNI_INT"),
    XFeature.BNDREGS: ("MPX",),
    XFeature.BNDCSR: ("MPX",),
    **dict.fromkeys((XFeature.OPMASK, XFeature.ZMM_HI256, XFeature.HI16_ZMM), _AVX512),
    XFeature.PKRU: ("PKU",),
    **dict.fromkeys((XFeature.CET_U, XFeature.CET_S), ("SHSTK", "IBT")),
    **dict.fromkeys((XFeature.XTILECFG, XFeature.XTILEDATA), (*_AMX, "XFD")),
    XFeature.APX: ("APX_F",),
}
