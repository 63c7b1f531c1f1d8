# SPDX-License-Identifier: Apache-2.0
"""Lies about core registers."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import GET, SET, of, set_now, value
from tests.mutations.lies import Condition, accept, on_refusal, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import PSTATE, x

_EL1T, _EL2H = 4, 9


def _mode(wanted: int) -> Condition:
    """Met by a write of PSTATE with this mode."""
    return lambda call: of(PSTATE)(call) and value(call)[0] & 0x1F == wanted


lies(
    "core.bad-offset",
    the_second_half_of_x0_can_be_read=lambda: accept(GET, of(x(0) + 1)),
    x0_can_be_written_in_32_bits=lambda: accept(SET, of(x(0) & ~(0xF << 52) | 2 << 52)),
    there_is_a_core_register_behind_the_last=lambda: accept(GET, of(x(0) | 0xD8)),
    a_refused_write_changes_x0=lambda: on_refusal(SET, lambda call: set_now(call.fd, x(0), 1)),
)

lies(
    "core.pstate-validate",
    pstate_takes_el2=lambda: accept(SET, _mode(_EL2H)),
    pstate_takes_aarch32=lambda: accept(SET, _mode(0x13)),
    pstate_does_not_take_el0=lambda: refuse(SET, errno.EINVAL, _mode(0)),
    a_refused_pstate_has_an_effect=lambda: on_refusal(SET, lambda call: set_now(call.fd, PSTATE, 0x3C0 | _EL1T)),
)
