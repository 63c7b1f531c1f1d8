# SPDX-License-Identifier: Apache-2.0
"""Lies about the fields of ID registers."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import SET, executed, flip, forget, of, reading, values
from tests.mutations.lies import RUN, Proceed, accept, called, once, refuse
from tests.mutations.registry import lies, mutation
from vmm.arm64.id_registers import REGISTERS
from vmm.arm64.registers import SYSTEM, sysreg
from vmm.kvm.ioctl import Call, Interposer

_ALL = tuple(sysreg(*register.encoding) for register in REGISTERS.values())

lies(
    "id.isar-fields-lower",
    "id.pfr-fields-lower",
    "id.mmfr-fields-lower",
    "id.dfr-fields-lower",
    "id.vector-fields-lower",
    "id.aarch32-fields-lower",
    "id.ctr-fields-lower",
    no_field_can_be_lowered=lambda: refuse(SET, errno.EINVAL, of(*_ALL)),
    what_is_lowered_is_not_kept=lambda: forget(*_ALL),
    every_field_can_be_raised=lambda: accept(SET, of(*_ALL)),
    a_refused_field_changes_another=lambda: once(SET, reading(flip(0), *_ALL), refused=True, when=of(*_ALL)),
    the_guest_reads_another_id_register=lambda: executed(None, values(0, lambda old: old ^ 1)),
    an_id_register_is_undefined_for_the_guest=lambda: executed(None, values(15, lambda old: 1)),
)

lies(
    "id.all-fixed-after-run",
    id_registers_can_be_raised_after_a_run=lambda: once(RUN, accept(SET, of(*_ALL))),
    a_refusal_after_a_run_has_an_effect=lambda: once(RUN, reading(flip(0, 0x10), SYSTEM["ID_AA64ISAR0_EL1"])),
    no_field_can_be_lowered=lambda: refuse(SET, errno.EINVAL, of(*_ALL)),
)


@mutation("id.all-fixed-after-run")
def the_vcpu_that_did_not_run_raises_id_registers() -> Interposer:
    ran: list[int] = []

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) == RUN:
            ran.append(call.fd)
        other = bool(ran) and call.name == SET and call.fd != ran[0]
        return max(proceed(), 0) if other else proceed()

    return interposer
