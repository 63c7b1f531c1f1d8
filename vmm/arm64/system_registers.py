# SPDX-License-Identifier: Apache-2.0
"""Names of system registers by op0, op1, CRn, CRm, op2, and the fields of the ID registers.

Source: Arm Architecture Reference Manual, D23 "AArch64 System Register Descriptions". The ids of the timer's
CVAL and CNT are exchanged on purpose: arch/arm64/include/uapi/asm/kvm.h, KVM_REG_ARM_TIMER_CVAL.
"""

from __future__ import annotations

__all__ = ["FEATURES", "FIELDS", "NAMES", "field", "fields", "replaced"]

NAMES: dict[tuple[int, int, int, int, int], str] = {
    (3, 0, 0, 0, 0): "MIDR_EL1", (3, 0, 0, 0, 5): "MPIDR_EL1", (3, 0, 0, 0, 6): "REVIDR_EL1",
    (3, 0, 0, 1, 0): "ID_PFR0_EL1", (3, 0, 0, 1, 1): "ID_PFR1_EL1",
    (3, 0, 0, 4, 0): "ID_AA64PFR0_EL1", (3, 0, 0, 4, 1): "ID_AA64PFR1_EL1", (3, 0, 0, 4, 2): "ID_AA64PFR2_EL1",
    (3, 0, 0, 4, 4): "ID_AA64ZFR0_EL1", (3, 0, 0, 4, 5): "ID_AA64SMFR0_EL1", (3, 0, 0, 4, 7): "ID_AA64FPFR0_EL1",
    (3, 0, 0, 5, 0): "ID_AA64DFR0_EL1", (3, 0, 0, 5, 1): "ID_AA64DFR1_EL1",
    (3, 0, 0, 6, 0): "ID_AA64ISAR0_EL1", (3, 0, 0, 6, 1): "ID_AA64ISAR1_EL1", (3, 0, 0, 6, 2): "ID_AA64ISAR2_EL1",
    (3, 0, 0, 6, 3): "ID_AA64ISAR3_EL1",
    (3, 0, 0, 7, 0): "ID_AA64MMFR0_EL1", (3, 0, 0, 7, 1): "ID_AA64MMFR1_EL1", (3, 0, 0, 7, 2): "ID_AA64MMFR2_EL1",
    (3, 0, 0, 7, 3): "ID_AA64MMFR3_EL1", (3, 0, 0, 7, 4): "ID_AA64MMFR4_EL1",
    (3, 0, 1, 0, 0): "SCTLR_EL1", (3, 0, 1, 0, 2): "CPACR_EL1", (3, 0, 1, 0, 3): "SCTLR2_EL1",
    (3, 0, 1, 0, 5): "RGSR_EL1", (3, 0, 1, 0, 6): "GCR_EL1", (3, 0, 5, 6, 0): "TFSR_EL1",
    (3, 0, 5, 6, 1): "TFSRE0_EL1",
    (3, 0, 1, 2, 0): "ZCR_EL1", (3, 0, 1, 2, 4): "SMPRI_EL1", (3, 0, 1, 2, 6): "SMCR_EL1",
    (3, 0, 2, 0, 0): "TTBR0_EL1", (3, 0, 2, 0, 1): "TTBR1_EL1", (3, 0, 2, 0, 2): "TCR_EL1",
    (3, 0, 2, 0, 3): "TCR2_EL1",
    (3, 0, 5, 1, 0): "AFSR0_EL1", (3, 0, 5, 2, 0): "ESR_EL1", (3, 0, 6, 0, 0): "FAR_EL1",
    (3, 0, 10, 2, 0): "MAIR_EL1", (3, 0, 10, 2, 2): "PIRE0_EL1", (3, 0, 10, 2, 3): "PIR_EL1",
    (3, 0, 10, 2, 4): "POR_EL1",
    (3, 0, 12, 0, 0): "VBAR_EL1", (3, 0, 13, 0, 1): "CONTEXTIDR_EL1", (3, 0, 13, 0, 4): "TPIDR_EL1",
    (3, 1, 0, 0, 7): "AIDR_EL1", (3, 1, 0, 0, 1): "CLIDR_EL1", (3, 1, 0, 0, 6): "SMIDR_EL1",
    (3, 3, 0, 0, 1): "CTR_EL0", (3, 3, 4, 2, 2): "SVCR", (3, 3, 4, 4, 2): "FPMR",
    (3, 3, 13, 0, 2): "TPIDR_EL0", (3, 3, 13, 0, 3): "TPIDRRO_EL0", (3, 3, 13, 0, 5): "TPIDR2_EL0",
    (3, 3, 14, 3, 1): "CNTV_CTL_EL0", (3, 3, 14, 0, 2): "CNTV_CVAL_EL0", (3, 3, 14, 3, 2): "CNTVCT_EL0",
    (3, 3, 14, 2, 1): "CNTP_CTL_EL0", (3, 3, 14, 2, 2): "CNTP_CVAL_EL0", (3, 3, 14, 0, 1): "CNTPCT_EL0",
    (3, 4, 1, 2, 0): "ZCR_EL2",
}  # fmt: skip

# All encodings of the AArch64 feature ID registers, allocated or not.
FEATURES = tuple((3, 0, 0, crm, op2) for crm in (4, 5, 6, 7) for op2 in range(8))

# Field, lowest bit: each is 4 bits wide.
FIELDS: dict[str, dict[str, int]] = {
    "ID_AA64PFR0_EL1": {
        "EL0": 0, "EL1": 4, "EL2": 8, "EL3": 12, "FP": 16, "AdvSIMD": 20, "GIC": 24, "RAS": 28, "SVE": 32,
        "SEL2": 36, "MPAM": 40, "AMU": 44, "DIT": 48, "RME": 52, "CSV2": 56, "CSV3": 60,
    },
    "ID_AA64PFR1_EL1": {
        "BT": 0, "SSBS": 4, "MTE": 8, "RAS_frac": 12, "MPAM_frac": 16, "SME": 24, "RNDR_trap": 28, "CSV2_frac": 32,
        "NMI": 36, "MTE_frac": 40, "GCS": 44, "THE": 48, "MTEX": 52, "DF2": 56, "PFAR": 60,
    },
    "ID_AA64PFR2_EL1": {"MTEPERM": 0, "MTESTOREONLY": 4, "MTEFAR": 8, "GCIE": 12, "UINJ": 16, "FPMR": 32},
    "ID_AA64ZFR0_EL1": {
        "SVEver": 0, "AES": 4, "EltPerm": 12, "BitPerm": 16, "BF16": 20, "B16B16": 24, "SHA3": 32, "SM4": 40,
        "I8MM": 44, "F16MM": 48, "F32MM": 52, "F64MM": 56,
    },
    "ID_AA64MMFR3_EL1": {
        "TCRX": 0, "SCTLRX": 4, "S1PIE": 8, "S2PIE": 12, "S1POE": 16, "S2POE": 20, "AIE": 24, "MEC": 28,
    },
}  # fmt: skip


def field(register: str, name: str, value: int) -> int:
    """Return one field of an ID register's value."""
    return value >> FIELDS[register][name] & 0xF


def replaced(register: str, name: str, value: int, new: int) -> int:
    """Return an ID register's value with another number in one field."""
    shift = FIELDS[register][name]
    return value & ~(0xF << shift) | new << shift


def fields(register: str, value: int) -> dict[str, int]:
    """Return the fields of an ID register that are not 0, by name."""
    named = {name: field(register, name, value) for name in FIELDS.get(register, {})}
    return {name: number for name, number in named.items() if number}
