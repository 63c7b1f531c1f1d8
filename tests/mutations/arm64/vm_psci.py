# SPDX-License-Identifier: Apache-2.0
"""Lies about PSCI: calls, and the power state."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import SET, guest_left, of, spoiled_exit, value, values
from tests.mutations.lies import accept, after, answer, assign, nth, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import firmware

GET_MP, SET_MP = "KVM_GET_MP_STATE", "KVM_SET_MP_STATE"
_STOPPED, _RUNNABLE = 5, 0


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

lies(
    "vm.psci-off",
    system_off_is_a_reset=lambda: spoiled_exit(assign("run.system_event.type", 2)),
    system_off_leaves_the_other_vcpu_running=lambda: after(GET_MP, assign("mp_state", _RUNNABLE), nth(2)),
)

lies(
    "vm.mpstate",
    an_mp_state_of_x86_is_accepted=lambda: accept(SET_MP, lambda call: call.argument.mp_state == 3),
    a_vcpu_cannot_be_suspended=lambda: refuse(SET_MP, errno.EINVAL, lambda call: call.argument.mp_state == 10),
    a_vcpu_cannot_be_stopped=lambda: answer(SET_MP, 0, lambda call: call.argument.mp_state == _STOPPED),
)
