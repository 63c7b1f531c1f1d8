# SPDX-License-Identifier: Apache-2.0
"""The rows of SYSREGS and COUNTERS: system registers at EL1 and EL0, debug registers, timers, keys, the PMU.

Registers without a name in vmm.arm64.system_registers are called by their encoding, as saved states call them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from vmm.arm64.registers import sysreg
from vmm.arm64.vcpu import read
from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import pieces
from vmm.state.arm64.world.facts import ALL, PATTERN, UNKNOWN
from vmm.state.piece import RegisterSet
from vmm.state.world.fields import RegisterCodec
from vmm.state.world.row import After, Canonical, Free, Of, OneOf, Refusal, Row, Untold, Within
from vmm.state.world.table import Table

__all__ = ["COUNTERS", "SYSREGS"]

_DESCS = "arch/arm64/kvm/sys_regs.c, sys_reg_descs"
_USER = "arch/arm64/kvm/sys_regs.c, kvm_sys_reg_set_user"
_WORD = 0xFFFF_FFFF
_RESET = OneOf((PATTERN, 0), "UNKNOWN after a reset: KVM marks it with a pattern, and may make it 0")


def _part(name: str) -> RegisterSet:
    piece = pieces("arm64")[name]
    assert isinstance(piece, RegisterSet)
    return piece


def _zero(name: str, values: Free | Of | Canonical, runs: bool | Free | Of | Canonical = True) -> Row:
    """A register that a reset makes 0 and that takes what it is given."""
    return Row(name, f"{_DESCS} ({name}: reset_val); {_USER}", fresh=0, values=values, runs=runs)


def _unknown(name: str, values: Free | Of | Canonical, runs: bool | Free | Of | Canonical = True) -> Row:
    """A register that is UNKNOWN after a reset and takes what it is given."""
    return Row(name, f"{_DESCS} ({name}: reset_unknown); {UNKNOWN}; {_USER}", fresh=_RESET, values=values, runs=runs)


def _encodings(op0: int, op1: int, crn: int, crms: Iterable[int], op2s: Iterable[int]) -> str:
    """Return the names of registers without a name."""
    chosen = tuple(op2s)
    return " ".join(f"S{op0}_{op1}_C{crn}_C{crm}_{op2}" for crm in crms for op2 in chosen)


# --- debug ---

_DEBUG = [
    # DBGBVRn, DBGBCRn, DBGWVRn, DBGWCRn.
    *(_zero(_encodings(2, 0, 0, range(16), [op2]), Free(ALL)) for op2 in (4, 5, 6, 7)),
    _zero("S2_0_C0_C2_0", Free(ALL), runs=False),  # MDCCINT_EL1
    _zero("S2_0_C0_C2_2", Free(ALL), runs=Of(1 << 12, 0)),  # MDSCR_EL1: TDCC
    _zero("S2_4_C0_C7_0", Free(ALL)),  # DBGVCR32_EL2
    Row("S2_0_C1_C1_4", "arch/arm64/kvm/sys_regs.c, set_oslsr_el1 (OSLSR_EL1: only OSLK may change)", fresh=8,
        values=Of(0xA, 8), refused=[Refusal(value, errno.EINVAL) for value in (0, 2, 9, 0xC, 1 << 32 | 8, ALL)]),
]  # fmt: skip

# --- memory, exceptions, identities of software ---

_SCTLR = 0x30D0_180D  # as payloads have it: vmm/arm64/boot.py
_MEMORY = [
    Row("SCTLR_EL1", f"{_DESCS} (SCTLR_EL1: reset_val)", fresh=0xC5_0078, values=Free(ALL),
        runs=Of(_SCTLR | 1 << 14, _SCTLR | 1 << 26, _SCTLR)),  # DZE, UCI
    Row("S3_0_C1_C0_1", "arch/arm64/kvm/sys_regs.c, reset_actlr (ACTLR_EL1)", fresh=Untold("ACTLR_EL1 is the CPU's"),
        values=Free(ALL)),
    _zero("CPACR_EL1", Free(ALL), runs=Of(1 << 20, 3 << 20)),
    _zero("ZCR_EL1", Free(0xF), runs=False),
    _zero("SCTLR2_EL1 TCR2_EL1", Free(ALL), runs=False),
    _zero("TCR_EL1", Free(ALL), runs=False),
    _unknown("TTBR0_EL1", Free(ALL), runs=False),
    _unknown("TTBR1_EL1", Free(ALL), runs=Of(0xAB_0000_1234_5000, 0x54_0000_7EDC_A000)),
    _unknown("MAIR_EL1", Free(ALL), runs=Of(0x4404_0C00_BB44_FF00, 0x00FF_4444_FF04_FF00)),
    Row("S3_0_C10_C3_0", "arch/arm64/kvm/sys_regs.c, reset_amair_el1", fresh=Untold("AMAIR_EL1 is the CPU's"),
        values=Free(ALL), runs=False),
    _unknown("PIRE0_EL1 PIR_EL1 POR_EL1", Free(ALL), runs=False),
    _unknown("S3_3_C10_C2_4", Free(ALL), runs=False),  # POR_EL0
    _unknown("AFSR0_EL1", Free(ALL), runs=False),
    _unknown("S3_0_C5_C1_1", Free(ALL), runs=False),  # AFSR1_EL1
    _unknown("ESR_EL1", Free(ALL), runs=Free(_WORD)),
    _unknown("FAR_EL1", Free(ALL)),
    _unknown("S3_0_C7_C4_0", Free(ALL), runs=Of(0xFF00_0012_3456_7B80, 0x4400_0000_8765_4B00)),  # PAR_EL1
    _zero("VBAR_EL1", Free(ALL), runs=Canonical(11)),
    _zero("S3_0_C12_C1_1", Free(ALL), runs=False),  # DISR_EL1
    _zero("CONTEXTIDR_EL1", Free(ALL), runs=Free(_WORD)),
    _unknown("TPIDR_EL0 TPIDR_EL1 TPIDRRO_EL0", Free(ALL)),
    _zero("S3_0_C14_C1_0", Free(ALL), runs=Free(0x3FF)),  # CNTKCTL_EL1
    _unknown("S3_2_C0_C0_0", Free(ALL), runs=Free(0xF)),  # CSSELR_EL1
    _unknown("S3_4_C3_C0_0 S3_4_C5_C0_1", Free(ALL)),  # DACR32_EL2, IFSR32_EL2
    Row("S3_4_C5_C3_0", f"{_DESCS} (FPEXC32_EL2: reset_val)", fresh=0x700, values=Free(ALL)),
    # Keys of pointer authentication, each in two halves.
    _unknown(_encodings(3, 0, 2, (1, 2, 3), range(4)), Free(ALL)),
    # With memory tags: RGSR_EL1, GCR_EL1, TFSR_EL1, TFSRE0_EL1.
    _unknown("RGSR_EL1 GCR_EL1 TFSR_EL1 TFSRE0_EL1", Free(ALL), runs=False),
    _zero("FPMR", Free(ALL), runs=False),
]  # fmt: skip

# --- timers ---

_TIMER = "arch/arm64/kvm/sys_regs.c, TIMER_REG, arch_timer_set_user (before 7.0 arch_timer.c, kvm_arm_timer_set_reg)"
_ISTATUS = OneOf((0, 4), "whether ISTATUS of a comparator that has been passed is computed for who reads it")
_FAR = 1 << 62
_TIMERS = [
    Row("CNTV_CTL_EL0 CNTP_CTL_EL0", f"{_TIMER}; arch/arm64/kvm/arch_timer.c, kvm_timer_vcpu_reset, read_timer_ctl",
        fresh=_ISTATUS,
        values=Of(2, 3, 1, 2), runs=Of(2, 3), masked=[(6, 2), (4, 0)], init=_ISTATUS),
    Row("CNTV_CVAL_EL0 CNTP_CVAL_EL0", _TIMER, fresh=0, values=Free(_FAR - 1, _FAR), init=After.EITHER),
]  # fmt: skip

# --- the PMU ---

_PMU = "arch/arm64/kvm/sys_regs.c, PMU_SYS_REG, reset_pmu_reg, set_pmreg"
_CYCLES = 1 << 31
_PMCR = sysreg(3, 3, 9, 12, 0)
_KINDS = tuple(0xC000_00DE | second | events for second in (0, 0x0800_0000, 0x1000_0000, 0x1800_0000)
               for events in (0, 0xC000))  # fmt: skip


def _counters(vcpu: Vcpu) -> int:
    """Return the bits that the registers with a bit for each counter have: PMCR_EL0.N of them, and the cycles'."""
    return _CYCLES | (1 << (read(vcpu, _PMCR) >> 11 & 0x1F)) - 1


def _set(name: str, *, alone: bool) -> Row:
    return Row(name, f"{_PMU}; {UNKNOWN}", fresh=lambda vcpu: PATTERN & _counters(vcpu), values=Free(_WORD),
               fit=lambda vcpu, value: value & _counters(vcpu), alone=alone)  # fmt: skip


def _control(vcpu: Vcpu, value: int) -> int:
    """Return a PMCR_EL0 with its own N, which cannot be more, and with what else is the CPU's."""
    return read(vcpu, _PMCR) & ~0x3F | value & 0x3F


_PERFORMANCE = [
    # PMINTENSET_EL1, PMCNTENSET_EL0, PMOVSSET_EL0; and what clears the same bits.
    *(_set(name, alone=False) for name in ("S3_0_C9_C14_1", "S3_3_C9_C12_1", "S3_3_C9_C14_3")),
    *(_set(name, alone=True) for name in ("S3_0_C9_C14_2", "S3_3_C9_C12_2", "S3_3_C9_C12_3")),
    Row("S3_3_C9_C12_0", "arch/arm64/kvm/sys_regs.c, reset_pmcr, set_pmcr (PMCR_EL0)",
        fresh=Untold("the low bits of PMCR_EL0 are UNKNOWN before 6.4, N and what identifies it are the CPU's"),
        values=Of(0x9, 0x30, 0x1, 0), fit=_control),
    Row("S3_3_C9_C12_4", "arch/arm64/kvm/sys_regs.c, sys_reg_descs (PMSWINC_EL0: get_raz_reg, set_wi_reg)", fresh=0,
        values=None, masked=[(0x1F, 0), (ALL, 0)]),
    Row("S3_3_C9_C12_5", f"arch/arm64/kvm/sys_regs.c, reset_pmselr (PMSELR_EL0); {UNKNOWN}", fresh=PATTERN & 0x1F,
        values=Free(0x1F)),
    _unknown("S3_3_C9_C13_0", Free(ALL)),  # PMCCNTR_EL0
    _zero("S3_3_C9_C14_0", Free(0xF)),  # PMUSERENR_EL0
    Row("S3_3_C14_C15_7", "arch/arm64/kvm/sys_regs.c, sys_reg_descs (PMCCFILTR_EL0: reset_val)", fresh=0,
        values=Of(0x8000_0000, 0x4000_0000, 0xC000_0000, 0)),
    # PMEVCNTRn_EL0 and PMEVTYPERn_EL0.
    Row(_encodings(3, 3, 14, range(8, 12), range(8)), f"arch/arm64/kvm/sys_regs.c, reset_pmevcntr; {UNKNOWN}",
        fresh=PATTERN & _WORD, values=Free(_WORD)),
    Row(_encodings(3, 3, 14, range(12, 16), range(8)), f"arch/arm64/kvm/sys_regs.c, reset_pmevtyper; {UNKNOWN}",
        fresh=OneOf(_KINDS, "which events and exceptions levels the CPU's PMU knows"), values=Free(0xC000_03FF)),
]  # fmt: skip

_SYSREGS, _COUNTERS = _part("SYSREGS"), _part("COUNTERS")
SYSREGS = Table("sysregs", _SYSREGS, RegisterCodec(_SYSREGS), [*_DEBUG, *_MEMORY, *_TIMERS, *_PERFORMANCE])

# What a counter may have gone on between two calls: an hour of the fastest counter that is allowed, of 1 GHz.
_HOUR = 3600 * 10**9
_START = "arch/arm64/kvm/arch_timer.c, timer_set_offset; kvm_timer_init_vm (before 6.4 kvm_timer_vcpu_init)"
COUNTERS = Table(
    "counters",
    _COUNTERS,
    RegisterCodec(_COUNTERS),
    [
        Row("CNTVCT_EL0", f"{_START}: it begins with the VM", fresh=Within(0, _HOUR), init=After.KEPT, counts=_HOUR,
            values=Of(1 << 40, 0x7654_3210_1234_5678, 1 << 62, 0)),
        Row("CNTPCT_EL0", f"{_START}: it is the host's until it is written", fresh=Untold("the host's own counter"),
            init=After.KEPT, counts=_HOUR,
            values=Of(1 << 44, 0x4321_7654_1234_5678, 1 << 61, 0)),
    ],
)  # fmt: skip
