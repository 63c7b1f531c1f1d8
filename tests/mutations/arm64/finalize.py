# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_ARM_VCPU_FINALIZE."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import (
    FINALIZE,
    GET,
    INIT,
    LIST,
    ONLY_1,
    SET,
    at_bad_address,
    flip,
    group,
    of,
    on_refusal,
    reading,
    set_now,
)
from tests.mutations.lies import (
    COMPLETE,
    RUN,
    Condition,
    Proceed,
    accept,
    after,
    answer,
    called,
    drift,
    nth,
    once,
    refuse,
)
from tests.mutations.registry import mutation
from vmm._kvm import ffi, lib
from vmm.arm64.registers import FFR, FPCR, PC, SYSTEM, VLS, firmware, p, x, z
from vmm.kvm.ioctl import Call, Interposer

_SVE_GROUP = 0x15


def _about(feature: int) -> Condition:
    """Met by a FINALIZE of this number."""
    return lambda call: call.argument != ffi.NULL and call.argument[0] == feature


def _to_null(call: Call) -> bool:
    return bool(call.argument == ffi.NULL)


# --- before FINALIZE ------------------------------------------------------------------------------


@mutation(
    "sve.finalize.run-before-eperm", "sve.finalize.unknown-einval", "sve.finalize.efault", "sve.finalize.per-vcpu"
)
def a_vcpu_runs_without_finalize() -> Interposer:
    return answer(RUN, 0)


@mutation("sve.finalize.run-before-eperm")
def another_thread_may_run_it() -> Interposer:
    return answer(RUN, 0, nth(3))


@mutation("sve.finalize.run-before-eperm")
def the_refused_run_moves_pc() -> Interposer:
    return on_refusal(RUN, lambda call: set_now(call.fd, PC, 0x1004))


@mutation("sve.finalize.run-before-eperm", "sve.finalize.twice-eperm", "sve.finalize.nonsve-einval")
def a_finalized_vcpu_cannot_run() -> Interposer:
    return refuse(COMPLETE, errno.EPERM)


@mutation("sve.finalize.reglist-before-eperm")
def registers_are_listed_before_finalize() -> Interposer:
    return answer(LIST, 0)


@mutation("sve.finalize.reglist-before-eperm")
def the_list_is_looked_at_first() -> Interposer:
    return drift(LIST, errno.EFAULT, _to_null)


@mutation("sve.finalize.zpf-before-eperm")
def z4_can_be_read_before_finalize() -> Interposer:
    return accept(GET, of(z(4)))


@mutation("sve.finalize.zpf-before-eperm")
def p15_can_be_written_before_finalize() -> Interposer:
    return accept(SET, of(p(15)))


@mutation("sve.finalize.zpf-before-eperm")
def ffr_is_not_0_after_finalize() -> Interposer:
    return reading(flip(0), FFR)


@mutation("sve.finalize.core-sysreg-before-ok")
def every_register_is_refused_before_finalize() -> Interposer:
    finalized = False

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal finalized
        if called(call) in (GET, SET) and not finalized:
            return -errno.EPERM
        result = proceed()
        finalized = finalized or called(call) == FINALIZE
        return result

    return interposer


@mutation("sve.finalize.core-sysreg-before-ok")
def fpcr_cannot_be_written_before_finalize() -> Interposer:
    return refuse(SET, errno.EPERM, of(FPCR))


@mutation("sve.finalize.core-sysreg-before-ok")
def zcr_el1_cannot_be_read_before_finalize() -> Interposer:
    return refuse(GET, errno.EPERM, of(SYSTEM["ZCR_EL1"]))


@mutation("sve.finalize.core-sysreg-before-ok")
def a_firmware_register_cannot_be_written_before_finalize() -> Interposer:
    return refuse(SET, errno.EPERM, of(firmware(1)))


@mutation("sve.finalize.core-sysreg-before-ok")
def finalize_resets_x30() -> Interposer:
    return after(FINALIZE, lambda call: set_now(call.fd, x(30), 0))


@mutation("sve.finalize.vls-readable-always")
def the_lengths_cannot_be_read_before_finalize() -> Interposer:
    return refuse(GET, errno.EPERM, nth(1))


@mutation("sve.finalize.vls-readable-always", "sve.vls.prefix-ok")
def finalize_changes_the_lengths() -> Interposer:
    return once(FINALIZE, reading(flip(0, 2), VLS))


# --- FINALIZE itself ------------------------------------------------------------------------------


@mutation("sve.finalize.twice-eperm", "sve.finalize.nonsve-einval", "init.reinit-zeroes-sve")
def finalize_is_always_accepted() -> Interposer:
    return accept(FINALIZE)


@mutation("sve.finalize.twice-eperm")
def a_second_finalize_clears_z3() -> Interposer:
    return on_refusal(FINALIZE, lambda call: set_now(call.fd, z(3), 0))


@mutation("sve.finalize.unknown-einval")
def pointer_authentication_can_be_finalized() -> Interposer:
    return accept(FINALIZE, _about(5))


@mutation("sve.finalize.unknown-einval")
def finalize_takes_a_mask() -> Interposer:
    return accept(FINALIZE, _about(1 << 4))


@mutation("sve.finalize.unknown-einval")
def an_unknown_feature_is_eperm() -> Interposer:
    return drift(FINALIZE, errno.EPERM)


@mutation("sve.finalize.efault")
def finalize_without_a_number_succeeds() -> Interposer:
    return accept(FINALIZE, _to_null)


@mutation("sve.finalize.efault")
def a_failed_finalize_finalizes() -> Interposer:
    def finalize(call: Call) -> None:
        if _to_null(call):
            lib.vmm_ioctl(call.fd, lib.KVM_ARM_VCPU_FINALIZE, ffi.new("int *", 4))

    return on_refusal(FINALIZE, finalize)


@mutation("sve.finalize.vls-immutable")
def the_same_lengths_can_be_written_after_finalize() -> Interposer:
    return accept(SET, lambda call: of(VLS)(call) and not at_bad_address(call))


@mutation("sve.finalize.vls-immutable")
def a_bad_address_of_lengths_is_accepted() -> Interposer:
    return accept(SET, at_bad_address)


@mutation("sve.finalize.vls-immutable")
def a_refused_write_changes_the_lengths() -> Interposer:
    return once(SET, reading(flip(0, 2), VLS), refused=True)


@mutation("sve.finalize.reinit-before-finalize-resets-vls")
def init_keeps_the_chosen_lengths() -> Interposer:
    return after(INIT, lambda call: set_now(call.fd, VLS, ONLY_1), nth(2))


@mutation("sve.finalize.per-vcpu")
def one_vcpus_finalize_is_all_vcpus() -> Interposer:
    return accept(GET, group(_SVE_GROUP))


@mutation("sve.finalize.per-vcpu")
def only_all_vcpus_together_are_finalized() -> Interposer:
    return refuse(COMPLETE, errno.EPERM, nth(1))
