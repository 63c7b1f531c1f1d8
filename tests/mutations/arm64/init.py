# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_ARM_PREFERRED_TARGET and KVM_ARM_VCPU_INIT."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import EVENTS, FINALIZE, GET, INIT, LIST, change_now, flip, number, reading, set_now
from tests.mutations.lies import COMPLETE, RUN, Condition, accept, after, answer, assign, drift, nth, once, refuse
from tests.mutations.registry import lies, mutation
from vmm._kvm import ffi
from vmm.arm64.registers import FFR, PC, PSTATE, SYSTEM, VLS, Register, core, v, x, z
from vmm.arm64.vcpu import Feature
from vmm.kvm.ioctl import Call, Interposer

_RUNNABLE = 0
_MP = "KVM_GET_MP_STATE"


def _with(*features: Feature) -> Condition:
    """Met by a VCPU_INIT with these features and no others, PSCI apart."""
    wanted = sum(1 << feature for feature in features)
    return lambda call: call.argument.features[0] & ~(1 << Feature.PSCI_0_2) == wanted


@mutation("init.preferred-target")
def sve_is_recommended() -> Interposer:
    def recommend(call: Call) -> None:
        call.argument.features[0] = 1 << Feature.SVE

    return after("KVM_ARM_PREFERRED_TARGET", recommend)


@mutation("init.preferred-target")
def a_feature_word_is_not_written() -> Interposer:
    def leave(call: Call) -> None:
        call.argument.features[6] = 0xAAAAAAAA

    return after("KVM_ARM_PREFERRED_TARGET", leave)


lies(
    "init.preferred-target",
    the_preferred_target_does_not_exist=lambda: after("KVM_ARM_PREFERRED_TARGET", assign("target", 99)),
)

lies(
    "init.preferred-target",
    "init.reinit-same-ok",
    "init.poweroff-ephemeral",
    "init.pauth-pair",
    init_is_refused=lambda: refuse(INIT, errno.EINVAL),
)

lies(
    "init.target-einval",
    "init.sve-unsupported-einval",
    "init.unknown-feature-enoent",
    every_init_is_accepted=lambda: accept(INIT),
)

lies(
    "init.target-einval",
    a_wrong_target_initialises=lambda: accept(GET),
    a_wrong_target_is_enoent=lambda: drift(INIT, errno.ENOENT),
)

lies(
    "init.unknown-feature-enoent",
    the_last_feature_word_is_ignored=lambda: accept(INIT, lambda call: call.argument.features[6] != 0),
    an_unknown_feature_is_einval=lambda: drift(INIT, errno.EINVAL),
)

lies(
    "init.pauth-pair",
    one_half_of_pointer_authentication_is_enough=lambda: accept(INIT, _with(Feature.PTRAUTH_GENERIC)),
    pointer_authentication_needs_finalize=lambda: refuse(COMPLETE, errno.EPERM),
)

lies(
    "init.before-init-enoexec",
    a_register_can_be_read_before_init=lambda: accept(GET),
    the_pointer_of_a_list_is_looked_at_first=lambda: drift(
        LIST, errno.EFAULT, lambda call: call.argument == ffi.NULL
    ),
    finalize_before_init_is_einval=lambda: drift(FINALIZE, errno.EINVAL),
    a_vcpu_runs_before_init=lambda: answer(RUN, 0),
)

lies(
    "init.events-before-init-enoexec",
    events_can_be_read_before_init=lambda: accept(EVENTS),
    events_can_be_written_before_init=lambda: accept("KVM_SET_VCPU_EVENTS"),
    events_cannot_be_read_after_init=lambda: refuse(EVENTS, errno.ENOEXEC),
)

lies(
    "init.vm-wide-features",
    a_second_vcpu_may_have_other_features=lambda: accept(INIT, nth(2)),
    a_second_vcpu_cannot_be_initialised=lambda: refuse(INIT, errno.EINVAL, nth(3)),
    other_features_are_no_such_entry=lambda: refuse(INIT, errno.ENOENT, nth(2)),
)

lies(
    "init.reinit-same-ok",
    init_with_other_features_is_accepted=lambda: accept(INIT, _with()),
    a_vcpu_cannot_be_initialised_after_a_run=lambda: once(COMPLETE, refuse(INIT, errno.EBUSY), refused=True),
)

lies(
    "init.reinit-same-ok",
    "init.reinit-zeroes-sve",
    a_vcpu_has_to_be_finalized_again=lambda: refuse(COMPLETE, errno.EPERM),
)


def _mp_state(state: int, when: Condition) -> Interposer:
    def change(call: Call) -> None:
        call.argument.mp_state = state

    return after(_MP, change, when)


lies(
    "init.poweroff-ephemeral",
    power_off_has_no_effect=lambda: _mp_state(_RUNNABLE, nth(1)),
    power_off_has_to_be_repeated=lambda: refuse(INIT, errno.EINVAL, nth(2)),
)

lies(
    "init.reset-values",
    x7_is_not_0_after_init=lambda: reading(flip(0), x(7)),
    v31_is_not_0_after_init=lambda: after(INIT, lambda call: change_now(v(31), 1 << 127)(call.fd)),
    a_fresh_vcpu_is_at_el0=lambda: reading(number(0x3C0), PSTATE),
    a_fresh_vcpu_has_its_mmu_on=lambda: reading(flip(0), SYSTEM["SCTLR_EL1"]),
    a_fresh_vcpu_may_use_sve=lambda: reading(number(3 << 16), SYSTEM["CPACR_EL1"]),
)


def _after_second_init(register: Register, bits: int) -> Interposer:
    return after(INIT, lambda call: set_now(call.fd, register, bits), nth(2))


lies(
    "init.reinit-zeroes-sve",
    init_leaves_z5=lambda: _after_second_init(z(5), 0xA5),
    init_leaves_ffr=lambda: _after_second_init(FFR, 1),
    init_leaves_fpsr=lambda: _after_second_init(core("FPSR"), 1),
    init_leaves_pc=lambda: _after_second_init(PC, 4),
    init_changes_the_lengths_of_a_finalized_vcpu=lambda: once(INIT, reading(flip(0, 2), VLS), when=nth(2)),
)

lies(
    "init.no-regs-ioctls",
    kvm_get_fpu_succeeds=lambda: accept("KVM_GET_FPU"),
    kvm_set_sregs_looks_at_its_argument=lambda: drift("KVM_SET_SREGS", errno.EFAULT),
)
