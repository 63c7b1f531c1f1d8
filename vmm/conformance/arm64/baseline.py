# SPDX-License-Identifier: Apache-2.0
"""The registers that a KVM lists for every vCPU, by the release that has listed them first; whatever the CPU.

A VMM that restores a state of an older kernel writes what that one listed, so a register must not go away. Measured
on 5.10, 6.1, 6.12, 6.16, 7.2 and 7.3. Source: arch/arm64/kvm/guest.c, copy_core_reg_indices;
arch/arm64/kvm/sys_regs.c, sys_reg_descs, write_demux_regids; arch/arm64/kvm/hypercalls.c, kvm_arm_fw_reg_ids.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmm.arm64.registers import FPCR, FPSR, PC, PSTATE, SP, Register, cache, core, firmware, sysreg, x

__all__ = ["BASELINE", "PMU"]

_Encoding = tuple[int, int, int, int, int]


def _range(op0: int, op1: int, crn: int, crms: Iterable[int], op2s: Iterable[int]) -> list[_Encoding]:
    chosen = tuple(op2s)
    return [(op0, op1, crn, crm, op2) for crm in crms for op2 in chosen]


def _system(*encodings: _Encoding) -> frozenset[Register]:
    return frozenset(sysreg(*encoding) for encoding in encodings)


# V0 to V31 and what SVE has instead are reglist.sve-contents'.
_CORE = frozenset({
    *(x(number) for number in range(31)), SP, PC, PSTATE, FPSR, FPCR,
    *map(core, ("SP_EL1", "ELR_EL1", "SPSR_EL1", "SPSR_ABT", "SPSR_UND", "SPSR_IRQ", "SPSR_FIQ")),
})  # fmt: skip
_SYSTEM = _system(
    *_range(2, 0, 0, range(16), range(4, 8)),  # DBGBVRn, DBGBCRn, DBGWVRn and DBGWCRn
    (2, 0, 0, 2, 0), (2, 0, 0, 2, 2), (2, 4, 0, 7, 0),  # MDCCINT, MDSCR, DBGVCR32
    (3, 0, 0, 0, 0), (3, 0, 0, 0, 5), (3, 0, 0, 0, 6),  # MIDR, MPIDR, REVIDR
    *_range(3, 0, 0, range(1, 8), range(8)),  # all feature ID registers, allocated or not
    (3, 0, 1, 0, 0), (3, 0, 1, 0, 1), (3, 0, 1, 0, 2),  # SCTLR, ACTLR, CPACR
    (3, 0, 2, 0, 0), (3, 0, 2, 0, 1), (3, 0, 2, 0, 2),  # TTBR0, TTBR1, TCR
    (3, 0, 5, 1, 0), (3, 0, 5, 1, 1), (3, 0, 5, 2, 0),  # AFSR0, AFSR1, ESR
    (3, 0, 6, 0, 0), (3, 0, 7, 4, 0), (3, 0, 10, 2, 0), (3, 0, 10, 3, 0),  # FAR, PAR, MAIR, AMAIR
    (3, 0, 12, 0, 0), (3, 0, 12, 1, 1),  # VBAR, DISR
    (3, 0, 13, 0, 1), (3, 0, 13, 0, 4), (3, 0, 14, 1, 0),  # CONTEXTIDR, TPIDR, CNTKCTL
    (3, 1, 0, 0, 1), (3, 1, 0, 0, 7), (3, 2, 0, 0, 0), (3, 3, 0, 0, 1),  # CLIDR, AIDR, CSSELR, CTR
    (3, 3, 13, 0, 2), (3, 3, 13, 0, 3),  # TPIDR_EL0, TPIDRRO_EL0
    (3, 3, 14, 0, 2), (3, 3, 14, 3, 1), (3, 3, 14, 3, 2),  # the virtual timer
    (3, 4, 3, 0, 0), (3, 4, 5, 0, 1), (3, 4, 5, 3, 0),  # DACR32, IFSR32, FPEXC32
)  # fmt: skip
BASELINE: dict[str, frozenset[Register]] = {
    "5.10": _CORE | _SYSTEM | {firmware(number) for number in range(3)},
    # OSLSR_EL1 since 5.18, WORKAROUND_3 as well, the bitmaps of hypercalls since 6.0.
    "6.1": _system((2, 0, 1, 1, 4)) | {firmware(3), *(firmware(number, bitmap=True) for number in range(3))},
    # CCSIDR of every level since 6.3 (before it those that the CPU has), the physical timer by 6.12.
    "6.12": frozenset(cache(number) for number in range(14))
    | _system((3, 3, 14, 0, 1), (3, 3, 14, 2, 1), (3, 3, 14, 2, 2)),
    # A second bitmap of vendor-specific hypercalls by 6.16.
    "6.16": frozenset({firmware(3, bitmap=True)}),
}
# What comes with PMU_V3 and is hidden without. arch/arm64/kvm/sys_regs.c, pmu_visibility.
PMU = _system(
    (3, 0, 9, 14, 1), (3, 0, 9, 14, 2), *_range(3, 3, 9, (12,), range(6)), (3, 3, 9, 13, 0), (3, 3, 9, 14, 0),
    (3, 3, 9, 14, 3), *_range(3, 3, 14, range(8, 16), range(8)),
) - _system((3, 3, 14, 11, 7))  # fmt: skip
