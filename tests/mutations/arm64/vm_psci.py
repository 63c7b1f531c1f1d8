# SPDX-License-Identifier: Apache-2.0
"""Lies about PSCI: calls, the power state, and what a reset vCPU is."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import (
    SET,
    flip,
    guest_left,
    number,
    of,
    reading,
    set_now,
    spoiled_exit,
    value,
    values,
)
from tests.mutations.lies import RUN, Proceed, accept, after, answer, called, nth, once, refuse
from tests.mutations.registry import lies, mutation
from vmm.arm64.registers import FFR, PC, SYSTEM, firmware, x, z
from vmm.kvm.ioctl import Call, Interposer

GET_MP, SET_MP = "KVM_GET_MP_STATE", "KVM_SET_MP_STATE"
_STOPPED, _RUNNABLE = 5, 0


# --- firmware registers ---------------------------------------------------------------------------


lies(
    "vm.psci-version",
    psci_0_1_is_accepted=lambda: accept(SET, lambda call: of(firmware(0))(call) and value(call)[0] == 1),
    psci_has_no_older_versions=lambda: refuse(
        SET, errno.EINVAL, lambda call: of(firmware(0))(call) and value(call)[0] == 2
    ),
    the_guest_is_told_another_version=lambda: guest_left("hvc", values(0, lambda old: old ^ 1)),
)

lies(
    "vm.psci-unknown",
    an_unknown_call_succeeds=lambda: guest_left("hvc", values(0, lambda old: 0)),
    an_unknown_call_answers_in_32_bits=lambda: guest_left("hvc", values(0, lambda old: old & 0xFFFFFFFF)),
)


@mutation("vm.psci-off")
def system_off_is_a_reset() -> Interposer:
    def change(call: Call) -> None:
        call.argument.run.system_event.type = 2

    return spoiled_exit(change)


@mutation("vm.psci-off")
def system_off_leaves_the_other_vcpu_running() -> Interposer:
    def change(call: Call) -> None:
        call.argument.mp_state = _RUNNABLE

    return after(GET_MP, change, nth(2))


@mutation("guest.psci-cpu-on-resets-sve")
def cpu_on_leaves_the_vcpu_stopped() -> Interposer:
    def change(call: Call) -> None:
        call.argument.mp_state = _STOPPED

    return after(GET_MP, change)


# --- MP state and events --------------------------------------------------------------------------


lies(
    "vm.mpstate",
    an_mp_state_of_x86_is_accepted=lambda: accept(SET_MP, lambda call: call.argument.mp_state == 3),
    a_vcpu_cannot_be_suspended=lambda: refuse(SET_MP, errno.EINVAL, lambda call: call.argument.mp_state == 10),
    a_vcpu_cannot_be_stopped=lambda: answer(SET_MP, 0, lambda call: call.argument.mp_state == _STOPPED),
)


# --- CPU_ON ---------------------------------------------------------------------------------------

lies(
    "guest.psci-cpu-on-resets-sve",
    cpu_on_leaves_z9=lambda: once(RUN, reading(number(0xA5), z(9))),
    cpu_on_leaves_ffr=lambda: once(RUN, reading(number(1), FFR)),
    cpu_on_leaves_zcr_el1=lambda: once(RUN, reading(number(1), SYSTEM["ZCR_EL1"])),
    cpu_on_loses_the_context=lambda: once(RUN, reading(number(0), x(0))),
    cpu_on_begins_elsewhere=lambda: once(RUN, reading(flip(0, 4), PC)),
)


@mutation("guest.psci-cpu-on-resets-sve")
def the_switched_on_vcpu_finds_another_x0() -> Interposer:
    def lose(call: Call, proceed: Proceed) -> int:
        if called(call) == RUN:
            set_now(call.fd, x(0), 7)
        return proceed()

    return once(RUN, lose)


# --- FINALIZE itself ------------------------------------------------------------------------------


lies("sve.finalize.psci-cpu-on", a_vcpu_that_is_not_finalized_is_switched_on_and_runs=lambda: answer(RUN, 0, nth(2)))

lies(
    "sve.finalize.psci-cpu-on",
    "guest.psci-cpu-on-resets-sve",
    cpu_on_is_denied=lambda: guest_left("hvc", values(0, lambda old: (1 << 64) - 3)),
)
