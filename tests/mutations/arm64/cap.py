# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_CAP_ARM_SVE."""

from __future__ import annotations

from tests.mutations.lies import Condition, nth, succeed_with
from tests.mutations.registry import lies
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer


def _sve_capability(when: Condition) -> Interposer:
    """KVM_CAP_ARM_SVE is the opposite."""

    def asked(call: Call) -> bool:
        return bool(call.argument == lib.KVM_CAP_ARM_SVE) and when(call)

    return succeed_with("KVM_CHECK_EXTENSION", lambda call, result: 1 - result, asked)


lies(
    "cap.sve-matches-host",
    dev_kvm_says_the_opposite_about_sve=lambda: _sve_capability(nth(1)),
    a_vm_says_the_opposite_about_sve=lambda: _sve_capability(nth(2)),
)
