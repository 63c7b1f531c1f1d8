# SPDX-License-Identifier: Apache-2.0
"""Lies about ID register fields that stand on others."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import SET, VBAR, change_list, executed, flip, of, reading, values
from tests.mutations.lies import RUN, accept, once, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import SYSTEM
from vmm.conformance.arm64.instructions import mrs

_MMFR3, _ISAR2, _PIR = SYSTEM["ID_AA64MMFR3_EL1"], SYSTEM["ID_AA64ISAR2_EL1"], SYSTEM["PIR_EL1"]
_S1PIE = 1 << 8

lies(
    "id.dependencies-at-first-run",
    tcrx_cannot_be_cleared=lambda: refuse(SET, errno.EINVAL, of(_MMFR3)),
    ats1a_cannot_be_cleared=lambda: refuse(SET, errno.EINVAL, of(_ISAR2)),
    s1pie_is_gone_before_the_first_run=lambda: once(SET, reading(flip(1), _MMFR3), when=of(_MMFR3)),
    the_guest_still_has_s1pie=lambda: executed(mrs(*_MMFR3.encoding), values(0, lambda old: old | _S1PIE)),
    s1pie_is_still_told_after_the_first_run=lambda: once(RUN, reading(flip(1), _MMFR3)),
    s1pie_can_be_had_back=lambda: accept(SET, of(_MMFR3)),
    pir_el1_is_still_listed=lambda: change_list(
        lambda found: [int(_PIR) if identifier == VBAR else identifier for identifier in found]
    ),
)
