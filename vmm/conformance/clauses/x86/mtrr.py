# SPDX-License-Identifier: Apache-2.0
"""MTRRs: registers that KVM keeps, and that change nothing about how memory is cached."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, true
from vmm.conformance.registry import clause
from vmm.conformance.x86.caching import CachingGuest, expect_cached
from vmm.conformance.x86.common import STRICT_MSRS, configured
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import msr
from vmm.x86.guest import Guest
from vmm.x86.memory_types import MemoryType
from vmm.x86.msr_names import Msr

_GP = 13
# What KVM has had so far: 8 variable ranges, fixed ranges, write-combining; no SMRR.
_CAP = 0x508
_HAS_FIXED, _HAS_WC = 1 << 8, 1 << 10
_VARIABLE = 0x200
_FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_TYPES = (0, 1, 4, 5, 6)
_ENABLED = 1 << 11


@clause("mtrr.cap", arch="x86", needs=(STRICT_MSRS,))
def capabilities(context: Context) -> None:
    """IA32_MTRRCAP is the same for the host and the guest, neither can change it, and there is what it promises.

    That is as many variable ranges as it says and not one more, and fixed ranges and write-combining where it has
    their bits. It is 0x508 in every kernel so far; another value is recorded.

    Source: arch/x86/kvm/mtrr.c, kvm_mtrr_get_msr, find_mtrr; Intel SDM volume 3, 12.11.1.
    """
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    value = msr.get_msr(guest.vcpu, Msr.MTRRCAP)
    if value != _CAP:
        context.note(f"IA32_MTRRCAP is {value:#x}")
    equal("KVM_SET_MSRS of IA32_MTRRCAP", msr.set_msr(guest.vcpu, Msr.MTRRCAP, value ^ 2), False)
    guest.call("rdmsr", Msr.MTRRCAP, timeout=context.timeout)
    equal("IA32_MTRRCAP in the guest", (guest.mailbox.read("values", 15), guest.mailbox.read("values")), (0, value))
    equal("WRMSR of IA32_MTRRCAP", _guest_writes(context, guest, Msr.MTRRCAP, value ^ 2), (1, _GP))
    equal("IA32_MTRRCAP after the refusals", msr.get_msr(guest.vcpu, Msr.MTRRCAP), value)
    ranges = value & 0xFF
    for number in range(ranges + 1):
        there = [msr.set_msr(guest.vcpu, _VARIABLE + 2 * number + mask, 0) for mask in (0, 1)]
        equal(f"variable range {number} of {ranges}", there, [number < ranges] * 2)
    fixed = [msr.set_msr(guest.vcpu, index, 0) for index in _FIXED]
    equal("the fixed ranges", fixed, [bool(value & _HAS_FIXED)] * len(_FIXED))
    combining = msr.set_msr(guest.vcpu, Msr.MTRR_DEF_TYPE, MemoryType.WC)
    equal("a default type of write-combining", combining, bool(value & _HAS_WC))


def _ranges(vcpu: Vcpu) -> int:
    """Return how many variable ranges IA32_MTRRCAP has."""
    return msr.get_msr(vcpu, Msr.MTRRCAP) & 0xFF


def _guest_writes(context: Context, guest: Guest, index: int, value: int) -> tuple[int, int]:
    """Return (faults of WRMSR, vector)."""
    guest.call("wrmsr", index, value, timeout=context.timeout)
    faults = guest.mailbox.read("values", 15)
    return faults, guest.fault().vector if faults else 0


@clause("mtrr.emulated-only", arch="x86")
def values_kept(context: Context) -> None:
    """The MTRRs are 0 at reset and keep what is written: default type, fixed and variable ranges, by either side.

    Source: arch/x86/kvm/mtrr.c, kvm_mtrr_set_msr, kvm_mtrr_get_msr; Documentation/virt/kvm/x86/errata.rst, MTRRs.
    """
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    ranges = _ranges(guest.vcpu)
    written = {
        Msr.MTRR_DEF_TYPE: 0xC06,
        **{index: 0x0605040100010406 for index in _FIXED},
        **{_VARIABLE + 2 * n: 0x10000000 * n | _TYPES[n % 5] for n in range(ranges)},
        **{_VARIABLE + 2 * n + 1: 0xF0000800 + 0x1000 * n for n in range(ranges)},
    }
    for index in written:
        equal(f"{msr.name(index)} at reset", msr.get_msr(guest.vcpu, index), 0)
    for index, value in written.items():
        equal(f"KVM_SET_MSRS of {msr.name(index)} {value:#x}", msr.set_msr(guest.vcpu, index, value), True)
    for index, value in written.items():
        equal(f"{msr.name(index)} read back", msr.get_msr(guest.vcpu, index), value)
    for index in (Msr.MTRR_DEF_TYPE, _FIXED[0], _VARIABLE, _VARIABLE + 1):
        value = written[index] ^ (0x400 if index == Msr.MTRR_DEF_TYPE else 0x1000 if index & 0xF0 == 0 else 2)
        equal(f"WRMSR of {msr.name(index)} {value:#x}", _guest_writes(context, guest, index, value), (0, 0))
        guest.call("rdmsr", index, timeout=context.timeout)
        equal(f"{msr.name(index)} as the guest reads it", guest.mailbox.read("values"), value)
        equal(f"{msr.name(index)} as the host reads it", msr.get_msr(guest.vcpu, index), value)


@clause("mtrr.validation", arch="x86")
def values_checked(context: Context) -> None:
    """Reserved types and bits of the MTRRs are refused, with #GP in the guest, and nothing changes.

    Types are 0, 1, 4, 5 and 6; reserved are bits 8, 9 and from 12 on of the default type, bits 11 to 8 of a base,
    bits 10 to 0 of a mask, and in both what the guest's physical addresses do not have. There is no range beyond
    those of IA32_MTRRCAP.

    Source: arch/x86/kvm/mtrr.c, kvm_mtrr_valid; Intel SDM volume 3, 12.11.2.
    """
    vcpu = configured(context)
    # Bits 7 to 0 of CPUID 0x80000008 EAX; a table without that leaf has 36 bits.
    width = context.host.facts.cpuid.get(0x80000008).eax & 0xFF or 36
    beyond = 1 << width
    base, mask = _VARIABLE + 2 * 3, _VARIABLE + 2 * 3 + 1
    wrong = [
        *((Msr.MTRR_DEF_TYPE, kind) for kind in range(256) if kind not in _TYPES),
        *((Msr.MTRR_DEF_TYPE, 6 | 1 << bit) for bit in (8, 9, 12, 31, 32, 63)),
        *((index, 3 << 8 * byte) for index in _FIXED for byte in (0, 7)),
        *((base, kind) for kind in (2, 3, 7, 8, 0xFF)),
        *((base, 6 | 1 << bit) for bit in (8, 11)),
        *((mask, 1 << bit) for bit in (0, 10)),
    ]
    if beyond < 1 << 63:
        wrong += [(base, beyond | 6), (mask, beyond | 1 << 11), (base, 1 << 63 | 6), (mask, 1 << 63)]
    for index, value in wrong:
        _refused(vcpu, index, value)
    past = _VARIABLE + 2 * _ranges(vcpu)
    for index in (past, past + 1):
        equal(f"KVM_SET_MSRS of {msr.name(index)}", msr.set_msr(vcpu, index, 6), False)
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    for index, value in ((Msr.MTRR_DEF_TYPE, 3), (Msr.MTRR_DEF_TYPE, 0x106), (_FIXED[0], 2), (base, 7), (mask, 1)):
        equal(f"WRMSR of {msr.name(index)} {value:#x}", _guest_writes(context, guest, index, value), (1, _GP))
        equal(f"{msr.name(index)} after the fault", msr.get_msr(guest.vcpu, index), 0)


def _refused(vcpu: Vcpu, index: int, value: int) -> None:
    equal(f"KVM_SET_MSRS of {msr.name(index)} {value:#x}", msr.set_msr(vcpu, index, value), False)
    equal(f"{msr.name(index)} after the refused {value:#x}", msr.get_msr(vcpu, index), 0)


@clause("mtrr.no-effect", arch="x86", timeout=30.0)
def types_ignored(context: Context) -> None:
    """MTRRs that make all memory uncached leave the guest's loads as fast as before.

    Source: Documentation/virt/kvm/x86/errata.rst, MTRRs. Up to Linux 6.10 this holds without a non-coherent device.
    """
    guest = CachingGuest(context)

    def switch(on: bool) -> None:
        accepted = msr.set_msr(guest.guest.vcpu, Msr.MTRR_DEF_TYPE, _ENABLED if on else _ENABLED | 6)
        true("IA32_MTRR_DEF_TYPE", accepted, "refused", "accepted")

    expect_cached(context, guest.switched("MTRRs of type UC", switch))
