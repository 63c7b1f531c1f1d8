# SPDX-License-Identifier: Apache-2.0
"""Names of the CPUID feature bits that this package or its readers mention.

Keys are (leaf, subleaf, register), values map bit numbers to the names in the Intel SDM volume 2
(instruction CPUID) and AMD APM volume 3 appendix E, as Linux spells them.
"""

from __future__ import annotations

__all__ = ["BITS", "FEATURES", "PLACES", "RUNTIME", "Place"]

FEATURES: dict[tuple[int, int, str], dict[int, str]] = {
    (1, 0, "ecx"): {
        0: "SSE3", 1: "PCLMULQDQ", 3: "MWAIT", 5: "VMX", 9: "SSSE3", 12: "FMA", 13: "CX16", 17: "PCID", 19: "SSE4_1",
        20: "SSE4_2", 21: "X2APIC", 22: "MOVBE", 23: "POPCNT", 24: "TSC_DEADLINE", 25: "AES", 26: "XSAVE",
        27: "OSXSAVE", 28: "AVX", 29: "F16C", 30: "RDRAND", 31: "HYPERVISOR",
    },
    (1, 0, "edx"): {
        0: "FPU", 1: "VME", 3: "PSE", 4: "TSC", 5: "MSR", 6: "PAE", 7: "MCE", 8: "CX8", 9: "APIC", 11: "SEP",
        12: "MTRR", 13: "PGE", 14: "MCA", 15: "CMOV", 16: "PAT", 17: "PSE36", 19: "CLFSH", 23: "MMX", 24: "FXSR",
        25: "SSE", 26: "SSE2", 27: "SS",
    },
    (7, 0, "ebx"): {
        0: "FSGSBASE", 1: "TSC_ADJUST", 3: "BMI1", 5: "AVX2", 7: "SMEP", 8: "BMI2", 9: "ERMS", 10: "INVPCID",
        14: "MPX", 16: "AVX512F", 17: "AVX512DQ", 18: "RDSEED", 19: "ADX", 20: "SMAP", 21: "AVX512_IFMA",
        23: "CLFLUSHOPT", 24: "CLWB", 25: "INTEL_PT", 28: "AVX512CD", 29: "SHA_NI", 30: "AVX512BW", 31: "AVX512VL",
    },
    (7, 0, "ecx"): {
        1: "AVX512_VBMI", 2: "UMIP", 3: "PKU", 4: "OSPKE", 6: "AVX512_VBMI2", 7: "SHSTK", 8: "GFNI", 9: "VAES",
        10: "VPCLMULQDQ", 11: "AVX512_VNNI", 12: "AVX512_BITALG", 14: "AVX512_VPOPCNTDQ", 16: "LA57", 22: "RDPID",
    },
    (7, 0, "edx"): {
        4: "FSRM", 5: "UINTR", 8: "AVX512_VP2INTERSECT", 20: "IBT", 22: "AMX_BF16", 23: "AVX512_FP16",
        24: "AMX_TILE", 25: "AMX_INT8", 26: "SPEC_CTRL", 28: "FLUSH_L1D", 29: "ARCH_CAPABILITIES",
    },
    (7, 1, "eax"): {4: "AVX_VNNI", 5: "AVX512_BF16", 17: "FRED", 21: "AMX_FP16", 23: "AVX_IFMA", 26: "LAM"},
    (7, 1, "edx"): {4: "AVX_VNNI_INT8", 5: "AVX_NE_CONVERT", 8: "AMX_COMPLEX", 19: "AVX10", 21: "APX_F"},
    (0xD, 0, "eax"): {
        0: "XCR0_FP", 1: "XCR0_SSE", 2: "XCR0_YMM", 3: "XCR0_BNDREGS", 4: "XCR0_BNDCSR", 5: "XCR0_OPMASK",
        6: "XCR0_ZMM_HI256", 7: "XCR0_HI16_ZMM", 9: "XCR0_PKRU", 17: "XCR0_XTILECFG", 18: "XCR0_XTILEDATA",
    },
    (0xD, 1, "eax"): {0: "XSAVEOPT", 1: "XSAVEC", 2: "XGETBV1", 3: "XSAVES", 4: "XFD"},
    (0xD, 1, "ecx"): {11: "XSS_CET_U", 12: "XSS_CET_S"},
    (0x1E, 1, "eax"): {
        0: "AMX_INT8_ALIAS", 1: "AMX_BF16_ALIAS", 2: "AMX_COMPLEX_ALIAS", 3: "AMX_FP16_ALIAS", 4: "AMX_FP8",
        6: "AMX_TF32", 7: "AMX_AVX512", 8: "AMX_MOVRS",
    },
    (0x80000001, 0, "edx"): {11: "SYSCALL", 20: "NX", 26: "PDPE1GB", 27: "RDTSCP", 29: "LM"},
}  # fmt: skip


Place = tuple[int, int, str]

# More names, for the comparison of two hosts.
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
