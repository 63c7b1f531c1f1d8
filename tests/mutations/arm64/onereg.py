# SPDX-License-Identifier: Apache-2.0
"""Lies about ids that name nothing."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import GET, SET, at_bad_address, of
from tests.mutations.lies import COMPLETE, Condition, accept, drift, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import SYSTEM, sysreg, x


def _top(nibble: int) -> Condition:
    return lambda call: int(call.argument.id) >> 60 == nibble


lies(
    "onereg.arch-field-einval",
    a_register_of_x86_can_be_read=lambda: accept(GET, _top(2)),
    a_register_of_riscv_can_be_written=lambda: accept(SET, _top(8)),
    a_reserved_bit_of_the_id_is_ignored=lambda: accept(GET, of(x(0) | 1 << 40)),
)

lies(
    "onereg.sysreg-errors",
    "sve.zcr.hidden-nonsve",
    zcr_el1_can_be_read_without_sve=lambda: accept(GET, of(SYSTEM["ZCR_EL1"])),
    zcr_el1_can_be_written_without_sve=lambda: accept(SET, of(SYSTEM["ZCR_EL1"])),
)

lies(
    "onereg.sysreg-errors",
    a_register_that_does_not_exist_can_be_written=lambda: accept(SET, of(sysreg(3, 7, 15, 15, 7))),
    tpidr_el1_has_128_bits=lambda: accept(GET, of(SYSTEM["TPIDR_EL1"] & ~(0xF << 52) | 4 << 52)),
    a_bad_address_is_no_error=lambda: accept(GET, at_bad_address),
)

lies(
    "onereg.fuzz-no-oops",
    random_ids_get_a_strange_errno=lambda: drift(GET, errno.EIO),
    random_writes_get_a_strange_errno=lambda: drift(SET, errno.ENOTTY),
    the_vcpu_cannot_run_afterwards=lambda: refuse(COMPLETE, errno.EIO),
)
