# SPDX-License-Identifier: Apache-2.0
"""MSR filters: setting one, answering what it forwards to the VMM, and looking at whether it is in effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.x86.common import judged_call
from vmm.kvm.exits import MsrRead, MsrWrite
from vmm.kvm.vm import VirtualMachine
from vmm.x86.guest import DONE, Guest
from vmm.x86.msr import get_msr, name

__all__ = [
    "FILTER",
    "FORWARD",
    "READ",
    "WRITE",
    "Range",
    "allow_all",
    "denied",
    "forward",
    "forwarded",
    "let_through",
    "make",
    "set_filter",
]

FILTER = capability("KVM_CAP_X86_MSR_FILTER")
FORWARD = capability("KVM_CAP_X86_USER_SPACE_MSR")
READ, WRITE = int(lib.KVM_MSR_FILTER_READ), int(lib.KVM_MSR_FILTER_WRITE)
_ANSWER = 0x2A00


class Range(NamedTuple):
    """``allowed`` has a bit for each of ``nmsrs`` MSRs from ``base`` on; ``access`` is READ, WRITE or both."""

    base: int
    nmsrs: int = 1
    allowed: int = 0
    access: int = READ | WRITE


def set_filter(vm: VirtualMachine, ranges: Sequence[Range], *, deny: bool = False) -> None:
    """KVM_X86_SET_MSR_FILTER; what is in no range is denied if ``deny``, else allowed."""
    argument, _bitmaps = make(ranges, lib.KVM_MSR_FILTER_DEFAULT_DENY if deny else lib.KVM_MSR_FILTER_DEFAULT_ALLOW)
    vm.ioctl(lib.KVM_X86_SET_MSR_FILTER, argument)


def allow_all(vm: VirtualMachine) -> None:
    """Remove the filter."""
    set_filter(vm, ())


def forward(vm: VirtualMachine) -> None:
    """Have what a filter denies leave to the VMM."""
    vm.enable_cap(lib.KVM_CAP_X86_USER_SPACE_MSR, lib.KVM_MSR_EXIT_REASON_FILTER)


def make(ranges: Sequence[Range], flags: int) -> tuple[Any, list[Any]]:
    """Return a ``struct kvm_msr_filter *`` and the bitmaps that it points at, which have to outlive the call."""
    value = ffi.new("struct kvm_msr_filter *", {"flags": flags})
    bitmaps = []
    for row, one in zip(value.ranges, ranges, strict=False):
        bitmap = ffi.new("__u8[]", one.allowed.to_bytes(8 * (-(-one.nmsrs // 64)), "little"))
        bitmaps.append(bitmap)
        row.base, row.nmsrs, row.flags, row.bitmap = one.base, one.nmsrs, one.access, bitmap
    return value, bitmaps


def let_through(context: Context, guest: Guest, msr: int, value: int) -> None:
    """The guest writes and reads an MSR, which the host sees."""
    judged_call(context, guest, "wrmsr", msr, value)
    equal(f"faults of WRMSR {name(msr)}", guest.mailbox.read("values", 15), 0)
    equal(f"{name(msr)} for the host", get_msr(guest.vcpu, msr), value)
    judged_call(context, guest, "rdmsr", msr)
    equal(f"faults of RDMSR {name(msr)}", guest.mailbox.read("values", 15), 0)
    equal(f"{name(msr)} in the guest", guest.mailbox.values[0], value)


def denied(context: Context, guest: Guest, msr: int, value: int, access: int = READ | WRITE) -> None:
    """The guest takes #GP at each ``access`` to an MSR that the host finds unchanged."""
    before = get_msr(guest.vcpu, msr)
    for entry in ("rdmsr",) * bool(access & READ) + ("wrmsr",) * bool(access & WRITE):
        judged_call(context, guest, entry, msr, value)
        equal(f"faults of {entry.upper()} {name(msr)}", guest.mailbox.read("values", 15), 1)
        equal(f"the fault of {entry.upper()} {name(msr)}", guest.fault().name, "#GP")
        equal(f"{name(msr)} after it", get_msr(guest.vcpu, msr), before)


def forwarded(context: Context, guest: Guest, msr: int, value: int) -> None:
    """RDMSR and WRMSR of an MSR leave to the VMM, whose answers the guest gets and KVM does not keep."""
    before = get_msr(guest.vcpu, msr)
    _leave(context, guest, "rdmsr", MsrRead(msr), msr)
    guest.vcpu.kvm_run.msr.data = _ANSWER
    _go_on(context, guest, "rdmsr", 0)
    equal(f"the answer to RDMSR {name(msr)}", guest.mailbox.values[0], _ANSWER)
    _leave(context, guest, "wrmsr", MsrWrite(msr, value), msr, value)
    _go_on(context, guest, "wrmsr", 0)
    equal(f"{name(msr)} after WRMSR to the VMM", get_msr(guest.vcpu, msr), before)
    for entry, exit in (("rdmsr", MsrRead(msr)), ("wrmsr", MsrWrite(msr, value))):
        _leave(context, guest, entry, exit, msr, value)
        guest.vcpu.kvm_run.msr.error = 1
        _go_on(context, guest, entry, 1)
        equal(f"the fault of {entry.upper()} {name(msr)} that the VMM refuses", guest.fault().name, "#GP")


def _leave(context: Context, guest: Guest, entry: str, exit: MsrRead | MsrWrite, *parameters: int) -> None:
    guest.prepare(entry, *parameters)
    equal(f"the exit of {entry.upper()}", succeeds(f"{entry} in the guest", guest.resume, context.timeout), exit)
    reason = guest.vcpu.kvm_run.msr.reason
    equal(f"the reason of {entry.upper()}'s exit", reason, lib.KVM_MSR_EXIT_REASON_FILTER)


def _go_on(context: Context, guest: Guest, entry: str, faults: int) -> None:
    with judged(f"{entry} in the guest, answered"):
        equal("the guest's event", guest.finish(guest.resume(context.timeout), entry), DONE)
    equal(f"faults of {entry.upper()}, answered", guest.mailbox.read("values", 15), faults)
