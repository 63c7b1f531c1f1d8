# SPDX-License-Identifier: Apache-2.0
"""Lies about the virtual GICv3."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.arm64.lies import executed, values
from tests.mutations.lies import Condition, accept, after, answer, drift, nth, refuse
from tests.mutations.registry import lies
from tests.mutations.slots import CREATE, GET, HAS, SET, attribute, kind, nowhere
from vmm._kvm import ffi
from vmm.conformance.arm64.instructions import mrs
from vmm.conformance.arm64.vgic import (
    CONTROL,
    COUNT,
    CPU,
    DIST,
    DIST_AT,
    DISTRIBUTOR,
    INIT,
    PLACES,
    REDIST,
    REDISTRIBUTOR,
    V2,
    V3,
)
from vmm.kvm.ioctl import Call

_UNKNOWN = 1 << 30
_PMR_ID = 3 << 14 | 4 << 7 | 6 << 3
_LDR_W0 = 0xB9400000
_OTHER_VCPU = 7 << 32


def _turn(when: Condition, turn: int) -> Condition:
    """Met by the ``turn``-th call that meets another condition."""
    which = nth(turn)
    return lambda call: when(call) and which(call)


def _at(type_: int, test: Callable[[int], object]) -> Condition:
    """Met by a place of a frame that passes a test."""

    def condition(call: Call) -> bool:
        if not attribute(PLACES, type_)(call) or nowhere(call):
            return False
        return bool(test(int(ffi.cast("uint64_t *", call.argument.addr)[0])))

    return condition


def _counted(number: int) -> Condition:
    """Met by this number of interrupts."""
    return lambda call: attribute(COUNT, 0)(call) and ffi.cast("uint32_t *", call.argument.addr)[0] == number


def _flip(call: Call) -> None:
    ffi.cast("uint32_t *", call.argument.addr)[0] ^= 1 << 31


lies(
    "dev.vgic-once",
    there_is_no_gicv3=lambda: refuse(CREATE, errno.EINVAL, _turn(kind(V3, 0), 1)),
    a_second_gicv3_is_made=lambda: accept(CREATE, _turn(kind(V3, 0), 2)),
    a_second_gicv3_is_ebusy=lambda: drift(CREATE, errno.EBUSY, _turn(kind(V3, 0), 2)),
    a_gicv2_is_made_beside_it=lambda: accept(CREATE, kind(V2, 0)),
    the_refusals_take_an_attribute_away=lambda: refuse(HAS, errno.ENXIO),
    only_one_vm_has_a_gicv3=lambda: refuse(CREATE, errno.EEXIST, _turn(kind(V3, 0), 3)),
    a_gicv3_is_made_after_a_vcpu_has_run=lambda: accept(CREATE, _turn(kind(V3, 0), 4)),
    a_gicv3_that_is_too_late_is_eexist=lambda: drift(CREATE, errno.EEXIST, _turn(kind(V3, 0), 4)),
)

lies(
    "dev.vgic-places",
    the_distributor_has_no_place=lambda: refuse(HAS, errno.ENXIO, attribute(PLACES, DIST)),
    the_redistributors_have_no_place=lambda: refuse(HAS, errno.ENXIO, attribute(PLACES, REDIST)),
    a_place_that_was_not_given_is_0=lambda: after(GET, _zero, _turn(attribute(PLACES, DIST), 1)),
    redistributors_that_were_not_placed_are_at_0=lambda: after(GET, _zero, _turn(attribute(PLACES, REDIST), 1)),
    a_distributor_may_be_placed_by_4_kib=lambda: accept(SET, _at(DIST, lambda address: address & 0x1000)),
    redistributors_may_be_placed_by_32_kib=lambda: accept(SET, _at(REDIST, lambda address: address & 0x8000)),
    an_odd_place_is_efault=lambda: drift(SET, errno.EFAULT, _at(DIST, lambda address: address & 1)),
    a_distributor_may_lie_behind_the_guests_addresses=lambda: accept(SET, _at(DIST, lambda address: address >> 32)),
    redistributors_behind_the_guests_addresses_are_einval=lambda: drift(
        SET, errno.EINVAL, _at(REDIST, lambda address: address >> 32)
    ),
    a_bad_address_of_a_place_is_ignored=lambda: accept(SET, nowhere),
    a_place_is_lost=lambda: answer(SET, 0, _at(DIST, lambda address: address == DIST_AT)),
    the_redistributors_cannot_be_placed=lambda: refuse(SET, errno.EINVAL, _turn(attribute(PLACES, REDIST), 6)),
    the_distributor_can_be_placed_twice=lambda: accept(SET, _at(DIST, lambda address: address == DIST_AT + 0x100000)),
    the_distributor_moves=lambda: after(GET, _flip, _turn(attribute(PLACES, DIST), 4)),
    the_redistributors_move=lambda: after(GET, _flip, _turn(attribute(PLACES, REDIST), 4)),
    a_gicv3_has_the_place_of_a_gicv2=lambda: accept(HAS, attribute(PLACES, 0)),
    the_place_of_a_gicv2_is_taken=lambda: accept(SET, attribute(PLACES, 1)),
    an_unknown_place_is_enodev=lambda: drift(SET, errno.ENODEV, attribute(PLACES, _UNKNOWN)),
)


def _zero(call: Call) -> None:
    ffi.cast("uint64_t *", call.argument.addr)[0] = 0


lies(
    "dev.vgic-interrupts",
    the_number_of_interrupts_is_not_there=lambda: refuse(HAS, errno.ENXIO, attribute(COUNT, 0)),
    a_gic_may_have_no_interrupts_of_devices=lambda: accept(SET, _counted(32)),
    a_gic_may_have_65_interrupts=lambda: accept(SET, _counted(65)),
    a_gic_may_have_1056_interrupts=lambda: accept(SET, _counted(1056)),
    a_wrong_number_is_e2big=lambda: drift(SET, errno.E2BIG, _counted(1 << 31)),
    a_gic_cannot_have_256_interrupts=lambda: refuse(SET, errno.EINVAL, _counted(256)),
    the_number_of_interrupts_is_lost=lambda: answer(SET, 0, _counted(256)),
    the_number_of_interrupts_can_be_set_twice=lambda: accept(SET, _counted(128)),
    the_number_of_interrupts_changes_all_the_same=lambda: after(GET, _flip, _turn(attribute(COUNT, 0), 2)),
    init_is_refused=lambda: refuse(SET, errno.EBUSY, _turn(attribute(CONTROL, INIT), 1)),
    init_is_refused_again=lambda: refuse(SET, errno.EBUSY, _turn(attribute(CONTROL, INIT), 2)),
    the_number_of_interrupts_can_be_set_after_init=lambda: accept(SET, _counted(64)),
    an_unknown_control_is_there=lambda: accept(HAS, attribute(CONTROL, _UNKNOWN)),
    an_unknown_group_is_there=lambda: accept(HAS, attribute(_UNKNOWN, 0)),
    an_unknown_control_is_done=lambda: accept(SET, attribute(CONTROL, _UNKNOWN)),
    an_unknown_group_is_einval=lambda: drift(SET, errno.EINVAL, attribute(_UNKNOWN, 0)),
)

lies(
    "dev.vgic-state",
    an_enable_bit_is_lost=lambda: answer(SET, 0, _turn(attribute(DISTRIBUTOR, 0x104), 1)),
    a_priority_is_lost=lambda: answer(SET, 0, _turn(attribute(DISTRIBUTOR, 0x420), 1)),
    a_redistributors_priority_is_lost=lambda: answer(SET, 0, _turn(attribute(REDISTRIBUTOR, 0x10400), 1)),
    the_priority_mask_is_lost=lambda: answer(SET, 0, _turn(attribute(CPU, _PMR_ID), 1)),
    the_guest_sees_another_register=lambda: executed(_LDR_W0, values(0, lambda old: old ^ 1)),
    the_guest_sees_another_priority_mask=lambda: executed(mrs(3, 0, 4, 6, 0), values(0, lambda old: 0)),
    a_saved_enable_bit_is_another=lambda: after(GET, _flip, _turn(attribute(DISTRIBUTOR, 0x104), 1)),
    a_new_vgic_has_enabled_interrupts=lambda: after(GET, _flip, _turn(attribute(DISTRIBUTOR, 0x104), 2)),
    a_restored_priority_is_lost=lambda: answer(SET, 0, _turn(attribute(DISTRIBUTOR, 0x420), 2)),
    a_restored_priority_mask_is_lost=lambda: answer(SET, 0, _turn(attribute(CPU, _PMR_ID), 2)),
    registers_cannot_be_written=lambda: refuse(SET, errno.EINVAL, _turn(attribute(DISTRIBUTOR, 0x104), 2)),
)

lies(
    "dev.vgic-refusals",
    a_register_is_missing_before_init=lambda: refuse(HAS, errno.ENXIO, attribute(DISTRIBUTOR, 0x420)),
    a_register_can_be_read_before_init=lambda: accept(GET, _turn(attribute(DISTRIBUTOR, 0x104), 1)),
    a_register_can_be_written_before_init=lambda: accept(SET, attribute(REDISTRIBUTOR, 0x10400)),
    a_register_before_init_is_enxio=lambda: drift(GET, errno.ENXIO, attribute(REDISTRIBUTOR, 0x10400)),
    a_cpu_register_can_be_read_before_init=lambda: accept(GET, attribute(CPU, _PMR_ID)),
    an_unknown_register_of_the_distributor_is_there=lambda: accept(HAS, attribute(DISTRIBUTOR, 0xEFF0)),
    an_unknown_register_of_the_redistributor_is_there=lambda: accept(HAS, attribute(REDISTRIBUTOR, 0x1FF00)),
    an_unknown_register_of_the_cpu_is_there=lambda: accept(HAS, attribute(CPU, 0)),
    a_vcpu_that_there_is_not_has_a_redistributor=lambda: accept(GET, attribute(REDISTRIBUTOR, _OTHER_VCPU | 0x10400)),
    a_vcpu_that_there_is_not_is_enxio=lambda: drift(GET, errno.ENXIO, attribute(CPU, _OTHER_VCPU | _PMR_ID)),
    what_was_refused_is_written=lambda: after(GET, _flip, _turn(attribute(DISTRIBUTOR, 0x104), 2)),
)
