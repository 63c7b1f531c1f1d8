# SPDX-License-Identifier: Apache-2.0
"""Lies about pointer authentication: keys that are lost, shared or there without the feature."""

from __future__ import annotations

import errno
from contextlib import suppress

from tests.mutations.arm64.lies import (
    SET,
    change_now,
    executed,
    flip,
    forget,
    guest_left,
    of,
    reading,
    set_now,
    value,
    values,
    writing,
)
from tests.mutations.lies import RUN, Proceed, Shared, after, after_run, assign, nth, once, refuse
from tests.mutations.registry import lies, mutation
from vmm.arm64.registers import SYSTEM, Register, sysreg
from vmm.conformance.arm64.instructions import mrs, msr
from vmm.kvm.ioctl import Call, Interposer

_APIA, _APIB_HIGH, _APGA = sysreg(3, 0, 2, 1, 0), sysreg(3, 0, 2, 1, 3), sysreg(3, 0, 2, 3, 1)
_PAYLOAD = "registers"
_PACGA, _PACIA = 0x9AC03000, 0xDAC10000


def _signature(index: int) -> Interposer:
    """One bit of what the guest signed or authenticated is another."""
    return guest_left("sign", values(index, lambda old: old ^ 1 << 40), payload=_PAYLOAD)


def _any_key_is_right(guest: Shared) -> None:
    guest.set("values", guest.get("values", 8), 12)
    guest.set("values", 0, 15)


lies(
    "pauth.keys-at-work",
    a_key_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(_APIA)),
    a_key_is_not_kept=lambda: forget(_APGA),
    an_exit_changes_a_key=lambda: after_run(change_now(_APIB_HIGH), ticks=2),
    another_keys_pointer_is_authentic=lambda: guest_left("sign", _any_key_is_right, payload=_PAYLOAD),
    the_guest_leaves_less_often_than_it_ticks=lambda: after(RUN, assign("absorbed", 3), nth(1)),
    two_keys_sign_the_same=lambda: guest_left(
        "sign", lambda guest: guest.set("values", guest.get("values", 0), 1), payload=_PAYLOAD
    ),
)

lies(
    "pauth.each-key",
    a_half_of_a_key_does_not_count=lambda: forget(_APIB_HIGH),
    one_key_is_written_with_another=lambda: after(SET, lambda call: change_now(_APGA)(call.fd), of(_APIA)),
    what_is_authentic_is_not_the_pointer=lambda: _signature(9),
)

lies(
    "pauth.moved",
    a_key_of_the_guests_is_read_wrong=lambda: reading(flip(3), _APGA),
    a_key_is_restored_wrong=lambda: writing(flip(3), _APGA),
    the_guest_cannot_write_a_key=lambda: executed(msr(*_APIA.encoding), values(15, lambda old: 1), payload=_PAYLOAD),
    the_moved_guest_reads_another_key=lambda: executed(
        mrs(*_APIA.encoding), values(0, lambda old: old ^ 1), payload=_PAYLOAD
    ),
    the_moved_guest_signs_otherwise=lambda: once("KVM_CREATE_VM", _signature(4), when=nth(2)),
)


@mutation("pauth.two-vcpus")
def both_vcpus_have_one_key() -> Interposer:
    others = [-1]

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == SET and of(_APIA)(call):
            with suppress(RuntimeError):  # that of a guest that is closed
                set_now(others[-1], _APIA, int.from_bytes(value(call), "little"))
            others.append(call.fd)
        return result

    return interposer


lies(
    "pauth.two-vcpus",
    a_turn_of_the_other_changes_a_key=lambda: after(RUN, lambda call: change_now(_APIA)(call.fd), nth(6)),
)


def _field(register: Register, bits: int, byte: int) -> Interposer:
    return reading(flip(byte, bits), register)


lies(
    "pauth.absent",
    an_algorithm_is_told=lambda: _field(SYSTEM["ID_AA64ISAR1_EL1"], 0x10, 3),
    the_newest_algorithm_is_told=lambda: _field(SYSTEM["ID_AA64ISAR2_EL1"], 0x10, 1),
    pacga_works=lambda: executed(_PACGA, values(15, lambda old: 0)),
    pacia_traps_as_such=lambda: executed(_PACIA, lambda guest: guest.set("esr", 0x09 << 26)),
    pacia_signs=lambda: executed(_PACIA, values(0, lambda old: old | 1 << 50)),
    a_key_can_be_read=lambda: executed(mrs(*_APGA.encoding), values(15, lambda old: 0)),
)
