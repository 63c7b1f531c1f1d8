# SPDX-License-Identifier: Apache-2.0
"""The closed world: every field of kvmclock, which goes on from where it was set."""

from __future__ import annotations

import errno
import time
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, refused, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.world.generate import generate
from vmm.conformance.x86.common import judged_call
from vmm.conformance.x86.world import MACHINE
from vmm.kvm.vm import VirtualMachine
from vmm.state.x86.world.clock import CLOCK, REALTIME
from vmm.x86.boot import TYPED_PAGES
from vmm.x86.guest import Guest
from vmm.x86.msr import set_msr

_SECOND = 1_000_000_000
_VALUES = (1 << 62, 5 * _SECOND, 1 << 40)
# How far the host's clocks may be apart: of TSC and timekeeping, or slewed.
_APART = _SECOND // 10
# Where the guest has its time: a page that nothing else uses. Its flags, and which says that it was stopped.
_SYSTEM_TIME, _TIME = 0x4B564D01, TYPED_PAGES
_FLAGS, _GUEST_STOPPED = 29, 2

generate(__name__, MACHINE, CLOCK, "Documentation/virt/kvm/api.rst, 4.29, 4.30", ("refused",))


def _set(vm: VirtualMachine, **fields: int) -> None:
    with judged("KVM_SET_CLOCK"):
        vm.ioctl(lib.KVM_SET_CLOCK, ffi.new("struct kvm_clock_data *", fields))


def _goes_on(vm: VirtualMachine, what: str, value: int, since: int) -> None:
    """The clock is the value and what has passed since then, by the host's monotonic clock."""
    with judged("KVM_GET_CLOCK"):
        found: Any = vm.get(lib.KVM_GET_CLOCK, "kvm_clock_data")
    passed = time.monotonic_ns() - since
    lowest, highest = value - _APART, value + passed + _APART
    true(f"the clock after {what}", lowest <= found.clock <= highest, int(found.clock), f"{lowest} to {highest}")


@clause("world.clock-kept", arch="x86")
def kept(context: Context) -> None:
    """KVM_SET_CLOCK sets the clock, forward and backward, and from there it counts nanoseconds.

    With KVM_CLOCK_REALTIME what has passed since that time is added.

    Source: Documentation/virt/kvm/api.rst, 4.30; arch/x86/kvm/x86.c, kvm_vm_ioctl_set_clock, get_kvmclock.
    """
    vm = context.vm()
    for value in _VALUES:
        since = time.monotonic_ns()
        _set(vm, clock=value)
        _goes_on(vm, f"it was set to {value}", value, since)
    if vm.check_extension(lib.KVM_CAP_ADJUST_CLOCK) & REALTIME:
        since, now = time.monotonic_ns(), time.time_ns()
        _set(vm, clock=_SECOND, flags=REALTIME, realtime=now - 100 * _SECOND)
        _goes_on(vm, "it was set with a time of 100 s ago", 101 * _SECOND, since)
        _set(vm, clock=_SECOND, flags=REALTIME, realtime=now + 100 * _SECOND)
        _goes_on(vm, "it was set with a time to come", _SECOND, since)


@clause("world.clock-stopped", arch="x86")
def stopped(context: Context) -> None:
    """KVM_KVMCLOCK_CTRL tells a guest with kvmclock at its next run that it was stopped; without that it is EINVAL.

    Source: Documentation/virt/kvm/api.rst, 4.70; arch/x86/kvm/x86.c, kvm_set_guest_paused, kvm_guest_time_update;
    arch/x86/include/asm/pvclock-abi.h.
    """
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    refused("KVM_KVMCLOCK_CTRL without kvmclock", errno.EINVAL, guest.vcpu.ioctl_value, lib.KVM_KVMCLOCK_CTRL)
    if not set_msr(guest.vcpu, _SYSTEM_TIME, _TIME | 1):
        context.skip("needs kvmclock: KVM refuses MSR_KVM_SYSTEM_TIME_NEW")
    for what, bit in (("before", 0), ("after", _GUEST_STOPPED)):
        if bit:
            succeeds("KVM_KVMCLOCK_CTRL", guest.vcpu.ioctl_value, lib.KVM_KVMCLOCK_CTRL)
        judged_call(context, guest, "cpuid", 0, 0)
        seen = guest.memory.read(_TIME + _FLAGS, 1)[0]
        equal(f"PVCLOCK_GUEST_STOPPED in the guest {what} KVM_KVMCLOCK_CTRL", seen & _GUEST_STOPPED, bit)
