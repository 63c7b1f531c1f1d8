# SPDX-License-Identifier: Apache-2.0
"""Lies about the set of vector lengths."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import (
    FINALIZE,
    GET,
    INIT,
    ONLY_1,
    SET,
    at_bad_address,
    behind,
    flip,
    forget,
    get_now,
    guest_left,
    leave_out,
    number,
    of,
    reading,
    set_now,
    value,
    values,
)
from tests.mutations.lies import (
    COMPLETE,
    Condition,
    Proceed,
    accept,
    after,
    both,
    called,
    on_refusal,
    once,
    refuse,
    succeed_with,
)
from tests.mutations.registry import lies, mutation
from vmm.arm64.registers import VLS, Register
from vmm.kvm.ioctl import Call, Interposer

lies(
    "sve.vls.encoding",
    the_last_word_of_the_lengths_is_not_written=lambda: leave_out(56, VLS),
    more_than_64_bytes_of_lengths_are_written=lambda: behind(64, VLS),
    the_shortest_vectors_are_missing=lambda: reading(flip(0), VLS),
    there_are_vectors_of_4096_bits=lambda: reading(flip(3, 0x80), VLS),
)

lies(
    "sve.vls.initial-equals-host-probe",
    "sve.finalize.vls-readable-always",
    a_fresh_vcpu_has_other_lengths_than_the_host=lambda: reading(flip(0, 2), VLS),
)

lies(
    "sve.vls.initial-equals-host-probe",
    the_host_has_128_bits_alone=lambda: succeed_with("PR_SVE_SET_VL", lambda call, result: 16),
)

lies(
    "sve.vls.prefix-ok",
    "sve.vls.rewrite",
    "sve.vls.failed-write-no-effect",
    "sve.vls.per-vcpu",
    lengths_cannot_be_chosen=lambda: refuse(SET, errno.EINVAL, of(VLS)),
)

lies(
    "sve.vls.prefix-ok",
    "sve.vls.rewrite",
    "sve.vls.guest-agrees",
    "sve.vls.superset-host-hole",
    chosen_lengths_are_forgotten=lambda: forget(VLS),
)

lies(
    "sve.vls.empty-einval",
    "sve.vls.gap-einval",
    "sve.vls.unsupported-vq-einval",
    "sve.vls.above-max-einval",
    "sve.vls.bigger-than-host-rejected-cleanly",
    "sve.vls.superset-host-hole",
    "sve.vls.failed-write-no-effect",
    every_set_of_lengths_is_accepted=lambda: accept(SET, lambda call: of(VLS)(call) and not at_bad_address(call)),
)


@mutation("sve.vls.empty-einval")
def no_lengths_at_all_means_all() -> Interposer:
    def empty(call: Call) -> bool:
        return of(VLS)(call) and not any(value(call))

    return accept(SET, empty)


lies(
    "sve.vls.above-max-einval",
    the_last_bit_of_the_lengths_is_ignored=lambda: accept(
        SET, lambda call: of(VLS)(call) and value(call)[63] == 0x80
    ),
)

lies(
    "sve.vls.gap-einval",
    "sve.vls.failed-write-no-effect",
    "sve.vls.empty-einval",
    a_refused_set_takes_effect=lambda: once(SET, reading(flip(0, 2), VLS), refused=True),
)

lies("sve.vls.failed-write-no-effect", lengths_from_a_bad_address_are_accepted=lambda: accept(SET, at_bad_address))


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


lies(
    "sve.vls.nonsve-enoent",
    lengths_can_be_read_without_sve=lambda: accept(GET, of(VLS)),
    lengths_can_be_written_without_sve=lambda: accept(SET, of(VLS)),
)


def _sized(size: int) -> Condition:
    """Met by the lengths' number with another size."""
    return of(Register(VLS & ~(0xF << 52) | size << 52))


lies(
    "sve.vls.wrong-size-einval",
    lengths_can_be_read_in_64_bits=lambda: accept(GET, _sized(3)),
    lengths_can_be_written_in_2048_bits=lambda: accept(SET, _sized(8)),
    a_write_of_another_size_takes_effect=lambda: on_refusal(SET, lambda call: set_now(call.fd, VLS, ONLY_1)),
)

lies(
    "sve.vls.guest-agrees",
    the_guest_gets_one_length_too_much=lambda: guest_left("lengths", values(0, lambda old: old + 16), payload="sve"),
    the_guest_is_capped_at_128_bits=lambda: guest_left("lengths", values(15, lambda old: 8), payload="sve"),
)

lies(
    "sve.vls.bigger-than-host-rejected-cleanly",
    a_refused_set_leaves_a_vcpu_that_cannot_be_finalized=lambda: refuse(FINALIZE, errno.EPERM),
    a_refused_set_leaves_a_vcpu_that_cannot_run=lambda: refuse(COMPLETE, errno.EPERM),
)

lies(
    "sve.vls.superset-host-hole",
    a_set_of_the_first_length_alone_is_refused=lambda: refuse(
        SET, errno.EINVAL, lambda call: of(VLS)(call) and value(call)[0] == ONLY_1
    ),
)

lies("sve.vls.per-vcpu", all_vcpus_of_a_vm_have_the_lengths_of_the_last=lambda: reading(number(ONLY_1), VLS))
