# SPDX-License-Identifier: Apache-2.0
"""Lies about registers that come and go with a feature."""

from __future__ import annotations

from tests.mutations.arm64.lies import SET, executed, flip, forget, list_without, of, reading, values
from tests.mutations.lies import accept, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import SYSTEM, sysreg
from vmm.conformance.arm64.fpmr import ENCODING
from vmm.conformance.arm64.instructions import mrs

_FPMR = sysreg(*ENCODING)
_TCR2 = SYSTEM["TCR2_EL1"]

lies(
    "id.fpmr",
    fpmr_is_not_listed=lambda: list_without(_FPMR),
    fpmr_cannot_be_written=lambda: refuse(SET, 22, of(_FPMR)),
    fpmr_is_not_kept=lambda: forget(_FPMR),
    the_guest_has_another_fpmr=lambda: executed(mrs(*ENCODING), values(0, lambda old: old ^ 1)),
    the_guests_fpmr_does_not_reach_the_vmm=lambda: reading(flip(3), _FPMR),
)

lies(
    "id.hidden-means-undefined",
    fpmr_is_there_all_the_same=lambda: executed(mrs(*ENCODING), values(15, lambda old: 0)),
    tcr2_is_there_all_the_same=lambda: executed(mrs(3, 0, 2, 0, 3), values(15, lambda old: 0)),
    sctlr2_is_there_all_the_same=lambda: executed(mrs(3, 0, 1, 0, 3), values(15, lambda old: 0)),
    pir_is_there_all_the_same=lambda: executed(mrs(3, 0, 10, 2, 3), values(15, lambda old: 0)),
    a_hidden_register_is_a_trap=lambda: executed(mrs(3, 0, 2, 0, 3), lambda guest: guest.set("esr", 0x18 << 26)),
    a_hidden_register_can_be_read=lambda: accept("KVM_GET_ONE_REG", of(_TCR2)),
    the_guest_never_has_tcr2=lambda: executed(mrs(3, 0, 2, 0, 3), values(15, lambda old: 1)),
    the_field_is_not_hidden=lambda: forget(SYSTEM["ID_AA64MMFR3_EL1"]),
)
