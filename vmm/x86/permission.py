# SPDX-License-Identifier: Apache-2.0
"""Permission for dynamic xfeatures: the arch_prctl calls, and what KVM could give a guest.

The guest permission belongs to the process, is inherited by fork, cleared by exec, and frozen when the
process creates its first vCPU. Source: Documentation/arch/x86/xstate.rst; arch/x86/kernel/fpu/xstate.c,
fpu_xstate_prctl.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import KvmError, arch_prctl, arch_prctl_value

if TYPE_CHECKING:
    from vmm.kvm.system import Kvm  # what is executed for one answer has no use for it

__all__ = [
    "guest_permitted",
    "guest_supported",
    "host_permitted",
    "host_supported",
    "request_guest",
    "request_host",
]


def _get(code: int) -> int:
    value = ffi.new("uint64_t *")
    arch_prctl(code, value)
    return int(value[0])


def host_supported() -> int:
    """ARCH_GET_XCOMP_SUPP: the user xfeatures the host kernel supports. EINVAL before Linux 5.16."""
    return _get(lib.ARCH_GET_XCOMP_SUPP)


def host_permitted() -> int:
    """ARCH_GET_XCOMP_PERM: the xfeatures this process may use itself."""
    return _get(lib.ARCH_GET_XCOMP_PERM)


def guest_permitted() -> int:
    """ARCH_GET_XCOMP_GUEST_PERM: the xfeatures this process may give to guests. EINVAL before 5.17."""
    return _get(lib.ARCH_GET_XCOMP_GUEST_PERM)


def request_host(feature: int) -> None:
    """ARCH_REQ_XCOMP_PERM for one component number."""
    arch_prctl_value(lib.ARCH_REQ_XCOMP_PERM, feature)


def request_guest(feature: int) -> None:
    """ARCH_REQ_XCOMP_GUEST_PERM for one component number (18 is AMX).

    EBUSY after this process created a vCPU, EOPNOTSUPP if the CPU or kernel lacks it, EINVAL if the number
    is beyond what the kernel knows.
    """
    arch_prctl_value(lib.ARCH_REQ_XCOMP_GUEST_PERM, feature)


def guest_supported(kvm: Kvm) -> int:
    """KVM_X86_XCOMP_GUEST_SUPP: the xfeatures KVM could give a guest, whatever the permission."""
    value = ffi.new("uint64_t *")
    kvm.get_attribute(lib.KVM_X86_GRP_SYSTEM, lib.KVM_X86_XCOMP_GUEST_SUPP, value)
    return int(value[0])


def _probe() -> None:
    """Print what a fresh process may do: the answer after exec."""
    answer = {"guest_permitted": guest_permitted(), "request_errno": 0}
    try:
        request_guest(18)
    except KvmError as error:
        answer["request_errno"] = error.errno or -1
    print(json.dumps(answer))


if __name__ == "__main__":
    _probe()
