# SPDX-License-Identifier: Apache-2.0
"""Extended control registers other than XCR0, what XGETBV says is in use, and XCR0 of 32-bit guests."""

from __future__ import annotations

import random

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, subset, succeeds
from vmm.conformance.needs import Need, capability
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import (
    GUEST_XSAVE,
    MASKABLE,
    TILE_GUESTS,
    configured,
    judged_call,
    permit_tiles,
    plain_features,
    stay_on_one_cpu,
    tile_table,
    vector_guest,
    vector_level,
)
from vmm.conformance.x86.image import Image
from vmm.kvm.exits import InternalError
from vmm.kvm.vcpu import Vcpu
from vmm.probe.host import Host
from vmm.x86 import cpuid, own, xfeature
from vmm.x86.boot import CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE
from vmm.x86.cpuid import Cpuid
from vmm.x86.guest import DONE, Guest
from vmm.x86.registers import get_sregs, get_xcr0, get_xcrs, set_sregs, set_xcr0, set_xcrs

_XCRS = capability("KVM_CAP_XCRS")
_NEEDS = (_XCRS, GUEST_XSAVE)
_GP = 13
# XCR1 is no register: where the CPU has it, its number reads what is in use, and nothing can be written.
_OTHERS = (2, 3, 7, 8, 31, 32, 63, 0x8000_0000, 0xFFFF_FFFF)
_GARBAGE = 0xA5A5A5A5
# PE, ET and NE: neither paging nor long mode.
_PROTECTED = 0x31


def _has_xgetbv1() -> bool:
    return bool(cpuid.host(0xD, 1).eax >> 2 & 1)


def _measure_xgetbv1(host: Host) -> tuple[bool, str]:
    return _has_xgetbv1(), f"CPUID 0xD.1 EAX is {cpuid.host(0xD, 1).eax:#x}"


# XGETBV cannot be intercepted, so this is the CPU's and no guest's.
_XGETBV1 = Need("a CPU with XGETBV of what is in use", _measure_xgetbv1)


def _guest(context: Context, payload: str = "hello", table: Cpuid | None = None) -> Guest:
    return context.own(Guest(context.kvm, payload, cpuid=table or context.host.facts.cpuid, cr4=CR4_OSXSAVE))


def _faults(context: Context, guest: Guest, entry: str, *parameters: int, privilege: int = 0) -> tuple[int, int]:
    """Return (number of faults, vector) of one XGETBV or XSETBV."""
    judged_call(context, guest, entry, *parameters, privilege=privilege)
    faults = guest.mailbox.read("values", 15)
    return faults, guest.fault().vector if faults else 0


@clause("xcrs.xgetbv-other-numbers", arch="x86", needs=_NEEDS)
def xgetbv_others(context: Context) -> None:
    """XGETBV in the guest is #GP for each number that is no register, and for 1 on a CPU that does not have that.

    Source: Intel SDM volume 2, XGETBV; AMD APM volume 4, XGETBV.
    """
    guest = _guest(context)
    set_xcr0(guest.vcpu, plain_features(context))
    for number in (*_OTHERS, *(() if _has_xgetbv1() else (1,))):
        equal(f"XGETBV with ECX {number:#x}", _faults(context, guest, "xgetbv", number, privilege=3), (1, _GP))
    equal("XGETBV with ECX 0", _faults(context, guest, "xgetbv", 0, privilege=3), (0, 0))


@clause("xcrs.xsetbv-other-numbers", arch="x86", needs=_NEEDS)
def xsetbv_others(context: Context) -> None:
    """XSETBV in the guest is #GP for each number but 0, and XCR0 stays.

    Source: Intel SDM volume 2, XSETBV; arch/x86/kvm/x86.c, __kvm_set_xcr (index).
    """
    guest = _guest(context)
    value = plain_features(context)
    set_xcr0(guest.vcpu, value)
    for number in (1, *_OTHERS):
        equal(f"XSETBV with ECX {number:#x}", _faults(context, guest, "xsetbv", number, 3), (1, _GP))
        equal(f"XCR0 after XSETBV with ECX {number:#x}", get_xcr0(guest.vcpu), value)


@clause("xcrs.xgetbv-in-use", arch="x86", needs=(*_NEEDS, _XGETBV1))
def in_use(context: Context) -> None:
    """XGETBV with ECX 1 has the components that the guest has filled, as far as its XCR0 has them.

    Source: Intel SDM volume 2, XGETBV; volume 1, 13.6; arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate.
    """
    guest = vector_guest(context)
    level = vector_level(context)
    image = Image.random(random.Random(95))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    guest.call(f"fill_{level}", privilege=3, timeout=context.timeout)
    filled = xfeature.mask(*image.features(level))
    for value in (plain_features(context), 3):
        succeeds(f"KVM_SET_XCRS {value:#x}", set_xcr0, guest.vcpu, value)
        judged_call(context, guest, "xinuse", privilege=3)
        seen = guest.mailbox.values[0]
        subset(f"what is in use with XCR0 {value:#x}", seen, value)
        equal(f"what is in use of the filled, XCR0 {value:#x}", seen & filled & value, filled & value)


@clause("xcrs.two-guests-same-cpu", arch="x86", needs=(_XCRS, MASKABLE))
def two_xcr0(context: Context) -> None:
    """Guests with different XCR0 that take turns on one CPU each read their own by XGETBV, and the VMM reads its own.

    Source: arch/x86/kvm/x86.c, kvm_load_xfeatures (on each entry, and back).
    """
    stay_on_one_cpu()
    ours = own.own_xcr0()
    guests = []
    for value in dict.fromkeys((plain_features(context), 7, 3, 1)):
        guest = _guest(context)
        set_xcr0(guest.vcpu, value)
        guests.append((guest, value))
    for _ in range(3):
        for guest, value in guests:
            judged_call(context, guest, "xgetbv", 0, privilege=3)
            equal(f"XCR0 of the VMM after a guest with {value:#x}", own.own_xcr0(), ours)
            equal(f"XGETBV in a guest with XCR0 {value:#x}", guest.mailbox.values[0], value)


def _set_raw(vcpu: Vcpu, rows: list[tuple[int, int, int]], count: int) -> None:
    """KVM_SET_XCRS with (xcr, reserved, value) and garbage in all that is padding."""
    xcrs = ffi.new("struct kvm_xcrs *", {"nr_xcrs": count, "xcrs": rows})
    xcrs.padding = [_GARBAGE] * len(xcrs.padding)
    vcpu.ioctl(lib.KVM_SET_XCRS, xcrs)


@clause("xcrs.set-other-numbers", arch="x86", needs=_NEEDS)
def set_others(context: Context) -> None:
    """KVM_SET_XCRS ignores other registers than XCR0, entries beyond nr_xcrs and padding; none shows afterwards.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xcrs ("Only support XCR0 currently").
    """
    vcpu = configured(context)
    for number in (1, *_OTHERS):
        set_xcr0(vcpu, 3)
        succeeds(f"KVM_SET_XCRS of XCR{number:#x} alone", set_xcrs, vcpu, [(number, _GARBAGE)])
        equal(f"XCR0 after XCR{number:#x}", get_xcr0(vcpu), 3)
        succeeds(f"KVM_SET_XCRS of XCR{number:#x} before XCR0", set_xcrs, vcpu, [(number, 3), (0, 1)])
        equal(f"XCR0 after it came behind XCR{number:#x}", get_xcr0(vcpu), 1)
    succeeds("KVM_SET_XCRS with an entry beyond nr_xcrs", _set_raw, vcpu, [(1, _GARBAGE, 0), (0, 0, 3)], 1)
    equal("XCR0 after an entry beyond nr_xcrs", get_xcr0(vcpu), 1)
    succeeds("KVM_SET_XCRS with padding that is not 0", _set_raw, vcpu, [(0, _GARBAGE, 3)], 1)
    xcrs = get_xcrs(vcpu)
    shown = [(entry.xcr, entry.reserved, entry.value) for entry in xcrs.xcrs[0 : xcrs.nr_xcrs] if entry.xcr == 0]
    equal("XCR0 with its reserved field", shown, [(0, 0, 3)])
    equal("the numbers listed", [entry.xcr for entry in xcrs.xcrs[0 : xcrs.nr_xcrs]].count(1), 0)


def _call_32_bit(context: Context, guest: Guest, entry: str, *parameters: int) -> int:
    """Run an entry point of the protected payload in protected mode; return XCR0 as its XGETBV read it."""
    guest.prepare(entry, *parameters)
    sregs = get_sregs(guest.vcpu)
    sregs.cr0, sregs.efer, sregs.cr3 = _PROTECTED, 0, 0
    sregs.cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE
    sregs.cs.l, sregs.cs.db = 0, 1
    sregs.idt.limit = 0  # its gates are long mode's: a fault is a shutdown
    set_sregs(guest.vcpu, sregs)
    with judged(f"{entry} in a 32-bit guest"):
        exit = guest.resume(context.timeout)
        if isinstance(exit, InternalError):  # a KVM that interprets CPL0
            context.skip(f"needs a KVM that runs {entry} of 32-bit code: it left with {exit}")
        event = guest.finish(exit, entry)
    equal(f"the event of {entry}", event, DONE)
    return guest.mailbox.values[0]


def _check_32_bit(context: Context, guest: Guest, value: int) -> None:
    set_xcr0(guest.vcpu, value)
    equal(f"XGETBV of a 32-bit guest, XCR0 {value:#x}", _call_32_bit(context, guest, "xgetbv32"), value)
    set_xcr0(guest.vcpu, 1)
    seen = _call_32_bit(context, guest, "xsetbv32", value)
    equal(f"XGETBV of a 32-bit guest after its XSETBV {value:#x}", seen, value)
    equal(f"KVM_GET_XCRS after XSETBV {value:#x} of a 32-bit guest", get_xcr0(guest.vcpu), value)


@clause("xcrs.32-bit", arch="x86", needs=_NEEDS)
def protected_mode(context: Context) -> None:
    """A guest in 32-bit protected mode reads and writes XCR0 as one in long mode does.

    Source: Intel SDM volume 2, XSETBV, XGETBV (same in all modes); arch/x86/kvm/x86.c, __kvm_set_xcr.
    """
    guest = _guest(context, "protected")
    for value in dict.fromkeys((3, 7 & plain_features(context), plain_features(context))):
        _check_32_bit(context, guest, value)


@clause("xcrs.32-bit-tiles", arch="x86", needs=(*TILE_GUESTS, *_NEEDS))
def protected_mode_tiles(context: Context) -> None:
    """A guest in 32-bit protected mode may enable the tile components in XCR0, although tiles need 64-bit code.

    Source: Intel SDM volume 1, 13.3; arch/x86/kvm/x86.c, __kvm_set_xcr (looks at no mode).
    """
    permit_tiles(context)
    table = tile_table(context)
    guest = _guest(context, "protected", table)
    _check_32_bit(context, guest, plain_features(context) | xfeature.XTILE)
