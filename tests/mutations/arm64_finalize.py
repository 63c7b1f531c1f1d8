# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_ARM_VCPU_FINALIZE and the set of vector lengths."""

from __future__ import annotations

import errno

from tests.mutations.arm64_lies import (
    FINALIZE,
    GET,
    INIT,
    LIST,
    SET,
    at_bad_address,
    behind,
    flip,
    forget,
    get_now,
    group,
    guest_left,
    leave_out,
    number,
    of,
    on_refusal,
    reading,
    set_now,
    value,
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
    both,
    called,
    drift,
    nth,
    once,
    refuse,
    succeed_with,
)
from tests.mutations.registry import mutation
from vmm._kvm import ffi, lib
from vmm.arm64.registers import FFR, FPCR, PC, SYSTEM, VLS, Register, firmware, p, x, z
from vmm.kvm.ioctl import Call, Interposer

_SVE_GROUP = 0x15
_ONLY_1 = 1


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
    return after(INIT, lambda call: set_now(call.fd, VLS, _ONLY_1), nth(2))


@mutation("sve.finalize.per-vcpu")
def one_vcpus_finalize_is_all_vcpus() -> Interposer:
    return accept(GET, group(_SVE_GROUP))


@mutation("sve.finalize.per-vcpu")
def only_all_vcpus_together_are_finalized() -> Interposer:
    return refuse(COMPLETE, errno.EPERM, nth(1))


@mutation("sve.finalize.psci-cpu-on")
def a_vcpu_that_is_not_finalized_is_switched_on_and_runs() -> Interposer:
    return answer(RUN, 0, nth(2))


@mutation("sve.finalize.psci-cpu-on", "guest.psci-cpu-on-resets-sve")
def cpu_on_is_denied() -> Interposer:
    return guest_left("hvc", values(0, lambda old: (1 << 64) - 3))


# --- the set of vector lengths --------------------------------------------------------------------


@mutation("sve.vls.encoding")
def the_last_word_of_the_lengths_is_not_written() -> Interposer:
    return leave_out(56, VLS)


@mutation("sve.vls.encoding")
def more_than_64_bytes_of_lengths_are_written() -> Interposer:
    return behind(64, VLS)


@mutation("sve.vls.encoding")
def the_shortest_vectors_are_missing() -> Interposer:
    return reading(flip(0), VLS)


@mutation("sve.vls.encoding")
def there_are_vectors_of_4096_bits() -> Interposer:
    return reading(flip(3, 0x80), VLS)


@mutation("sve.vls.initial-equals-host-probe", "sve.finalize.vls-readable-always")
def a_fresh_vcpu_has_other_lengths_than_the_host() -> Interposer:
    return reading(flip(0, 2), VLS)


@mutation("sve.vls.initial-equals-host-probe")
def the_host_has_128_bits_alone() -> Interposer:
    return succeed_with("PR_SVE_SET_VL", lambda call, result: 16)


@mutation("sve.vls.prefix-ok", "sve.vls.rewrite", "sve.vls.failed-write-no-effect", "sve.vls.per-vcpu")
def lengths_cannot_be_chosen() -> Interposer:
    return refuse(SET, errno.EINVAL, of(VLS))


@mutation("sve.vls.prefix-ok", "sve.vls.rewrite", "sve.vls.guest-agrees", "sve.vls.superset-host-hole")
def chosen_lengths_are_forgotten() -> Interposer:
    return forget(VLS)


@mutation(
    "sve.vls.empty-einval", "sve.vls.gap-einval", "sve.vls.unsupported-vq-einval", "sve.vls.above-max-einval",
    "sve.vls.bigger-than-host-rejected-cleanly", "sve.vls.superset-host-hole", "sve.vls.failed-write-no-effect",
)  # fmt: skip
def every_set_of_lengths_is_accepted() -> Interposer:
    return accept(SET, lambda call: of(VLS)(call) and not at_bad_address(call))


@mutation("sve.vls.empty-einval")
def no_lengths_at_all_means_all() -> Interposer:
    def empty(call: Call) -> bool:
        return of(VLS)(call) and not any(value(call))

    return accept(SET, empty)


@mutation("sve.vls.above-max-einval")
def the_last_bit_of_the_lengths_is_ignored() -> Interposer:
    return accept(SET, lambda call: of(VLS)(call) and value(call)[63] == 0x80)


@mutation("sve.vls.gap-einval", "sve.vls.failed-write-no-effect", "sve.vls.empty-einval")
def a_refused_set_takes_effect() -> Interposer:
    return once(SET, reading(flip(0, 2), VLS), refused=True)


@mutation("sve.vls.failed-write-no-effect")
def lengths_from_a_bad_address_are_accepted() -> Interposer:
    return accept(SET, at_bad_address)


@mutation("sve.vls.rewrite")
def finalize_takes_all_lengths() -> Interposer:
    widest = bytearray()

    def remember(call: Call) -> None:
        if not widest:
            widest[:] = get_now(call.fd, VLS)

    def widen(call: Call, proceed: Proceed) -> int:
        if called(call) == FINALIZE:
            set_now(call.fd, VLS, int.from_bytes(widest, "little"))
        return proceed()

    return both(after(INIT, remember), widen)


@mutation("sve.vls.nonsve-enoent")
def lengths_can_be_read_without_sve() -> Interposer:
    return accept(GET, of(VLS))


@mutation("sve.vls.nonsve-enoent")
def lengths_can_be_written_without_sve() -> Interposer:
    return accept(SET, of(VLS))


def _sized(size: int) -> Condition:
    """Met by the lengths' number with another size."""
    return of(Register(VLS & ~(0xF << 52) | size << 52))


@mutation("sve.vls.wrong-size-einval")
def lengths_can_be_read_in_64_bits() -> Interposer:
    return accept(GET, _sized(3))


@mutation("sve.vls.wrong-size-einval")
def lengths_can_be_written_in_2048_bits() -> Interposer:
    return accept(SET, _sized(8))


@mutation("sve.vls.wrong-size-einval")
def a_write_of_another_size_takes_effect() -> Interposer:
    return on_refusal(SET, lambda call: set_now(call.fd, VLS, _ONLY_1))


@mutation("sve.vls.guest-agrees")
def the_guest_gets_one_length_too_much() -> Interposer:
    return guest_left("lengths", values(0, lambda old: old + 16), payload="sve")


@mutation("sve.vls.guest-agrees")
def the_guest_is_capped_at_128_bits() -> Interposer:
    return guest_left("lengths", values(15, lambda old: 8), payload="sve")


@mutation("sve.vls.bigger-than-host-rejected-cleanly")
def a_refused_set_leaves_a_vcpu_that_cannot_be_finalized() -> Interposer:
    return refuse(FINALIZE, errno.EPERM)


@mutation("sve.vls.bigger-than-host-rejected-cleanly")
def a_refused_set_leaves_a_vcpu_that_cannot_run() -> Interposer:
    return refuse(COMPLETE, errno.EPERM)


@mutation("sve.vls.superset-host-hole")
def a_set_of_the_first_length_alone_is_refused() -> Interposer:
    return refuse(SET, errno.EINVAL, lambda call: of(VLS)(call) and value(call)[0] == _ONLY_1)


@mutation("sve.vls.per-vcpu")
def all_vcpus_of_a_vm_have_the_lengths_of_the_last() -> Interposer:
    return reading(number(_ONLY_1), VLS)
