# SPDX-License-Identifier: Apache-2.0
"""Names of the CPUID feature bits that this package or its readers speak of.

Keys are (leaf, subleaf, register), values map bit numbers to the names in the Intel SDM volume 2
(instruction CPUID) and AMD APM volume 3 appendix E, as Linux spells them.
"""

from __future__ import annotations

__all__ = ["FEATURES"]

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
    (0x80000001, 0, "edx"): {11: "SYSCALL", 20: "NX", 26: "PDPE1GB", 27: "RDTSCP", 29: "LM"},
}  # fmt: skip
