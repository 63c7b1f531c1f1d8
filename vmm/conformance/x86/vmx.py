# SPDX-License-Identifier: Apache-2.0
"""A guest that is a hypervisor itself: L1 with VMX, and its own guest L2, which shares L1's tables.

Source: Intel SDM volume 3, chapters 25 to 28 and appendices A and B.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.needs import capability
from vmm.conformance.x86.common import offers
from vmm.x86 import cpuid
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.guest import Guest
from vmm.x86.msr import get_msr, set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_sregs

__all__ = ["CR4_VMXE", "EXIT_EXCEPTION", "EXIT_VMCALL", "VMX_GUESTS", "nested_guest", "prepare_l2", "run_l1"]

VMX_GUESTS = (offers("VMX"), capability("KVM_CAP_NESTED_STATE"))
CR4_VMXE = 1 << 13
EXIT_EXCEPTION, EXIT_VMCALL = 0, 18
_LOCKED, _VMXON_OUTSIDE_SMX = 1 << 0, 1 << 2
_BASIC, _PIN, _PROCESSOR, _EXIT, _ENTRY = 0x480, 0x481, 0x482, 0x483, 0x484
_MSR_BITMAPS = 1 << 28
_HOST_IS_64_BIT = _GUEST_IS_64_BIT = 1 << 9
_UNUSABLE = 1 << 16
_NONE = (1 << 64) - 1
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr")


def nested_guest(context: Context, *, table: cpuid.Cpuid | None = None) -> Guest:
    """A guest with the nested payload that may use VMX: CR4.VMXE, and VMXON allowed by IA32_FEATURE_CONTROL."""
    guest = context.own(
        Guest(context.kvm, "nested", cpuid=table or cpuid.supported(context.kvm), cr4=CR4_OSXSAVE | CR4_VMXE)
    )
    allowed = set_msr(guest.vcpu, Msr.FEATURE_CONTROL, _LOCKED | _VMXON_OUTSIDE_SMX)
    equal("IA32_FEATURE_CONTROL with VMXON accepted", allowed, True)
    revision = get_msr(guest.vcpu, _BASIC) & 0x7FFFFFFF
    for region in ("vmxon_region", "vmcs_region"):
        guest.memory.write(guest.payload.symbol(region), struct.pack("<I", revision))
    return guest


def _control(guest: Guest, msr: int, wanted: int) -> int:
    """The value of a control field: what is wanted and what has to be 1. Source: appendix A.2 to A.5."""
    limits = get_msr(guest.vcpu, msr)
    return (wanted | limits & 0xFFFFFFFF) & limits >> 32


def _rights(segment: Any) -> int:
    if segment.unusable or not segment.present:
        return _UNUSABLE
    return int(
        segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7 | segment.avl << 12
        | segment.l << 13 | segment.db << 14 | segment.g << 15
    )  # fmt: skip


def _controls(guest: Guest, intercepted: int) -> Iterable[tuple[int, int]]:
    """The fields that say when L2 leaves and what is loaded then. ``intercepted`` is a bitmap of exceptions."""
    yield 0x4000, _control(guest, _PIN, 0)
    yield 0x4002, _control(guest, _PROCESSOR, _MSR_BITMAPS)
    yield 0x2004, guest.payload.symbol("msr_bitmap")  # zeros: L2 has its MSRs to itself
    yield 0x4004, intercepted
    yield 0x400C, _control(guest, _EXIT, _HOST_IS_64_BIT)
    yield 0x4012, _control(guest, _ENTRY, _GUEST_IS_64_BIT)
    # Page faults, CR3 targets, MSRs to store and load, an event to inject; masks of CR0 and CR4; offset of the TSC.
    for field in (0x4006, 0x4008, 0x400A, 0x400E, 0x4010, 0x4014, 0x4016, 0x6000, 0x6002, 0x2010):
        yield field, 0


def _host(guest: Guest, sregs: Any) -> Iterable[tuple[int, int]]:
    """What L1 is once L2 has left."""
    for number, name in enumerate(("es", "cs", "ss", "ds", "fs", "gs")):
        yield 0x0C00 + 2 * number, getattr(sregs, name).selector & 0xF8
    yield 0x0C0C, sregs.tr.selector
    yield from ((0x6C00, sregs.cr0), (0x6C02, sregs.cr3), (0x6C04, sregs.cr4))
    yield from ((0x6C06, 0), (0x6C08, 0), (0x6C0A, sregs.tr.base), (0x6C0C, sregs.gdt.base), (0x6C0E, sregs.idt.base))
    yield from ((0x4C00, 0), (0x6C10, 0), (0x6C12, 0))
    yield 0x6C14, guest.payload.symbol("kernel_stack_top")
    yield 0x6C16, guest.payload.symbol("leave")


def _guest(guest: Guest, sregs: Any, entry: str) -> Iterable[tuple[int, int]]:
    """What L2 begins with: L1's tables, a stack of its own."""
    for number, name in enumerate(_SEGMENTS):
        segment = getattr(sregs, name)
        yield 0x0800 + 2 * number, segment.selector
        yield 0x4800 + 2 * number, segment.limit
        yield 0x4814 + 2 * number, _rights(segment)
        yield 0x6806 + 2 * number, segment.base
    for limit, base, table in ((0x4810, 0x6816, sregs.gdt), (0x4812, 0x6818, sregs.idt)):
        yield limit, table.limit
        yield base, table.base
    yield from ((0x6800, sregs.cr0), (0x6802, sregs.cr3), (0x6804, sregs.cr4), (0x681A, 0x400), (0x6820, 2))
    yield 0x681C, guest.payload.symbol("l2_stack_top")
    yield 0x681E, guest.payload.symbol(entry)
    yield 0x2800, _NONE  # no shadow VMCS
    # Debug control, interruptibility, activity, pending debug exceptions, SYSENTER.
    for field in (0x2802, 0x4824, 0x4826, 0x6822, 0x482A, 0x6824, 0x6826):
        yield field, 0


def run_l1(context: Context, guest: Guest, entry: str, *parameters: int) -> None:
    """Run one of L1's entry points; no instruction of VMX may fail there."""
    guest.call(entry, *parameters, timeout=context.timeout)
    equal(f"instructions of VMX that failed in {entry}", guest.mailbox.read("values", 15), 0)


def prepare_l2(context: Context, guest: Guest, entry: str, *, intercepted: int = 0) -> None:
    """Have L1 enter VMX operation and make a VMCS for an L2 that begins at ``entry``."""
    guest.prepare("_start")
    sregs = get_sregs(guest.vcpu)
    fields = [*_controls(guest, intercepted), *_host(guest, sregs), *_guest(guest, sregs, entry)]
    guest.memory.write(guest.payload.symbol("fields"), b"".join(struct.pack("<2Q", *field) for field in fields))
    run_l1(context, guest, "enter", len(fields))
