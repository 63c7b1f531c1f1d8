# SPDX-License-Identifier: Apache-2.0
"""Lies about registers in restoring."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import (
    EVENTS,
    SET,
    VBAR,
    flip,
    forget,
    get_now,
    list_without,
    of,
    reading,
    set_now,
    widest,
)
from tests.mutations.lies import RUN, accept, after, assign, nth, once, refuse
from tests.mutations.registry import lies, mutation
from vmm.arm64.registers import SYSTEM, VLS, x, z
from vmm.kvm.ioctl import Call, Interposer

ZCR = SYSTEM["ZCR_EL1"]


lies("mig.sve-idempotent", "mig.order-free", "mig.sve-guest-goes-on", z3_is_not_restored=lambda: forget(widest(3)))

lies(
    "mig.sve-idempotent",
    "mig.order-free",
    a_system_register_is_restored_wrong=lambda: once(RUN, reading(flip(1, 8), SYSTEM["MAIR_EL1"])),
)

lies(
    "mig.sve-idempotent",
    the_restored_vcpu_lists_one_register_less=lambda: list_without(VBAR, 2),
    the_restored_vcpu_has_an_event_pending=lambda: after(EVENTS, assign("exception.serror_pending", 1), nth(2)),
)

lies(
    "mig.sve-idempotent",
    "mig.order-free",
    the_restored_vcpu_is_stopped=lambda: after("KVM_GET_MP_STATE", assign("mp_state", 5), nth(2)),
)


@mutation("mig.sve-guest-goes-on")
def the_moved_guest_leaves_once_more() -> Interposer:
    def one_more(call: Call) -> None:
        set_now(call.fd, x(2), int.from_bytes(get_now(call.fd, x(2)), "little") + 1)

    return after(SET, one_more, of(x(2)))


lies(
    "mig.list-order-fails",
    z0_can_be_written_before_finalize=lambda: accept(SET, of(z(0))),
    the_lengths_can_be_written_again=lambda: accept(SET, of(VLS)),
    a_core_register_cannot_be_written_before_finalize=lambda: refuse(SET, errno.EPERM, of(x(0))),
)


@mutation("mig.order-free")
def writing_zcr_el1_cuts_z_off() -> Interposer:
    def cut(call: Call) -> None:
        set_now(call.fd, z(5), int.from_bytes(get_now(call.fd, z(5))[:16], "little"))

    return after(SET, cut, of(ZCR))
