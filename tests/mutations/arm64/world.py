# SPDX-License-Identifier: Apache-2.0
"""Lies about the tables of arm64: a field of each row that every machine has."""

from __future__ import annotations

from tests.mutations.arm64.lies import INIT, SET, of
from tests.mutations.lies import accept
from tests.mutations.registry import lies
from tests.mutations.world import world_lies
from vmm.arm64.registers import PSTATE, SYSTEM, VLS, Group, Register, cache, firmware, sysreg
from vmm.kvm.ioctl import Call
from vmm.state.arm64.world.core import CORE, FPSIMD, VECTORS
from vmm.state.arm64.world.firmware import CACHES, FIRMWARE
from vmm.state.arm64.world.identity import IDREGS
from vmm.state.arm64.world.run import EVENTS, MP_STATE
from vmm.state.arm64.world.sysregs import COUNTERS, SYSREGS

_SOME = ("fresh", "kept", "moved", "reset")
_CORE = ("X7", "SP_EL1", "SPSR_IRQ", "PSTATE")
_VECTORS = ("Z3", "P5", "FFR", "FPSR", "FPCR")
_SYSREGS = (
    "S2_0_C0_C3_4", "S2_0_C0_C3_5", "S2_0_C0_C3_6", "S2_0_C0_C3_7", "S2_0_C0_C2_0", "S2_0_C0_C2_2",
    "S2_0_C1_C1_4", "SCTLR_EL1", "CPACR_EL1", "ZCR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1", "MAIR_EL1",
    "S3_0_C10_C3_0", "AFSR0_EL1", "ESR_EL1", "FAR_EL1", "S3_0_C7_C4_0", "VBAR_EL1", "S3_0_C12_C1_1",
    "CONTEXTIDR_EL1", "TPIDR_EL0", "S3_0_C14_C1_0", "S3_2_C0_C0_0", "S3_4_C3_C0_0", "S3_4_C5_C3_0",
    "CNTV_CTL_EL0", "CNTV_CVAL_EL0",
)  # fmt: skip
_IDREGS = ("ID_AA64ISAR0_EL1.SHA1", "ID_AA64PFR0_EL1.CSV2", "MPIDR_EL1")

world_lies(__name__, CORE, _CORE, _SOME, "registers", INIT)
world_lies(__name__, VECTORS, _VECTORS, _SOME, "registers", INIT)
world_lies(__name__, SYSREGS, _SYSREGS, ("kept",), "registers")
world_lies(__name__, SYSREGS, _SYSREGS[::6], ("fresh", "moved", "reset"), "registers", INIT)
world_lies(__name__, COUNTERS, ["CNTVCT_EL0"], ("kept", "moved"), "registers")
world_lies(__name__, FPSIMD, ("V4", "FPSR", "FPCR"), _SOME, reset=INIT)
world_lies(__name__, IDREGS, _IDREGS, ("kept", "moved"))
world_lies(__name__, IDREGS, ("ID_AA64PFR0_EL1.SVE", "S3_0_C0_C4_3", "MPIDR_EL1"), ("fresh",))
world_lies(__name__, IDREGS, ("ID_AA64ISAR0_EL1.SHA1",), ("reset",), reset=INIT)
world_lies(__name__, FIRMWARE, ("STD_BMAP", "VENDOR_HYP_BMAP"), ("kept", "moved"), "firm")
world_lies(__name__, EVENTS, ("exception.serror_esr", "exception.serror_pending"), ("kept", "moved"), "firm")
world_lies(__name__, EVENTS, ("exception.serror_pending",), ("fresh", "reset"), "firm", INIT)
world_lies(__name__, MP_STATE, ("mp_state",), ("fresh", "kept", "moved", "reset"), "firm", INIT)
world_lies(__name__, CACHES, ("CCSIDR[2]",), ("kept", "moved"), "firm")


_OSLSR = sysreg(2, 0, 1, 1, 4)


def _feature(call: Call) -> bool:
    """Met by a call about an ID register."""
    register = Register(int(call.argument.id))
    return register.group == Group.SYSREG and register.encoding[:3] == (3, 0, 0)


lies(
    "world.registers-refused",
    pstate_takes_any_mode=lambda: accept(SET, of(PSTATE)),
    oslsr_el1_takes_anything=lambda: accept(SET, of(_OSLSR)),
)

lies(
    "world.idregs-refused",
    every_value_of_an_id_register_is_taken=lambda: accept(SET, _feature),
    clidr_takes_reserved_bits=lambda: accept(SET, of(SYSTEM["CLIDR_EL1"])),
)

lies(
    "world.firm-refused",
    a_psci_version_that_there_is_not_is_taken=lambda: accept(SET, of(firmware(0))),
    a_bitmap_takes_calls_that_there_are_not=lambda: accept(SET, of(firmware(1, bitmap=True))),
    a_cache_takes_reserved_bits=lambda: accept(SET, of(cache(3))),
    vector_lengths_are_taken_late=lambda: accept(SET, of(VLS)),
    pending_events_take_reserved_bytes=lambda: accept("KVM_SET_VCPU_EVENTS"),
    every_mp_state_is_taken=lambda: accept("KVM_SET_MP_STATE"),
)
