# SPDX-License-Identifier: Apache-2.0
"""Lies about core registers between a VMM and its guest."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import (
    GET,
    SET,
    change_now,
    flip,
    forget,
    get_now,
    guest_left,
    number,
    of,
    reading,
    set_now,
    spoiled_exit,
    value,
)
from tests.mutations.lies import COMPLETE, RUN, after, answer, assign, before, opposite, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import PC, PSTATE, SP, core, x
from vmm.kvm.ioctl import Call, Interposer

_SP_EL1, _ELR, _SPSR = core("SP_EL1"), core("ELR_EL1"), core("SPSR_EL1")
_CURRENT_EL, _SPSEL = 34, 35
_USER = 0x10


def _flags(call: Call) -> bool:
    """Met by a PSTATE with flags."""
    return of(PSTATE)(call) and bool(value(call)[3] & 0xF0)


def _user(call: Call) -> bool:
    """Met by a PSTATE of AArch32's user mode."""
    return of(PSTATE)(call) and value(call)[0] == _USER


def _value_is_another(call: Call) -> None:
    call.argument.run.mmio.data[3] ^= 4


def _stored(word: int, bits: int = 1) -> Interposer:
    """One of the words that the guest stored is another."""
    return guest_left("seen", lambda guest: guest.poke("saved", 8 * word, bits), payload="registers")


lies(
    "core.guest-finds-x",
    x13_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(x(13))),
    x30_is_not_kept=lambda: forget(x(30)),
    x0_is_another_in_the_guest=lambda: before(RUN, lambda call: change_now(x(0), 1 << 63)(call.fd)),
    sp_is_another_in_the_guest=lambda: _stored(31, 8),
    the_guest_is_at_el2=lambda: _stored(_CURRENT_EL, 0xC),
)

lies(
    "core.guest-finds-el1",
    spsr_el1_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(_SPSR)),
    sp_is_read_as_sp_el1=lambda: reading(flip(7, 0x80), SP),
    elr_el1_is_another_in_the_guest=lambda: before(RUN, lambda call: change_now(_ELR, 1 << 40)(call.fd)),
    spsr_el1_is_another_in_the_guest=lambda: before(RUN, lambda call: change_now(_SPSR, 1 << 31)(call.fd)),
    sp_el0_is_another_in_the_guest=lambda: before(RUN, lambda call: change_now(SP, 1 << 20)(call.fd)),
)


def _clear(call: Call, bit: int) -> None:
    """A bit of PSTATE is 0 when the vCPU runs."""
    set_now(call.fd, PSTATE, int.from_bytes(get_now(call.fd, PSTATE), "little") & ~(1 << bit))


lies(
    "core.guest-finds-pstate",
    flags_cannot_be_written=lambda: refuse(SET, errno.EINVAL, _flags),
    the_carry_is_lost=lambda: before(RUN, lambda call: _clear(call, 29)),
    a_mask_is_lost=lambda: before(RUN, lambda call: _clear(call, 9)),
    the_guest_has_another_stack_pointer=lambda: _stored(_SPSEL),
)

lies(
    "core.guest-leaves",
    x29_is_read_wrong=lambda: reading(flip(7, 0x80), x(29)),
    x0_is_read_wrong=lambda: reading(flip(0), x(0)),
    sp_el0_and_sp_el1_are_exchanged=lambda: before(GET, assign("id", int(_SP_EL1)), of(SP)),
    elr_el1_is_not_saved=lambda: reading(number(0), _ELR),
    spsr_el1_is_not_saved=lambda: reading(number(0), _SPSR),
    the_flags_are_not_saved=lambda: reading(flip(3, 0x20), PSTATE),
    an_exit_unmasks_interrupts=lambda: reading(flip(0, 0x80), PSTATE),
    pc_is_past_the_store=lambda: reading(flip(0, 4), PC),
    another_value_is_stored=lambda: spoiled_exit(_value_is_another),
)

lies(
    "core.aarch32-user",
    user_mode_keeps_upper_halves=lambda: after(SET, lambda call: set_now(call.fd, x(14), 1 << 40), _user),
    user_mode_is_not_kept=lambda: answer(SET, 0, _user),
    the_opposite_of_user_mode_is_taken=lambda: opposite(SET, errno.EINVAL, _user),
    x15_loses_its_upper_half=lambda: after(SET, lambda call: set_now(call.fd, x(15), 1), _user),
    pc_is_another_afterwards=lambda: after(SET, lambda call: change_now(PC, 2)(call.fd), _user),
    the_vcpu_cannot_be_run_any_more=lambda: refuse(COMPLETE, errno.ENOEXEC),
)
