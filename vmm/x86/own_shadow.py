# SPDX-License-Identifier: Apache-2.0
"""A user shadow stack of this process's own around KVM_RUN."""

from __future__ import annotations

from typing import NamedTuple

from vmm._kvm import ffi, lib
from vmm.kvm import ioctl as door
from vmm.kvm.exits import Deadline, Exit, decode
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
    control = ffi.new(
        "struct vmm_run_control *",
        {"fd": vcpu.fd, "run": vcpu.kvm_run, "shadow": shadow, "budget": 1, "timeout_ns": int(timeout * 1e9)},
    )
    while (reason := door.run(control)) == lib.VMM_RUN_SIGNAL:
        pass
    exit = Deadline() if reason == lib.VMM_RUN_DEADLINE else decode(vcpu.page)
    return exit, OwnShadow(shadow.before, shadow.after, shadow.read)
