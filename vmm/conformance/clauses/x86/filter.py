# SPDX-License-Identifier: Apache-2.0
"""MSR filters, on MSRs that every guest has: what they deny and allow, and who is asked instead."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import judged_call
from vmm.conformance.x86.msr_filter import (
    FILTER,
    FORWARD,
    READ,
    WRITE,
    Range,
    allow_all,
    denied,
    forward,
    forwarded,
    let_through,
    make,
    set_filter,
)
from vmm.x86.guest import Guest
from vmm.x86.msr import get_msr, name, set_msr
from vmm.x86.msr_names import Msr

# Three MSRs in a row, which Intel and AMD pass through to the CPU.
_CS, _ESP, _EIP = Msr.SYSENTER_CS, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP


def _guest(context: Context) -> Guest:
    """A guest that has used the three, as its host sees."""
    guest = context.own(Guest(context.kvm, "hello"))
    for msr, value in {_CS: 0x10, _ESP: 0x1110, _EIP: 0x2220}.items():
        let_through(context, guest, msr, value)
    return guest


@clause("filter.bitmap", arch="x86", needs=(FILTER,))
def by_bitmap(context: Context) -> None:
    """A range denies the MSRs whose bits are clear, for the accesses that it names, by #GP, and no others.

    Source: Documentation/virt/kvm/api.rst, KVM_X86_SET_MSR_FILTER; arch/x86/kvm/x86.c, kvm_msr_allowed.
    """
    guest = _guest(context)
    both = Range(_CS, 3, 0b010)
    succeeds("the filter", set_filter, guest.vm, [both])
    denied(context, guest, _CS, 0x20)
    let_through(context, guest, _ESP, 0x3330)
    denied(context, guest, _EIP, 0x4440)
    succeeds("a filter of reads", set_filter, guest.vm, [Range(_CS, 1, 0, READ), Range(_CS, 1, 1, WRITE)])
    denied(context, guest, _CS, 0x20, READ)
    _written(context, guest, _CS, 0x30)
    succeeds("a filter of writes", set_filter, guest.vm, [Range(_EIP, 1, 0, WRITE)])
    denied(context, guest, _EIP, 0x5550, WRITE)
    _read(context, guest, _EIP, 0x2220)
    let_through(context, guest, _CS, 0x40)


def _written(context: Context, guest: Guest, msr: int, value: int) -> None:
    judged_call(context, guest, "wrmsr", msr, value)
    equal(f"faults of WRMSR {name(msr)}", guest.mailbox.read("values", 15), 0)
    equal(f"{name(msr)} for the host", get_msr(guest.vcpu, msr), value)


def _read(context: Context, guest: Guest, msr: int, value: int) -> None:
    judged_call(context, guest, "rdmsr", msr)
    equal(f"faults of RDMSR {name(msr)}", guest.mailbox.read("values", 15), 0)
    equal(f"{name(msr)} in the guest", guest.mailbox.values[0], value)


@clause("filter.default", arch="x86", needs=(FILTER,))
def by_default(context: Context) -> None:
    """What no range has is denied or allowed as the filter's flags say; the host's own calls are never filtered.

    Source: Documentation/virt/kvm/api.rst, KVM_X86_SET_MSR_FILTER (default deny); arch/x86/kvm/x86.c, do_get_msr.
    """
    guest = _guest(context)
    succeeds("the filter that denies", set_filter, guest.vm, [Range(_ESP, 1, 1)], deny=True)
    let_through(context, guest, _ESP, 0x3330)
    denied(context, guest, _CS, 0x20)
    denied(context, guest, _EIP, 0x4440)
    equal(f"{name(_EIP)} = 0x6660 accepted from the host", set_msr(guest.vcpu, _EIP, 0x6660), True)
    equal(f"{name(_EIP)} for the host", get_msr(guest.vcpu, _EIP), 0x6660)
    succeeds("the filter that allows", set_filter, guest.vm, [Range(_ESP, 1, 0)])
    denied(context, guest, _ESP, 0x7770)
    _read(context, guest, _EIP, 0x6660)


@clause("filter.ends", arch="x86", needs=(FILTER,))
def ends(context: Context) -> None:
    """A filter without ranges that allows by default ends the one before it: the guest reaches its MSRs again.

    Source: Documentation/virt/kvm/api.rst, KVM_X86_SET_MSR_FILTER (an empty filter).
    """
    guest = _guest(context)
    for value in (0x3330, 0x4440):
        succeeds("the filter", set_filter, guest.vm, [Range(_ESP, 2, 0)])
        denied(context, guest, _ESP, value)
        succeeds("the filter without ranges", allow_all, guest.vm)
        let_through(context, guest, _ESP, value)
        let_through(context, guest, _EIP, value)


@clause("filter.to-userspace", arch="x86", needs=(FILTER, FORWARD))
def to_userspace(context: Context) -> None:
    """With KVM_CAP_X86_USER_SPACE_MSR what a filter denies leaves to the VMM, whose value or #GP the guest gets.

    Source: Documentation/virt/kvm/api.rst, KVM_CAP_X86_USER_SPACE_MSR, KVM_EXIT_X86_RDMSR; arch/x86/kvm/x86.c,
    kvm_msr_user_space.
    """
    guest = _guest(context)
    forward(guest.vm)
    succeeds("the filter", set_filter, guest.vm, [Range(_ESP)])
    forwarded(context, guest, _ESP, 0x3330)
    let_through(context, guest, _EIP, 0x4440)
    succeeds("the filter without ranges", allow_all, guest.vm)
    let_through(context, guest, _ESP, 0x5550)


@clause("filter.refused", arch="x86", needs=(FILTER,))
def malformed(context: Context) -> None:
    """A filter with unknown flags, a range for no access, one too long or default deny without ranges is EINVAL.

    A bitmap at a bad address is EFAULT. The filter from before stays.

    Source: arch/x86/kvm/x86.c, kvm_vm_ioctl_set_msr_filter, kvm_add_msr_filter.
    """
    guest = _guest(context)
    succeeds("the filter", set_filter, guest.vm, [Range(_CS)])
    longest = 8 * lib.KVM_MSR_FILTER_MAX_BITMAP_SIZE
    deny = int(lib.KVM_MSR_FILTER_DEFAULT_DENY)
    for what, ranges, flags in (
        ("an unknown flag", [Range(_ESP)], deny << 1),
        ("a range for no access", [Range(_ESP, access=0)], 0),
        ("an unknown access", [Range(_ESP, access=(READ | WRITE) + 1)], 0),
        ("a range with a longer bitmap than there may be", [Range(0, longest + 64)], 0),
        ("default deny without ranges", [], deny),
    ):
        argument, _bitmaps = make(ranges, flags)
        refused(what, errno.EINVAL, guest.vm.ioctl, lib.KVM_X86_SET_MSR_FILTER, argument)
    argument, _bitmaps = make([Range(_ESP)], 0)
    argument.ranges[0].bitmap = ffi.cast("__u8 *", 0x10)
    refused("a bitmap at a bad address", errno.EFAULT, guest.vm.ioctl, lib.KVM_X86_SET_MSR_FILTER, argument)
    denied(context, guest, _CS, 0x20)
    let_through(context, guest, _ESP, 0x3330)
    succeeds("a range as long as it may be", set_filter, guest.vm, [Range(0, longest, (1 << longest) - 1)])
    let_through(context, guest, _CS, 0x30)
