# SPDX-License-Identifier: Apache-2.0
"""The closed world: every register of every CPUID entry, and how many entries there are."""

from __future__ import annotations

import errno
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.world.generate import generate
from vmm.conformance.x86.world import GROUND
from vmm.kvm.vcpu import Vcpu
from vmm.state.x86.world.cpuid import CPUID
from vmm.x86.cpuid import get_cpuid
from vmm.x86.xsave import POISON

_ENTRY = 40  # sizeof(struct kvm_cpuid_entry2)

generate(__name__, GROUND, CPUID, "Documentation/virt/kvm/api.rst, KVM_SET_CPUID2, KVM_GET_CPUID2", ("kept", "moved"))


def _read(vcpu: Vcpu, buffer: Any) -> None:
    vcpu.ioctl(lib.KVM_GET_CPUID2, buffer)


@clause("world.cpuid-counted", arch="x86")
def counted(context: Context) -> None:
    """KVM_GET_CPUID2 takes a buffer for as many entries as there are, writes those only, and is E2BIG for fewer.

    What it says in nent on success is not looked at: Linux 6.1 leaves it as it is.

    Source: Documentation/virt/kvm/api.rst, KVM_GET_CPUID2; arch/x86/kvm/cpuid.c, kvm_vcpu_ioctl_get_cpuid2.
    """
    vcpu = GROUND.vcpu(context)
    table = get_cpuid(vcpu)
    for room in (0, 1, len(table) - 1):
        small = ffi.new("struct kvm_cpuid2 *", {"nent": room, "entries": len(table)})
        refused(f"KVM_GET_CPUID2 with room for {room} of {len(table)}", errno.E2BIG, _read, vcpu, small)
    for more in (0, 1):
        large = ffi.new("struct kvm_cpuid2 *", {"nent": len(table) + more, "entries": len(table) + 1})
        data = ffi.buffer(large.entries, _ENTRY * (len(table) + 1))
        data[:] = bytes([POISON]) * len(data)
        succeeds(f"KVM_GET_CPUID2 with room for {len(table) + more} of {len(table)}", _read, vcpu, large)
        equal("the entries", data[: len(table.packed)], table.packed)
        equal("what is behind them", data[len(table.packed) :], bytes([POISON]) * _ENTRY)
