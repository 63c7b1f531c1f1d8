# SPDX-License-Identifier: Apache-2.0
"""The closed world: every field of kvmclock, which goes on from where it was set."""

from __future__ import annotations

import time
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import judged, true
from vmm.conformance.registry import clause
from vmm.conformance.world.generate import generate
from vmm.conformance.x86.world import MACHINE
from vmm.kvm.vm import VirtualMachine
from vmm.state.x86.world.clock import CLOCK, REALTIME

_SECOND = 1_000_000_000
_VALUES = (1 << 62, 5 * _SECOND, 1 << 40)
# How far the host's clocks may be apart: of TSC and timekeeping, or slewed.
_APART = _SECOND // 10

generate(__name__, MACHINE, CLOCK, "Documentation/virt/kvm/api.rst, 4.29, 4.30", ("fresh", "refused"))


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
