# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_GET_REG_LIST, and about what a restore by it stands on."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import (
    GET,
    LIST,
    SET,
    VBAR,
    change_list,
    flip,
    list_without,
    of,
    reading,
    set_now,
    widest,
)
from tests.mutations.lies import accept, after, assign, drift, on_refusal, once, refuse
from tests.mutations.registry import lies, mutation
from vmm.arm64.registers import FFR, SYSTEM, VLS, Register, p, v, x, z
from vmm.kvm.ioctl import Call, Interposer

_AFSR = SYSTEM["AFSR0_EL1"]


def _instead(register: Register, other: Register) -> Interposer:
    """The list has ``other`` in the place of ``register``."""
    return change_list(lambda found: [int(other) if identifier == register else identifier for identifier in found])


lies(
    "reglist.e2big",
    a_list_that_is_too_short_is_einval=lambda: drift(LIST, errno.EINVAL),
    a_short_list_does_not_learn_its_length=lambda: on_refusal(LIST, assign("n", 0)),
    a_list_that_is_one_short_is_written=lambda: accept(LIST, lambda call: call.argument.n > 100),
)


@mutation("reglist.e2big")
def the_list_is_written_beyond_its_end() -> Interposer:
    def change(call: Call) -> None:
        call.argument.reg[call.argument.n] = 0

    return after(LIST, change)


@mutation("reglist.e2big")
def the_list_does_not_say_how_long_it_is() -> Interposer:
    def change(call: Call) -> None:
        call.argument.n += 1

    return after(LIST, change)


lies(
    "reglist.sve-contents",
    "reglist.no-surplus",
    "reglist.order",
    ffr_is_not_listed=lambda: list_without(FFR),
    z0_is_listed_by_its_second_slice=lambda: _instead(z(0), z(0, 1)),
)

lies(
    "reglist.sve-contents",
    the_lengths_are_not_listed=lambda: list_without(VLS),
    a_v_register_is_listed_with_sve=lambda: _instead(p(7), v(7)),
)

lies(
    "reglist.unique",
    x3_is_listed_twice=lambda: _instead(x(4), x(3)),
    an_id_of_another_architecture_is_listed=lambda: _instead(x(4), Register(x(4) ^ 0x2 << 60)),
)


@mutation("reglist.order")
def z_registers_come_before_the_lengths() -> Interposer:
    exchanged = {int(VLS): int(z(0)), int(z(0)): int(VLS)}
    return change_list(lambda found: [exchanged.get(identifier, identifier) for identifier in found])


lies(
    "reglist.order",
    the_lengths_come_last=lambda: change_list(
        lambda found: [*(identifier for identifier in found if identifier != VLS), int(VLS)]
    ),
)

lies(
    "reglist.get-set-all",
    a_listed_register_cannot_be_read=lambda: refuse(GET, errno.ENOENT, of(_AFSR)),
    a_listed_register_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(widest(31))),
    a_write_does_more_than_it_was_told=lambda: after(SET, lambda call: set_now(call.fd, x(3), 7), of(x(5))),
    writing_x3_changes_it=lambda: once(SET, reading(flip(0), x(3)), when=of(x(3))),
)

lies(
    "reglist.depends-on-idregs",
    registers_of_a_hidden_feature_are_still_there=lambda: accept(
        GET, of(*(SYSTEM[name] for name in ("TCR2_EL1", "PIR_EL1", "PIRE0_EL1", "SCTLR2_EL1")))
    ),
)

lies(
    "reglist.same-for-all-vcpus",
    the_second_vcpu_has_one_register_less=lambda: list_without(VBAR, 2),
    a_run_takes_a_register_from_the_list=lambda: list_without(VBAR, 3),
)

lies(
    "reglist.no-sme",
    smcr_el1_is_listed=lambda: _instead(_AFSR, SYSTEM["SMCR_EL1"]),
    svcr_can_be_read=lambda: accept(GET, of(SYSTEM["SVCR"])),
    smfr0_is_hidden=lambda: list_without(SYSTEM["ID_AA64SMFR0_EL1"]),
)
