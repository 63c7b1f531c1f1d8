# SPDX-License-Identifier: Apache-2.0
"""XCR0: KVM_GET_XCRS, KVM_SET_XCRS, and the guest's XGETBV and XSETBV."""

from __future__ import annotations

import errno

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import (
    AVX,
    GUEST_XSAVE,
    MASKABLE,
    configured,
    judged_call,
    maskable,
    plain_features,
)
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import KvmError
from vmm.x86 import xfeature
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.cpuid import set_cpuid
from vmm.x86.guest import Guest
from vmm.x86.registers import MAX_XCRS, get_xcr0, get_xcrs, set_cr4_bits, set_xcr0, set_xcrs
from vmm.x86.xfeature import XFeature

_XCRS = capability("KVM_CAP_XCRS")
_GP, _UD = 13, 6
# Components whose rules in XCR0 are known here; a later KVM may offer others, with rules of their own.
_RULED = xfeature.mask(XFeature.FP, XFeature.SSE, XFeature.YMM, XFeature.PKRU)
_RULED |= xfeature.MPX | xfeature.AVX512 | xfeature.XTILE
# An unused flag of struct kvm_xcrs.
_NO_FLAG = 1 << 31


def valid(value: int, offered: int) -> bool:
    """Tell whether an XCR0 value is architecturally valid within what the guest is offered.

    Source: Intel SDM volume 1, 13.3 "Enabling the XSAVE feature set".
    """
    if not value & 1 or value & ~(offered | 1):
        return False
    ymm, sse = value >> XFeature.YMM & 1, value >> XFeature.SSE & 1
    avx512 = value & xfeature.AVX512
    return (
        (not ymm or bool(sse))
        and value & xfeature.MPX in (0, xfeature.MPX)
        and (not avx512 or (avx512 == xfeature.AVX512 and bool(ymm)))
        and value & xfeature.XTILE in (0, xfeature.XTILE)
    )


def _candidates(offered: int) -> list[int]:
    """All subsets of the offered bits with known rules, and each bit that is not offered on top of x87 and SSE."""
    positions = list(bits(offered & _RULED))
    subsets = [
        xfeature.mask(*(p for index, p in enumerate(positions) if choice >> index & 1))
        for choice in range(1 << len(positions))
    ]
    return subsets + [3 | 1 << number for number in range(64) if not offered >> number & 1]


@clause("xcrs.fresh", arch="x86", needs=(_XCRS,))
def fresh(context: Context) -> None:
    """A fresh vCPU has XCR0 once among its extended control registers, with value 1, and no flags.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_xcrs, kvm_vcpu_reset.
    """
    xcrs = get_xcrs(configured(context))
    count = xcrs.nr_xcrs
    true("nr_xcrs", 1 <= count <= MAX_XCRS, count, f"1 to {MAX_XCRS}")
    equal("flags", xcrs.flags, 0)
    equal("XCR0", [entry.value for entry in xcrs.xcrs[0:count] if entry.xcr == 0], [1])
    if count > 1:
        context.note(f"{count} extended control registers")


@clause("xcrs.rules", arch="x86", needs=(_XCRS, GUEST_XSAVE))
def rules(context: Context) -> None:
    """KVM_SET_XCRS accepts exactly the architecturally valid values within the guest's CPUID, else EINVAL.

    Every subset of the offered components is tried, and every bit that is not offered alone.

    Source: arch/x86/kvm/x86.c, __kvm_set_xcr; Intel SDM volume 1, 13.3.
    """
    vcpu = configured(context)
    offered = context.host.facts.cpuid.xcr0
    for value in _candidates(offered):
        set_xcr0(vcpu, 1)
        if valid(value, offered):
            succeeds(f"XCR0 {value:#x}", set_xcr0, vcpu, value)
            equal(f"XCR0 after {value:#x}", get_xcr0(vcpu), value)
        else:
            refused(f"XCR0 {value:#x}", errno.EINVAL, set_xcr0, vcpu, value)
            equal(f"XCR0 after the refused {value:#x}", get_xcr0(vcpu), 1)
    if offered & ~_RULED:
        context.note(f"not tried, their rules are not known here: {xfeature.describe(offered & ~_RULED)}")


@clause("xcrs.malformed", arch="x86", needs=(_XCRS,))
def malformed(context: Context) -> None:
    """More than 16 registers or flags are refused; no register means no change; only the first XCR0 entry counts.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xcrs.
    """
    vcpu = configured(context)
    offered = context.host.facts.cpuid.xcr0
    value = 3 if offered & 3 == 3 else 1
    set_xcr0(vcpu, value)
    refused("17 registers", errno.EINVAL, set_xcrs, vcpu, [(0, 1)], count=MAX_XCRS + 1)
    refused("flags", errno.EINVAL, set_xcrs, vcpu, [(0, 1)], flags=_NO_FLAG)
    equal("XCR0 after the refusals", get_xcr0(vcpu), value)
    succeeds("no register", set_xcrs, vcpu, [])
    equal("XCR0 after no register", get_xcr0(vcpu), value)
    succeeds("XCR1", set_xcrs, vcpu, [(1, 1)])
    equal("XCR0 after XCR1", get_xcr0(vcpu), value)
    if value == 3:
        succeeds("two entries for XCR0", set_xcrs, vcpu, [(1, 0), (0, 3), (0, 1)])
        equal("XCR0 after two entries", get_xcr0(vcpu), 3)
        succeeds("16 registers", set_xcrs, vcpu, [(0, 1)] + [(0, 3)] * (MAX_XCRS - 1))
        equal("XCR0 after 16 entries", get_xcr0(vcpu), 1)


@clause("xcrs.needs-cpuid-first", arch="x86", needs=(_XCRS, GUEST_XSAVE))
def needs_cpuid_first(context: Context) -> None:
    """Before KVM_SET_CPUID2 only the value 1 is accepted; afterwards what the table offers.

    So a restore has to set CPUID before XCR0.

    Source: arch/x86/kvm/x86.c, __kvm_set_xcr (guest_supported_xcr0).
    """
    vcpu = context.vcpu()
    succeeds("XCR0 1 before CPUID", set_xcr0, vcpu, 1)
    refused("XCR0 3 before CPUID", errno.EINVAL, set_xcr0, vcpu, 3)
    set_cpuid(vcpu, context.host.facts.cpuid)
    succeeds("XCR0 3 after CPUID", set_xcr0, vcpu, 3)


@clause("xcrs.no-osxsave-needed", arch="x86", needs=(_XCRS, GUEST_XSAVE))
def no_osxsave_needed(context: Context) -> None:
    """KVM_SET_XCRS works while CR4.OSXSAVE is 0, and XCR0 keeps its value when CR4.OSXSAVE changes.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xcrs (no look at CR4).
    """
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    vcpu = guest.vcpu
    value = plain_features(context)
    succeeds("KVM_SET_XCRS without CR4.OSXSAVE", set_xcr0, vcpu, value)
    for enabled in (True, False):
        set_cr4_bits(vcpu, CR4_OSXSAVE, on=enabled)
        equal(f"XCR0 after CR4.OSXSAVE={int(enabled)}", get_xcr0(vcpu), value)


@clause("xcrs.stale-after-cpuid", arch="x86", needs=(_XCRS, MASKABLE), info=True)
def stale_after_cpuid(context: Context) -> None:
    """A table that no longer offers the components enabled in XCR0 is accepted, and XCR0 keeps its value.

    Nothing documents it; recorded so that a change is noticed.

    Source: arch/x86/kvm/cpuid.c, kvm_vcpu_after_set_cpuid (XCR0 is not looked at).
    """
    full, less = maskable(context)
    vcpu = configured(context)
    set_xcr0(vcpu, full)
    try:
        set_cpuid(vcpu, context.host.facts.cpuid.with_xcr0(less))
        context.note(f"accepted; XCR0 is {get_xcr0(vcpu):#x} after offering only {less:#x}")
    except KvmError as error:
        context.note(str(error))
    equal("XCR0 after a narrower table", get_xcr0(vcpu), full)


def _guest(context: Context, cr4: int = CR4_OSXSAVE) -> Guest:
    return context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid, cr4=cr4))


@clause("xcrs.guest-equals-host", arch="x86", needs=(_XCRS, GUEST_XSAVE))
def guest_equals_host(context: Context) -> None:
    """XGETBV in the guest reads what KVM_SET_XCRS wrote, and KVM_GET_XCRS reads what the guest's XSETBV wrote.

    Source: arch/x86/kvm/x86.c, kvm_load_xfeatures (XCR0), kvm_emulate_xsetbv.
    """
    guest = _guest(context)
    for value in (v for v in (1, 3, 7, 7 | xfeature.AVX512) if valid(v, plain_features(context))):
        set_xcr0(guest.vcpu, 1)
        judged_call(context, guest, "xsetbv", 0, value)
        equal(f"faults of XSETBV {value:#x}", guest.mailbox.read("values", 15), 0)
        equal(f"KVM_GET_XCRS after XSETBV {value:#x}", get_xcr0(guest.vcpu), value)
        succeeds(f"KVM_SET_XCRS {value:#x}", set_xcr0, guest.vcpu, value)
        judged_call(context, guest, "xgetbv", 0, privilege=3)
        equal(f"faults of XGETBV with XCR0 {value:#x}", guest.mailbox.read("values", 15), 0)
        equal(f"XGETBV after KVM_SET_XCRS {value:#x}", guest.mailbox.values[0], value)


def _xsetbv_faults(context: Context, guest: Guest, *parameters: int, privilege: int = 0) -> tuple[int, int]:
    """Return (number of faults, vector) of one XSETBV with RCX, EDX:EAX."""
    judged_call(context, guest, "xsetbv", *parameters, privilege=privilege)
    faults = guest.mailbox.read("values", 15)
    return faults, guest.fault().vector if faults else 0


@clause("xcrs.xsetbv-cpl-ud", arch="x86", needs=(_XCRS, GUEST_XSAVE))
def xsetbv_faults(context: Context) -> None:
    """XSETBV is #UD without CR4.OSXSAVE, #GP at CPL3 and for ECX other than 0; the upper half of RCX is ignored.

    Source: Intel SDM volume 2, XSETBV; arch/x86/kvm/x86.c, kvm_emulate_xsetbv.
    """
    equal("without CR4.OSXSAVE", _xsetbv_faults(context, _guest(context, 0), 0, 1), (1, _UD))
    guest = _guest(context)
    equal("at CPL3", _xsetbv_faults(context, guest, 0, 3, privilege=3), (1, _GP))
    equal("ECX 1", _xsetbv_faults(context, guest, 1, 3), (1, _GP))
    equal("XCR0 after the faults", get_xcr0(guest.vcpu), 1)
    equal("RCX 1 << 32", _xsetbv_faults(context, guest, 1 << 32, 3), (0, 0))
    equal("XCR0 after RCX 1 << 32", get_xcr0(guest.vcpu), 3)


@clause("xcrs.xsetbv-rules", arch="x86", needs=(_XCRS, AVX))
def xsetbv_rules(context: Context) -> None:
    """XSETBV in the guest takes #GP for every value that is not valid, and leaves XCR0 as it was.

    Source: arch/x86/kvm/x86.c, kvm_emulate_xsetbv; Intel SDM volume 2, XSETBV.
    """
    guest = _guest(context)
    offered = context.host.facts.cpuid.xcr0
    # One value for each rule; KVM_SET_XCRS tries them all.
    for value in (0, 2, 4, 5, 0x9, 0x18, 0x1F, 0x27, 0xC7, 1 << 18 | 7, 1 << 17 | 7, 1 << 63 | 7, 3, 7):
        set_xcr0(guest.vcpu, 1)
        wanted = (0, 0) if valid(value, offered) else (1, _GP)
        equal(f"XSETBV {value:#x}", _xsetbv_faults(context, guest, 0, value), wanted)
        equal(f"XCR0 after XSETBV {value:#x}", get_xcr0(guest.vcpu), 1 if wanted[0] else value)
