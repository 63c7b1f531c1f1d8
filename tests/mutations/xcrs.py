# SPDX-License-Identifier: Apache-2.0
"""Lies about XCR0."""

from __future__ import annotations

from collections.abc import Callable

from tests.mutations.registry import mutation
from vmm.ioctl import Call, Interposer


@mutation("xcrs.fresh")
def xcr0_of_a_fresh_vcpu_has_sse() -> Interposer:
    def lie(call: Call, proceed: Callable[[], int]) -> int:
        result = proceed()
        if call.name == "KVM_GET_XCRS":
            call.argument.xcrs[0].value |= 2
        return result

    return lie


@mutation("xcrs.rules", "xcrs.needs-cpuid-first", "mig.cpuid-first")
def every_value_is_accepted() -> Interposer:
    def lie(call: Call, proceed: Callable[[], int]) -> int:
        result = proceed()
        return 0 if call.name == "KVM_SET_XCRS" else result

    return lie
