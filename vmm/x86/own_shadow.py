# SPDX-License-Identifier: Apache-2.0
"""A user shadow stack of this process's own around KVM_RUN."""

from __future__ import annotations

from typing import NamedTuple

from vmm._kvm import ffi, lib
from vmm.kvm.exits import Exit
from vmm.kvm.vcpu import Vcpu

__all__ = ["OwnShadow", "own_shadow_stack", "run_with_shadow_stack"]


class OwnShadow(NamedTuple):
    """SSP before and after KVM_RUN; ``read`` is what WRSS wrote below it, another value where SSP has changed."""

    before: int
    after: int
    read: int


def own_shadow_stack() -> int:
    """Return 0 if this process can have a user shadow stack, else the errno of ARCH_SHSTK_ENABLE.

    EOPNOTSUPP is a CPU or a kernel without, EINVAL a kernel that was built without them.
    """
    return -int(lib.vmm_own_shadow_stack())


def run_with_shadow_stack(vcpu: Vcpu, value: int, timeout: float) -> tuple[Exit, OwnShadow]:
    """KVM_RUN while this thread has a shadow stack; return the exit and what it was.

    ``value`` is written to the shadow stack afterwards. Raises KvmError.
    """
    shadow = ffi.new("struct vmm_own_shadow *", {"value": value, "read": ~value & (1 << 64) - 1})
    exit = vcpu.run_holding(timeout, shadow=shadow)
    return exit, OwnShadow(shadow.before, shadow.after, shadow.read)
