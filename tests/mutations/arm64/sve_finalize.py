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
    guest_left,
    of,
    reading,
    set_now,
    values,
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
    on_refusal,
    once,
    refuse,
)
from tests.mutations.registry import lies, mutation
from vmm._kvm import ffi, lib
from vmm.arm64.registers import FFR, FPCR, PC, SYSTEM, VLS, Group, firmware, p, x, z
from vmm.kvm.ioctl import Call, Interposer


def _about(feature: int) -> Condition:
    """Met by a FINALIZE of this number."""
    return lambda call: call.argument != ffi.NULL and call.argument[0] == feature


def _to_null(call: Call) -> bool:
    return bool(call.argument == ffi.NULL)


lies(
    "sve.finalize.run-before-eperm",
    "sve.finalize.unknown-einval",
    "sve.finalize.efault",
    "sve.finalize.per-vcpu",
    a_vcpu_runs_without_finalize=lambda: answer(RUN, 0),
)

lies(
    "sve.finalize.run-before-eperm",
    another_thread_may_run_it=lambda: answer(RUN, 0, nth(3)),
    the_refused_run_moves_pc=lambda: on_refusal(RUN, lambda call: set_now(call.fd, PC, 0x1004)),
)

lies(
    "sve.finalize.run-before-eperm",
    "sve.finalize.twice-eperm",
    "sve.finalize.nonsve-einval",
    a_finalized_vcpu_cannot_run=lambda: refuse(COMPLETE, errno.EPERM),
)

lies(
    "sve.finalize.reglist-before-eperm",
    registers_are_listed_before_finalize=lambda: answer(LIST, 0),
    the_list_is_looked_at_first=lambda: drift(LIST, errno.EFAULT, _to_null),
)

lies(
    "sve.finalize.zpf-before-eperm",
    z4_can_be_read_before_finalize=lambda: accept(GET, of(z(4))),
    p15_can_be_written_before_finalize=lambda: accept(SET, of(p(15))),
    ffr_is_not_0_after_finalize=lambda: reading(flip(0), FFR),
)


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


lies(
    "sve.finalize.core-sysreg-before-ok",
    fpcr_cannot_be_written_before_finalize=lambda: refuse(SET, errno.EPERM, of(FPCR)),
    zcr_el1_cannot_be_read_before_finalize=lambda: refuse(GET, errno.EPERM, of(SYSTEM["ZCR_EL1"])),
    a_firmware_register_cannot_be_written_before_finalize=lambda: refuse(SET, errno.EPERM, of(firmware(1))),
    finalize_resets_x30=lambda: after(FINALIZE, lambda call: set_now(call.fd, x(30), 0)),
)

lies(
    "sve.finalize.vls-readable-always",
    the_lengths_cannot_be_read_before_finalize=lambda: refuse(GET, errno.EPERM, nth(1)),
)

lies(
    "sve.finalize.vls-readable-always",
    "sve.vls.prefix-ok",
    finalize_changes_the_lengths=lambda: once(FINALIZE, reading(flip(0, 2), VLS)),
)

lies(
    "sve.finalize.twice-eperm",
    "sve.finalize.nonsve-einval",
    "init.reinit-zeroes-sve",
    finalize_is_always_accepted=lambda: accept(FINALIZE),
)

lies(
    "sve.finalize.twice-eperm",
    a_second_finalize_clears_z3=lambda: on_refusal(FINALIZE, lambda call: set_now(call.fd, z(3), 0)),
)

lies(
    "sve.finalize.unknown-einval",
    pointer_authentication_can_be_finalized=lambda: accept(FINALIZE, _about(5)),
    finalize_takes_a_mask=lambda: accept(FINALIZE, _about(1 << 4)),
    an_unknown_feature_is_eperm=lambda: drift(FINALIZE, errno.EPERM),
)

lies("sve.finalize.efault", finalize_without_a_number_succeeds=lambda: accept(FINALIZE, _to_null))


@mutation("sve.finalize.efault")
def a_failed_finalize_finalizes() -> Interposer:
    def finalize(call: Call) -> None:
        if _to_null(call):
            lib.vmm_ioctl(call.fd, lib.KVM_ARM_VCPU_FINALIZE, ffi.new("int *", 4))

    return on_refusal(FINALIZE, finalize)


lies(
    "sve.finalize.vls-immutable",
    the_same_lengths_can_be_written_after_finalize=lambda: accept(
        SET, lambda call: of(VLS)(call) and not at_bad_address(call)
    ),
    a_bad_address_of_lengths_is_accepted=lambda: accept(SET, at_bad_address),
    a_refused_write_changes_the_lengths=lambda: once(SET, reading(flip(0, 2), VLS), refused=True),
)

lies(
    "sve.finalize.reinit-before-finalize-resets-vls",
    init_keeps_the_chosen_lengths=lambda: after(INIT, lambda call: set_now(call.fd, VLS, ONLY_1), nth(2)),
)

lies(
    "sve.finalize.per-vcpu",
    one_vcpus_finalize_is_all_vcpus=lambda: accept(GET, group(Group.SVE)),
    only_all_vcpus_together_are_finalized=lambda: refuse(COMPLETE, errno.EPERM, nth(1)),
)

lies("sve.finalize.psci-cpu-on", a_vcpu_that_is_not_finalized_is_switched_on_and_runs=lambda: answer(RUN, 0, nth(2)))

lies(
    "sve.finalize.psci-cpu-on",
    "guest.psci-cpu-on-resets-sve",
    cpu_on_is_denied=lambda: guest_left("hvc", values(0, lambda old: (1 << 64) - 3)),
)
