# SPDX-License-Identifier: Apache-2.0
"""The ID registers' fields, and by which rule KVM takes a value that is not the host's own.

A row is ``"NAME:LOWEST_BIT ..."``; 4 bits wide unless ``/WIDTH`` follows; ``=VALUE`` is the value that is safe
everywhere. Source: Arm Architecture Reference Manual, D23; for the rules arch/arm64/kernel/cpufeature.c (the
arm64_ftr_bits of Linux 7.2, and arm64_ftr_safe_value) with what arch/arm64/kvm/sys_regs.c,
kvm_arm64_ftr_safe_value and arm64_check_features, makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from vmm.arm64.registers import Group, Register

__all__ = ["BY_ENCODING", "REGISTERS", "Field", "IdRegister", "Rule", "mask_index", "register_name"]

Encoding = tuple[int, int, int, int, int]


class Rule(Enum):
    """Which of two values is safe on both hosts."""

    LOWER = "the lower one"
    HIGHER = "the higher one"
    HIGHER_OR_ZERO = "the higher one, but 0 is safe with any"
    EXACT = "a fixed one, unless they are equal"
    FROZEN = "none, unless they are equal: the kernel does not know the field"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an ID register."""

    name: str
    low: int
    width: int
    rule: Rule
    signed: bool = False
    safe: int = 0

    @property
    def mask(self) -> int:
        """The field's bits in the register."""
        return (1 << self.width) - 1 << self.low

    def of(self, register: int) -> int:
        """Return the field of a register's value, as an unsigned number."""
        return (register & self.mask) >> self.low

    def safe_value(self, first: int, second: int) -> int | None:
        """Return the value that is safe where both are the limit; None where there is none."""
        if first == second:
            return first
        if self.rule is Rule.FROZEN:
            return None
        if self.rule is Rule.EXACT:
            return self.safe
        if self.rule is Rule.HIGHER_OR_ZERO and 0 in (first, second):
            return 0
        choose = min if self.rule is Rule.LOWER else max
        return choose(first, second, key=self._ordered)

    def _ordered(self, value: int) -> int:
        return value - (1 << self.width) if self.signed and value >> self.width - 1 else value


@dataclass(frozen=True)
class IdRegister:
    """One ID register: its encoding (op0, op1, CRn, CRm, op2) and its fields."""

    encoding: Encoding
    fields: tuple[Field, ...]

    @cached_property
    def named(self) -> int:
        """The bits that belong to a field."""
        return sum(field.mask for field in self.fields)

    def decode(self, value: int) -> dict[str, int]:
        """Return the fields that are not 0, by name."""
        return {field.name: field.of(value) for field in self.fields if field.of(value)}


def _fields(text: str, rule: Rule, *, signed: bool = False) -> list[Field]:
    found = []
    for word in text.split():
        name, _, place = word.partition(":")
        place, _, safe = place.partition("=")
        low, _, width = place.partition("/")
        found.append(Field(name, int(low), int(width or 4), rule, signed, int(safe or 0)))
    return found


def _row(
    place: tuple[int, int] | Encoding,
    lower: str = "",
    *,
    signed: str = "",
    higher: str = "",
    higher_or_zero: str = "",
    exact: str = "",
    frozen: str = "",
) -> IdRegister:
    fields = [
        *_fields(lower, Rule.LOWER),
        *_fields(signed, Rule.LOWER, signed=True),
        *_fields(higher, Rule.HIGHER),
        *_fields(higher_or_zero, Rule.HIGHER_OR_ZERO),
        *_fields(exact, Rule.EXACT),
        *_fields(frozen, Rule.FROZEN),
    ]
    encoding = (3, 0, 0, *place) if len(place) == 2 else place
    return IdRegister(encoding, tuple(sorted(fields, key=lambda field: field.low)))


# (CRm, op2) of op0 3, op1 0, CRn 0, or the whole encoding.
REGISTERS: dict[str, IdRegister] = {
    "ID_PFR0_EL1": _row((1, 0), "State0:0 State1:4 State2:8 State3:12 CSV2:16 DIT:24", frozen="AMU:20 RAS:28"),
    "ID_PFR1_EL1": _row(
        (1, 1),
        "ProgMod:0 Security:4 MProgMod:8 Virtualization:12 GenTimer:16 Sec_frac:20 Virt_frac:24 GIC:28",
    ),
    "ID_DFR0_EL1": _row(
        (1, 2),
        "CopDbg:0 CopSDbg:4 MMapDbg:8 CopTrc:12 MMapTrc:16 MProfDbg:20 PerfMon:24",
        frozen="TraceFilt:28",
    ),
    "ID_MMFR0_EL1": _row(
        (1, 4),
        "VMSA:0 PMSA:4 ShareLvl:12 TCM:16 AuxReg:20 FCSE:24",
        signed="OuterShr:8 InnerShr:28",
    ),
    "ID_MMFR1_EL1": _row((1, 5), "L1HvdVA:0 L1UniVA:4 L1HvdSW:8 L1UniSW:12 L1Hvd:16 L1Uni:20 L1TstCln:24 BPred:28"),
    "ID_MMFR2_EL1": _row(
        (1, 6),
        "L1HvdFG:0 L1HvdBG:4 L1HvdRng:8 HvdTLB:12 UniTLB:16 MemBarr:20 WFIStall:24 HWAccFlg:28",
    ),
    "ID_MMFR3_EL1": _row(
        (1, 7),
        "CMaintVA:0 CMaintSW:4 BPMaint:8 MaintBcst:12 PAN:16 CohWalk:20 CMemSz:24 Supersec:28",
    ),
    "ID_ISAR0_EL1": _row((2, 0), "Swap:0 BitCount:4 BitField:8 CmpBranch:12 Coproc:16 Debug:20 Divide:24"),
    "ID_ISAR1_EL1": _row(
        (2, 1),
        "Endian:0 Except:4 Except_AR:8 Extend:12 IfThen:16 Immediate:20 Interwork:24 Jazelle:28",
    ),
    "ID_ISAR2_EL1": _row(
        (2, 2),
        "LoadStore:0 MemHint:4 MultiAccessInt:8 Mult:12 MultS:16 MultU:20 PSR_AR:24 Reversal:28",
    ),
    "ID_ISAR3_EL1": _row(
        (2, 3),
        "Saturate:0 SIMD:4 SVC:8 SynchPrim:12 TabBranch:16 T32Copy:20 TrueNOP:24 T32EE:28",
    ),
    "ID_ISAR4_EL1": _row(
        (2, 4),
        "Unpriv:0 WithShifts:4 Writeback:8 SMC:12 Barrier:16 SynchPrim_frac:20 PSR_M:24 SWP_frac:28",
    ),
    "ID_ISAR5_EL1": _row((2, 5), "SEVL:0 AES:4 SHA1:8 SHA2:12 CRC32:16 RDM:24", frozen="VCMA:28"),
    "ID_MMFR4_EL1": _row((2, 6), "AC2:4 XNX:8 CnP:12 HPDS:16 LSM:20 CCIDX:24 EVT:28", higher="SpecSEI:0"),
    "ID_ISAR6_EL1": _row((2, 7), "JSCVT:0 DP:4 FHM:8 SB:12 SPECRES:16 BF16:20 I8MM:24"),
    "MVFR0_EL1": _row((3, 0), "SIMDReg:0 FPSP:4 FPDP:8 FPTrap:12 FPDivide:16 FPSqrt:20 FPShVec:24 FPRound:28"),
    "MVFR1_EL1": _row((3, 1), "FPFtZ:0 FPDNaN:4 SIMDLS:8 SIMDInt:12 SIMDSP:16 SIMDHP:20 FPHP:24 SIMDFMAC:28"),
    "MVFR2_EL1": _row((3, 2), "SIMDMisc:0 FPMisc:4"),
    "ID_PFR2_EL1": _row((3, 4), "CSV3:0 SSBS:4", frozen="RAS_frac:8"),
    "ID_DFR1_EL1": _row((3, 5), "", signed="MTPMU:0", frozen="HPMN0:4"),
    "ID_MMFR5_EL1": _row((3, 6), "ETS:0", frozen="nTLBPA:4"),
    "ID_AA64PFR0_EL1": _row(
        (4, 0),
        "EL0:0 EL1:4 EL2:8 EL3:12 GIC:24 RAS:28 SVE:32 SEL2:36 MPAM:40 AMU:44 DIT:48 CSV2:56 CSV3:60",
        signed="FP:16 AdvSIMD:20",
        frozen="RME:52",
    ),
    "ID_AA64PFR1_EL1": _row(
        (4, 1),
        "BT:0 SSBS:4 MTE:8 RAS_frac:12 MPAM_frac:16 SME:24 GCS:44 DF2:56",
        signed="MTE_frac:40",
        frozen="RNDR_trap:28 CSV2_frac:32 NMI:36 THE:48 MTEX:52 PFAR:60",
    ),
    "ID_AA64PFR2_EL1": _row((4, 2), "MTESTOREONLY:4 MTEFAR:8 GCIE:12 FPMR:32", frozen="MTEPERM:0 UINJ:16"),
    "ID_AA64ZFR0_EL1": _row(
        (4, 4),
        "SVEver:0 AES:4 EltPerm:12 BitPerm:16 BF16:20 B16B16:24 SHA3:32 SM4:40 I8MM:44 F16MM:48 F32MM:52 F64MM:56",
    ),
    "ID_AA64SMFR0_EL1": _row(
        (4, 5),
        "",
        exact="SMOP4:0/1 STMOP:16/1 SFEXPA:23/1 AES:24/1 SBitPerm:25/1 SF8DP2:28/1 SF8DP4:29/1 SF8FMA:30/1 "
        "F32F32:32/1 BI32I32:33/1 B16F32:34/1 F16F32:35/1 I8I32:36 F8F32:40/1 F8F16:41/1 F16F16:42/1 "
        "B16B16:43/1 I16I32:44 F64F64:48/1 I16I64:52 SMEver:56 LUTv2:60/1 LUT6:61/1 FA64:63/1",
    ),
    "ID_AA64FPFR0_EL1": _row(
        (4, 7),
        "",
        exact="F8E5M2:0/1 F8E4M3:1/1 F16MM2:15/1 F8MM4:26/1 F8MM8:27/1 F8DP2:28/1 F8DP4:29/1 F8FMA:30/1 F8CVT:31/1",
    ),
    "ID_AA64DFR0_EL1": _row(
        (5, 0),
        "DebugVer:0 PMUVer:8 BRPs:12 WRPs:20 CTX_CMPs:28 PMSVer:32",
        signed="DoubleLock:36",
        frozen="TraceVer:4 PMSS:16 SEBEP:24 TraceFilt:40 TraceBuffer:44 MTPMU:48 BRBE:52 ExtTrcBuff:56 HPMN0:60",
    ),
    "ID_AA64DFR1_EL1": _row(
        (5, 1),
        "",
        frozen="SYSPMUID:0/8 BRPs:8/8 WRPs:16/8 CTX_CMPs:24/8 SPMU:32 PMICNTR:36 ABLE:40 ITE:44 EBEP:48 DPFZS:52 "
        "ABL_CMPs:56/8",
    ),
    "ID_AA64ISAR0_EL1": _row(
        (6, 0),
        "AES:4 SHA1:8 SHA2:12 CRC32:16 Atomic:20 RDM:28 SHA3:32 SM3:36 SM4:40 DP:44 FHM:48 TS:52 TLB:56 RNDR:60",
    ),
    "ID_AA64ISAR1_EL1": _row(
        (6, 1),
        "DPB:0 JSCVT:12 FCMA:16 LRCPC:20 GPA:24 GPI:28 FRINTTS:32 SB:36 SPECRES:40 BF16:44 DGH:48 I8MM:52 "
        "XS:56 LS64:60",
        exact="APA:4 API:8",
    ),
    "ID_AA64ISAR2_EL1": _row(
        (6, 2),
        "WFxT:0 RPRES:4 GPA3:8 MOPS:16 BC:20 CLRBHB:28 RPRFM:48 CSSC:52 LUT:56 ATS1A:60",
        exact="APA3:12",
        frozen="PAC_frac:24 SYSREG_128:32 SYSINSTR_128:36 PRFMSLC:40 PCDPHINT:44",
    ),
    "ID_AA64ISAR3_EL1": _row(
        (6, 3),
        "FAMINMAX:4 LSFE:16 LSUI:24 FPRCVT:28",
        frozen="CPA:0 TLBIW:8 PACM:12 OCCMO:20",
    ),
    "ID_AA64MMFR0_EL1": _row(
        (7, 0),
        "PARange:0 ASIDBits:4 BigEnd:8 SNSMem:12 BigEndEL0:16 TGran16:20 ExS:44 FGT:56 ECV:60",
        signed="TGran64:24 TGran4:28",
        exact="TGran16_2:32=1 TGran64_2:36=1 TGran4_2:40=1",
    ),
    "ID_AA64MMFR1_EL1": _row(
        (7, 1),
        "HAFDBS:0 VMIDBits:4 VH:8 HPDS:12 LO:16 PAN:20 XNX:28 TWED:32 ETS:36 HCX:40 AFP:44 TIDCP1:52 ECBHB:60",
        higher="SpecSEI:24",
        frozen="nTLBPA:48 CMOW:56",
    ),
    "ID_AA64MMFR2_EL1": _row(
        (7, 2),
        "CnP:0 UAO:4 LSM:8 IESB:12 VARange:16 CCIDX:20 NV:24 ST:28 AT:32 IDS:36 FWB:40 TTL:48 BBM:52 EVT:56 E0PD:60",
    ),
    "ID_AA64MMFR3_EL1": _row(
        (7, 3),
        "TCRX:0 SCTLRX:4 S1PIE:8 S1POE:16",
        frozen="S2PIE:12 S2POE:20 AIE:24 MEC:28 D128:32 D128_2:36 SNERR:40 ANERR:44 SDERR:52 ADERR:56 Spec_FPACC:60",
    ),
    "ID_AA64MMFR4_EL1": _row(
        (7, 4),
        "NV_frac:20",
        signed="E2H0:24",
        frozen="PoPS:0 EIESB:4 ASID2:8 HACDBS:12 FGWTE3:16 RMEGDI:28 E3DSE:36 SRMASK:44",
    ),
    # Bit 31 reads as 1.
    "CTR_EL0": _row(
        (3, 3, 0, 0, 1),
        "IminLine:0 DminLine:16 IDC:28/1 DIC:29/1",
        higher_or_zero="ERG:20 CWG:24",
        exact="L1Ip:14/2=2",
        frozen="TminLine:32/6",
    ),
}
BY_ENCODING = {register.encoding: name for name, register in REGISTERS.items()}


def register_name(register: Register) -> str:
    """Return a register's name; of an ID register the one in REGISTERS."""
    return BY_ENCODING.get(register.encoding, register.name) if register.group == Group.SYSREG else register.name


def mask_index(encoding: Encoding) -> int:
    """Return a register's place in the array of KVM_ARM_GET_REG_WRITABLE_MASKS.

    Source: arch/arm64/include/uapi/asm/kvm.h, KVM_ARM_FEATURE_ID_RANGE_IDX.
    """
    op1 = encoding[1] & 3
    return (op1 - (op1 == 3)) << 6 | (encoding[3] & 7) << 3 | encoding[4]
