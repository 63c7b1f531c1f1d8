# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_CAP_ARM_SVE, KVM_ARM_PREFERRED_TARGET and KVM_ARM_VCPU_INIT."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import EVENTS, FINALIZE, GET, INIT, LIST, change_now, flip, number, reading, set_now
from tests.mutations.lies import (
    COMPLETE,
    RUN,
    Condition,
    accept,
    after,
    answer,
    drift,
    nth,
    once,
    refuse,
    succeed_with,
)
from tests.mutations.registry import mutation
from vmm._kvm import ffi, lib
from vmm.arm64.registers import FFR, PC, PSTATE, SYSTEM, VLS, Register, core, v, x, z
from vmm.arm64.vcpu import Feature
from vmm.kvm.ioctl import Call, Interposer

_RUNNABLE = 0
_MP = "KVM_GET_MP_STATE"


def _with(*features: Feature) -> Condition:
    """Met by a VCPU_INIT with these features and no others, PSCI apart."""
    wanted = sum(1 << feature for feature in features)
    return lambda call: call.argument.features[0] & ~(1 << Feature.PSCI_0_2) == wanted


def _sve_capability(when: Condition) -> Interposer:
    """KVM_CAP_ARM_SVE is the opposite."""

    def asked(call: Call) -> bool:
        return bool(call.argument == lib.KVM_CAP_ARM_SVE) and when(call)

    return succeed_with("KVM_CHECK_EXTENSION", lambda call, result: 1 - result, asked)


@mutation("cap.sve-matches-host")
def dev_kvm_says_the_opposite_about_sve() -> Interposer:
    return _sve_capability(nth(1))


@mutation("cap.sve-matches-host")
def a_vm_says_the_opposite_about_sve() -> Interposer:
    return _sve_capability(nth(2))


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


@mutation("init.preferred-target")
def the_preferred_target_does_not_exist() -> Interposer:
    def prefer(call: Call) -> None:
        call.argument.target = 99

    return after("KVM_ARM_PREFERRED_TARGET", prefer)


@mutation("init.preferred-target", "init.reinit-same-ok", "init.poweroff-ephemeral", "init.pauth-pair")
def init_is_refused() -> Interposer:
    return refuse(INIT, errno.EINVAL)


@mutation("init.target-einval", "init.sve-unsupported-einval", "init.unknown-feature-enoent")
def every_init_is_accepted() -> Interposer:
    return accept(INIT)


@mutation("init.target-einval")
def a_wrong_target_initialises() -> Interposer:
    return accept(GET)


@mutation("init.target-einval")
def a_wrong_target_is_enoent() -> Interposer:
    return drift(INIT, errno.ENOENT)


@mutation("init.unknown-feature-enoent")
def the_last_feature_word_is_ignored() -> Interposer:
    return accept(INIT, lambda call: call.argument.features[6] != 0)


@mutation("init.unknown-feature-enoent")
def an_unknown_feature_is_einval() -> Interposer:
    return drift(INIT, errno.EINVAL)


@mutation("init.pauth-pair")
def one_half_of_pointer_authentication_is_enough() -> Interposer:
    return accept(INIT, _with(Feature.PTRAUTH_GENERIC))


@mutation("init.pauth-pair")
def pointer_authentication_needs_finalize() -> Interposer:
    return refuse(COMPLETE, errno.EPERM)


@mutation("init.before-init-enoexec")
def a_register_can_be_read_before_init() -> Interposer:
    return accept(GET)


@mutation("init.before-init-enoexec")
def the_pointer_of_a_list_is_looked_at_first() -> Interposer:
    return drift(LIST, errno.EFAULT, lambda call: call.argument == ffi.NULL)


@mutation("init.before-init-enoexec")
def finalize_before_init_is_einval() -> Interposer:
    return drift(FINALIZE, errno.EINVAL)


@mutation("init.before-init-enoexec")
def a_vcpu_runs_before_init() -> Interposer:
    return answer(RUN, 0)


@mutation("init.events-before-init-enoexec")
def events_can_be_read_before_init() -> Interposer:
    return accept(EVENTS)


@mutation("init.events-before-init-enoexec")
def events_can_be_written_before_init() -> Interposer:
    return accept("KVM_SET_VCPU_EVENTS")


@mutation("init.events-before-init-enoexec")
def events_cannot_be_read_after_init() -> Interposer:
    return refuse(EVENTS, errno.ENOEXEC)


@mutation("init.vm-wide-features")
def a_second_vcpu_may_have_other_features() -> Interposer:
    return accept(INIT, nth(2))


@mutation("init.vm-wide-features")
def a_second_vcpu_cannot_be_initialised() -> Interposer:
    return refuse(INIT, errno.EINVAL, nth(3))


@mutation("init.vm-wide-features")
def other_features_are_no_such_entry() -> Interposer:
    return refuse(INIT, errno.ENOENT, nth(2))


@mutation("init.reinit-same-ok")
def init_with_other_features_is_accepted() -> Interposer:
    return accept(INIT, _with())


@mutation("init.reinit-same-ok")
def a_vcpu_cannot_be_initialised_after_a_run() -> Interposer:
    return once(COMPLETE, refuse(INIT, errno.EBUSY), refused=True)


@mutation("init.reinit-same-ok", "init.reinit-zeroes-sve")
def a_vcpu_has_to_be_finalized_again() -> Interposer:
    return refuse(COMPLETE, errno.EPERM)


def _mp_state(state: int, when: Condition) -> Interposer:
    def change(call: Call) -> None:
        call.argument.mp_state = state

    return after(_MP, change, when)


@mutation("init.poweroff-ephemeral")
def power_off_has_no_effect() -> Interposer:
    return _mp_state(_RUNNABLE, nth(1))


@mutation("init.poweroff-ephemeral")
def power_off_has_to_be_repeated() -> Interposer:
    return refuse(INIT, errno.EINVAL, nth(2))


@mutation("init.reset-values")
def x7_is_not_0_after_init() -> Interposer:
    return reading(flip(0), x(7))


@mutation("init.reset-values")
def v31_is_not_0_after_init() -> Interposer:
    return after(INIT, lambda call: change_now(v(31), 1 << 127)(call.fd))


@mutation("init.reset-values")
def a_fresh_vcpu_is_at_el0() -> Interposer:
    return reading(number(0x3C0), PSTATE)


@mutation("init.reset-values")
def a_fresh_vcpu_has_its_mmu_on() -> Interposer:
    return reading(flip(0), SYSTEM["SCTLR_EL1"])


@mutation("init.reset-values")
def a_fresh_vcpu_may_use_sve() -> Interposer:
    return reading(number(3 << 16), SYSTEM["CPACR_EL1"])


def _after_second_init(register: Register, bits: int) -> Interposer:
    return after(INIT, lambda call: set_now(call.fd, register, bits), nth(2))


@mutation("init.reinit-zeroes-sve")
def init_leaves_z5() -> Interposer:
    return _after_second_init(z(5), 0xA5)


@mutation("init.reinit-zeroes-sve")
def init_leaves_ffr() -> Interposer:
    return _after_second_init(FFR, 1)


@mutation("init.reinit-zeroes-sve")
def init_leaves_fpsr() -> Interposer:
    return _after_second_init(core("FPSR"), 1)


@mutation("init.reinit-zeroes-sve")
def init_leaves_pc() -> Interposer:
    return _after_second_init(PC, 4)


@mutation("init.reinit-zeroes-sve")
def init_changes_the_lengths_of_a_finalized_vcpu() -> Interposer:
    return once(INIT, reading(flip(0, 2), VLS), when=nth(2))


@mutation("init.no-regs-ioctls")
def kvm_get_fpu_succeeds() -> Interposer:
    return accept("KVM_GET_FPU")


@mutation("init.no-regs-ioctls")
def kvm_set_sregs_looks_at_its_argument() -> Interposer:
    return drift("KVM_SET_SREGS", errno.EFAULT)
