# SPDX-License-Identifier: Apache-2.0
"""Lies about SME."""

from __future__ import annotations

from tests.mutations.arm64.lies import executed, flip, reading, values
from tests.mutations.registry import lies
from vmm.arm64.registers import SYSTEM

PFR1, SMFR0 = SYSTEM["ID_AA64PFR1_EL1"], SYSTEM["ID_AA64SMFR0_EL1"]


lies("sme.absent", a_guest_is_told_that_it_has_sme=lambda: reading(flip(3), PFR1))

lies("sme.absent", "reglist.no-sme", smfr0_is_the_hosts=lambda: reading(flip(7, 0x80), SMFR0))

lies(
    "sme.absent",
    smstart_works_in_the_guest=lambda: executed(0xD503477F, values(15, lambda old: 0)),
    rdsvl_is_a_trap_of_sme=lambda: executed(0x04BF5820, lambda guest: guest.set("esr", 0x1D << 26)),
)
