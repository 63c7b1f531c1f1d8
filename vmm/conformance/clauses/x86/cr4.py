# SPDX-License-Identifier: Apache-2.0
"""CR4: which bits a guest may have follows from its CPUID, for KVM_SET_SREGS and for MOV to CR4."""

from __future__ import annotations

import errno

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86.lists import GP, Answer, ListGuest
from vmm.kvm.ioctl import KvmError
from vmm.x86.cpuid import Cpuid, get_cpuid
from vmm.x86.cpuid_names import PLACES
from vmm.x86.fields import Cr4
from vmm.x86.registers import get_sregs, set_sregs

# Each bit of CR4 that a CPUID feature brings, and the features of which one does.
# Source: arch/x86/kvm/regs.h (x86.h in 6.12), __cr4_reserved_bits; arch/x86/kvm/vmx/vmx.c, vmx_is_valid_cr4.
_FEATURES: dict[int, tuple[str, ...]] = {
    11: ("UMIP",),
    12: ("LA57",),
    13: ("VMX",),
    16: ("FSGSBASE",),
    17: ("PCID",),
    18: ("XSAVE",),
    20: ("SMEP",),
    21: ("SMAP",),
    22: ("PKU",),
    23: ("SHSTK", "IBT"),
    28: ("LAM",),
}
# Those that a guest here may set by itself: its pages are the user's, which SMEP and SMAP keep it from, paging is
# four levels deep, and CR4.VMXE depends on more than CPUID.
_HARMLESS = (11, 16, 17, 18, 22, 23, 28)
# Bits that every guest has: VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT.
_ALWAYS = range(11)
# What every guest here begins with: PAE, OSFXSR, OSXMMEXCPT.
_PLAIN = 0x620


def _has(table: Cpuid, bit: int) -> bool:
    return any(
        getattr(table.get(*PLACES[feature][0][:2]), PLACES[feature][0][2]) >> PLACES[feature][1] & 1
        for feature in _FEATURES[bit]
    )


def _without(table: Cpuid) -> Cpuid:
    """The same table without any feature that brings a bit of CR4."""
    for features in _FEATURES.values():
        for feature in features:
            (function, index, register), bit = PLACES[feature]
            if (entry := table.find(function, index)) is not None:
                table = table.edit(function, index, **{register: getattr(entry, register) & ~(1 << bit)})
    return table


def _name(bit: int) -> str:
    return f"CR4.{next((name for name, at in Cr4.fields.items() if at == bit), f'bit {bit}')}"


def _started(context: Context, table: Cpuid) -> tuple[ListGuest, Cpuid, int]:
    """A guest in long mode with this table, the CPUID that it has of it, and its CR4.

    What KVM makes of a table is setcpuid.mask-honoured's: CR4 follows what the guest has.
    """
    guest = ListGuest(context, table)
    guest.write_cr4([_PLAIN])
    vcpu = guest.guest.vcpu
    return guest, get_cpuid(vcpu), get_sregs(vcpu).cr4


def _judge_sregs(context: Context, given: Cpuid) -> None:
    guest, table, base = _started(context, given)
    vcpu = guest.guest.vcpu
    for bit in _FEATURES:
        sregs = get_sregs(vcpu)
        sregs.cr4 = base | 1 << bit
        if _has(table, bit):
            succeeds(f"KVM_SET_SREGS with {_name(bit)}", set_sregs, vcpu, sregs)
            equal(f"CR4 with {_name(bit)}", get_sregs(vcpu).cr4, base | 1 << bit)
            sregs.cr4 = base
            succeeds(f"KVM_SET_SREGS without {_name(bit)}", set_sregs, vcpu, sregs)
        else:
            what = f"KVM_SET_SREGS with {_name(bit)} and without {' or '.join(_FEATURES[bit])} in CPUID"
            refused(what, errno.EINVAL, set_sregs, vcpu, sregs)
        equal(f"CR4 behind {_name(bit)}", get_sregs(vcpu).cr4, base)


@clause("cr4.sregs-follow-cpuid", arch="x86")
def sregs_follow_cpuid(context: Context) -> None:
    """KVM_SET_SREGS takes a bit of CR4 if the guest's CPUID has its feature, else EINVAL and CR4 stays.

    Bits that no feature brings are taken as every guest has them; further bits that a KVM takes are recorded.

    Source: arch/x86/kvm/regs.h, __cr4_reserved_bits; arch/x86/kvm/regs.c, kvm_is_valid_sregs, kvm_is_valid_cr4 (x86.h
    and x86.c in 6.12).
    """
    full = context.host.facts.cpuid
    for table in (full, _without(full)):
        _judge_sregs(context, table)
    vcpu = _started(context, full)[0].guest.vcpu
    sregs = get_sregs(vcpu)
    sregs.cr4 |= sum(1 << bit for bit in _ALWAYS)
    succeeds("KVM_SET_SREGS with all that every guest has", set_sregs, vcpu, sregs)
    equal("CR4 with all that every guest has", get_sregs(vcpu).cr4, sregs.cr4)
    taken = []
    for bit in range(64):
        if bit not in _ALWAYS and bit not in _FEATURES:
            other = get_sregs(vcpu)
            other.cr4 |= 1 << bit
            try:
                set_sregs(vcpu, other)
            except KvmError as error:
                equal(f"errno of KVM_SET_SREGS with CR4 bit {bit}", error.errno, errno.EINVAL)
            else:
                taken.append(_name(bit))
                set_sregs(vcpu, sregs)
    if taken:
        context.note(f"KVM of {context.host.kernel} takes {' '.join(taken)}")


@clause("cr4.guest-follows-cpuid", arch="x86")
def guest_follows_cpuid(context: Context) -> None:
    """MOV to CR4 takes a bit if the guest's CPUID has its feature, else it is #GP and CR4 stays.

    Source: arch/x86/kvm/regs.c, kvm_set_cr4, kvm_is_valid_cr4 (x86.c in 6.12); Intel SDM volume 2, "MOV".
    """
    full = context.host.facts.cpuid
    for given in (full, _without(full)):
        guest, table, base = _started(context, given)
        bits = [bit for bit in _FEATURES if bit in _HARMLESS or not _has(table, bit)]
        for bit, answer in zip(bits, guest.write_cr4([base | 1 << bit for bit in bits]), strict=True):
            expected = Answer(base | 1 << bit) if _has(table, bit) else Answer(base, GP)
            equal(f"MOV to CR4 with {_name(bit)}: CR4, and an exception", answer, expected)
        equal("CR4 behind them", get_sregs(guest.guest.vcpu).cr4, base)


@clause("cr4.upper-half", arch="x86")
def upper_half(context: Context) -> None:
    """MOV to CR4 with one of the bits 63 to 32 is #GP and CR4 stays, but for FRED where the guest has it.

    Source: Intel SDM volume 3, 2.5 (reserved bits); arch/x86/kvm/regs.c, kvm_is_valid_cr4 (x86.c in 6.12).
    """
    guest, table, base = _started(context, context.host.facts.cpuid)
    (function, index, register), at = PLACES["FRED"]
    fred = bool(getattr(table.get(function, index), register) >> at & 1)
    bits = range(33 if fred else 32, 64)
    for bit, answer in zip(bits, guest.write_cr4([base | 1 << bit for bit in bits]), strict=True):
        equal(f"MOV to CR4 with bit {bit}: CR4, and an exception", answer, Answer(base, GP))
