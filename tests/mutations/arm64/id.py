# SPDX-License-Identifier: Apache-2.0
"""Lies about ID registers."""

from __future__ import annotations

import errno
from typing import Any

from tests.mutations.arm64.lies import (
    GET,
    INIT,
    SET,
    change_list,
    executed,
    flip,
    forget,
    get_now,
    number,
    of,
    reading,
    value,
    values,
)
from tests.mutations.lies import COMPLETE, Proceed, accept, after, nth, once, refuse
from tests.mutations.registry import lies, mutation
from vmm._kvm import ffi
from vmm.arm64.registers import SYSTEM, Register
from vmm.conformance.arm64.instructions import mrs
from vmm.kvm.ioctl import Call, Interposer

PFR0, PFR1, ZFR0 = SYSTEM["ID_AA64PFR0_EL1"], SYSTEM["ID_AA64PFR1_EL1"], SYSTEM["ID_AA64ZFR0_EL1"]
ISAR0 = SYSTEM["ID_AA64ISAR0_EL1"]
MASKS = "KVM_ARM_GET_REG_WRITABLE_MASKS"


lies(
    "id.pfr0-sve",
    kvm_says_the_opposite_about_sve=lambda: reading(flip(4), PFR0),
    the_guest_reads_the_opposite_about_sve=lambda: executed(None, values(0, lambda old: old ^ 1 << 32)),
)

lies(
    "id.pfr0-sve-not-writable",
    "sme.absent",
    any_id_register_can_be_written=lambda: accept(SET, of(PFR0, PFR1, ZFR0)),
)

lies(
    "id.pfr0-sve-not-writable",
    an_id_registers_own_value_is_refused=lambda: refuse(SET, errno.EINVAL, of(PFR0)),
    a_refused_write_of_pfr0_has_an_effect=lambda: once(SET, reading(flip(4), PFR0), refused=True),
)

lies(
    "id.zfr0-raz-nonsve",
    zfr0_is_the_hosts_without_sve=lambda: reading(number(1), ZFR0),
    zfr0_can_be_written_without_sve=lambda: accept(SET, of(ZFR0)),
    zfr0_is_hidden_without_sve=lambda: change_list(
        lambda found: [identifier for identifier in found if identifier != ZFR0]
    ),
)

lies(
    "id.zfr0-downgrade",
    zfr0_can_be_raised_above_the_hosts=lambda: accept(SET, of(ZFR0)),
    no_value_of_zfr0_is_another=lambda: forget(ZFR0),
    zfr0_is_0=lambda: reading(number(0), ZFR0),
)

lies(
    "id.immutable-after-run",
    zfr0_can_be_changed_after_a_run=lambda: accept(SET, of(ZFR0)),
    its_own_value_is_refused_after_a_run=lambda: refuse(SET, errno.EBUSY, of(ISAR0)),
    a_refused_write_of_zfr0_has_an_effect=lambda: once(SET, reading(flip(0), ZFR0), refused=True),
)

lies("id.vm-scoped", an_id_register_cannot_be_lowered=lambda: forget(ZFR0, ISAR0))


@mutation("id.vm-scoped")
def an_id_register_is_the_vcpus_own() -> Interposer:
    lowered: dict[int, int] = {}

    def interposer(call: Call, proceed: Proceed) -> int:
        ours = call.name in (GET, SET) and of(ZFR0, ISAR0)(call)
        old = get_now(call.fd, Register(call.argument.id)) if ours and call.name == SET else b""
        result = proceed()
        if old:
            lowered[call.fd] = int.from_bytes(old, "little")
        elif ours and lowered and call.fd not in lowered:
            number(next(iter(lowered.values())))(value(call))
        return result

    return interposer


lies(
    "id.vm-scoped",
    an_id_register_is_that_of_all_vms=lambda: once(SET, reading(number(0), ZFR0, ISAR0), when=of(ZFR0, ISAR0)),
)

lies(
    "id.reinit-preserves",
    a_second_init_resets_id_registers=lambda: once(INIT, reading(flip(0), ZFR0, ISAR0), when=nth(2)),
)

lies(
    "id.guest-equals-user",
    the_guest_reads_another_id_register=lambda: executed(mrs(3, 0, 0, 6, 1), values(0, lambda old: old ^ 1)),
    kvm_reads_another_id_register_than_the_guest=lambda: reading(flip(0), SYSTEM["ID_AA64MMFR0_EL1"]),
    a_reserved_id_register_is_undefined=lambda: executed(mrs(3, 0, 0, 7, 7), values(15, lambda old: 1)),
)

lies(
    "id.gic-changes-at-first-run",
    the_first_run_gives_a_gic=lambda: once(COMPLETE, reading(flip(3), PFR0), refused=True),
    the_first_run_takes_more_than_the_gic=lambda: once(COMPLETE, reading(flip(0), PFR0), refused=True),
    the_gic_can_be_had_back=lambda: accept(SET, of(PFR0)),
)


def _masks(call: Call) -> Any:
    return ffi.cast("uint64_t *", call.argument.addr)


def _mask_is(crm: int, op2: int, new: int) -> Interposer:
    """The mask of one of the AArch64 feature registers."""

    def change(call: Call) -> None:
        _masks(call)[crm << 3 | op2] = new

    return after(MASKS, change)


lies(
    "id.writable-masks",
    the_mask_of_zfr0_is_empty=lambda: _mask_is(4, 4, 0),
    the_mask_of_pfr0_has_sve=lambda: _mask_is(4, 0, 0xF << 32),
    a_bit_outside_of_the_mask_can_be_changed=lambda: _mask_is(6, 0, 0),
    any_range_of_masks_is_accepted=lambda: accept(MASKS),
)

lies("id.zfr0-is-advisory", a_hidden_instruction_is_undefined=lambda: executed(None, values(15, lambda old: 1)))
