# SPDX-License-Identifier: Apache-2.0
"""Lies about when memory tags are enabled, and which registers that brings."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.arm64.lies import (
    INIT,
    SET,
    change_list,
    executed,
    flip,
    forget,
    list_without,
    number,
    of,
    reading,
    value,
    values,
)  # fmt: skip
from tests.mutations.lies import Condition, accept, drift, nth, refuse
from tests.mutations.registry import lies
from tests.mutations.slots import REGION2, flag
from vmm._kvm import lib
from vmm.arm64.registers import SYSTEM
from vmm.arm64.vcpu import Feature
from vmm.conformance.arm64.instructions import mrs
from vmm.conformance.arm64.mte import IRG

ENABLE, COPY = "KVM_ENABLE_CAP", "KVM_ARM_MTE_COPY_TAGS"
_PFR1 = SYSTEM["ID_AA64PFR1_EL1"]
_RGSR, _GCR, _TFSR, _TFSRE0 = (SYSTEM[name] for name in ("RGSR_EL1", "GCR_EL1", "TFSR_EL1", "TFSRE0_EL1"))


def _asked(turn: int) -> Condition:
    """Met by the ``turn``-th KVM_ENABLE_CAP."""
    return nth(turn)


def _aarch32(turn: int) -> Condition:
    which = nth(turn)
    return lambda call: bool(call.argument.features[0] >> Feature.EL1_32BIT & 1) and which(call)


def _has(tags: int) -> Callable[[memoryview], None]:
    """ID_AA64PFR1_EL1.MTE becomes another number."""

    def spoil(view: memoryview) -> None:
        view[1] = view[1] & 0xF0 | tags

    return spoil


lies(
    "mte.enable",
    a_flag_is_ignored=lambda: accept(ENABLE, _asked(1)),
    tags_may_be_enabled_after_the_first_vcpu=lambda: accept(ENABLE, _asked(2)),
    tags_that_are_too_late_are_ebusy=lambda: drift(ENABLE, errno.EBUSY, _asked(2)),
    tags_may_be_enabled_after_init=lambda: accept(ENABLE, _asked(3)),
    a_vm_that_was_refused_has_tags=lambda: reading(_has(3), _PFR1),
    a_vm_that_was_refused_has_tags_to_copy=lambda: accept(COPY),
    tags_cannot_be_enabled=lambda: refuse(ENABLE, errno.EINVAL, _asked(4)),
    tags_can_be_enabled_once=lambda: refuse(ENABLE, errno.EINVAL, _asked(5)),
    tags_may_be_enabled_again_after_the_first_vcpu=lambda: accept(ENABLE, _asked(6)),
    a_vm_with_tags_has_none_to_copy=lambda: refuse(COPY, errno.EINVAL),
)

lies(
    "mte.no-aarch32",
    there_is_no_aarch32=lambda: refuse(INIT, errno.EINVAL, _aarch32(1)),
    aarch32_has_tags=lambda: accept(INIT, _aarch32(2)),
    aarch32_with_tags_is_enoent=lambda: drift(INIT, errno.ENOENT, _aarch32(2)),
    aarch64_is_refused_after_that=lambda: refuse(INIT, errno.EINVAL, lambda call: call.argument.features[0] == 0),
    the_tags_are_gone_after_that=lambda: reading(_has(0), _PFR1),
)

lies(
    "mte.id-register",
    a_vm_with_tags_has_none=lambda: reading(_has(0), _PFR1),
    tags_are_instructions_only=lambda: reading(_has(1), _PFR1),
    every_vm_has_tags=lambda: reading(_has(3), _PFR1),
    the_guest_reads_something_else=lambda: executed(mrs(3, 0, 0, 4, 1), values(0, lambda old: old ^ 1 << 8)),
    tags_can_be_hidden=lambda: accept(SET, lambda call: of(_PFR1)(call) and not value(call)[1] & 0xF),
    tags_can_be_invented=lambda: accept(SET, lambda call: of(_PFR1)(call) and value(call)[1] & 0xF == 2),
)

lies(
    "mte.registers",
    rgsr_is_not_listed=lambda: list_without(_RGSR),
    tfsre0_is_not_listed=lambda: list_without(_TFSRE0),
    gcr_is_listed_without_tags=lambda: change_list(lambda found: [*found[:-1], _GCR]),
    a_register_cannot_be_written=lambda: refuse(SET, errno.ENOENT, of(_TFSR)),
    rgsr_is_not_kept=lambda: forget(_RGSR),
    gcr_is_not_kept=lambda: forget(_GCR),
    tfsr_is_not_kept=lambda: forget(_TFSR),
    tfsre0_is_not_kept=lambda: forget(_TFSRE0),
    the_guest_has_another_rgsr=lambda: executed(mrs(3, 0, 1, 0, 5), values(0, lambda old: old ^ 1)),
    the_guest_has_another_tfsr=lambda: executed(mrs(3, 0, 5, 6, 0), values(0, lambda old: old ^ 1)),
    gcr_is_another_after_the_guest_has_run=lambda: reading(flip(0), _GCR),
    tfsre0_is_another_after_the_guest_has_run=lambda: reading(number(0), _TFSRE0),
    gcr_can_be_read_without_tags=lambda: accept("KVM_GET_ONE_REG", of(_GCR)),
    the_guest_has_gcr_without_tags=lambda: executed(mrs(3, 0, 1, 0, 6), values(15, lambda old: 0)),
    a_hidden_register_is_a_trap=lambda: executed(mrs(3, 0, 5, 6, 1), lambda guest: guest.set("esr", 0x18 << 26)),
    a_random_tag_is_an_excluded_one=lambda: executed(IRG, values(0, lambda old: 7 << 56)),
)

lies(
    "mte.no-guest-memfd",
    guest_memfd_has_tags=lambda: accept(REGION2, _turn(1)),
    guest_memfd_with_tags_is_eperm=lambda: drift(REGION2, errno.EPERM, _turn(1)),
    tags_may_be_enabled_with_guest_memfd=lambda: accept(ENABLE, _asked(2)),
    tags_with_guest_memfd_are_eperm=lambda: drift(ENABLE, errno.EPERM, _asked(2)),
    a_vm_that_was_refused_has_tags=lambda: reading(_has(2), _PFR1),
)


def _turn(number: int) -> Condition:
    which, memfd = nth(number), flag(lib.KVM_MEM_GUEST_MEMFD)
    return lambda call: memfd(call) and which(call)
