# SPDX-License-Identifier: Apache-2.0
"""CPUID as the guest reads it, and what must be out of its reach because CPUID does not have it."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused
from vmm.conformance.needs import unmet
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import STRICT_MSRS, TILE_GUESTS, permit_tiles, stay_on_one_cpu
from vmm.conformance.x86.lists import GP, Answer, ListGuest
from vmm.x86 import cpuid
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.cpuid import Cpuid, Entry, get_cpuid
from vmm.x86.cpuid_names import PLACES
from vmm.x86.msr import name, set_msr, try_get
from vmm.x86.registers import get_sregs, set_sregs, set_xcr0

# A subleaf that no leaf has, for those whose subleaf does not count.
_ANY_SUBLEAF = 0x55
_SIGNIFICANT_INDEX = 1
_EXTENDED = 0x8000_0000
# What the guest reads may have fewer bits than the table, because of an MSR: RTM and HLE by IA32_TSX_CTRL.
# Source: arch/x86/kvm/cpuid.c, kvm_cpuid.
_BY_MSR = {(7, 0): (0, 1 << 4 | 1 << 11, 0, 0)}


def _show(leaf: tuple[int, int], registers: Iterable[int]) -> str:
    return f"{leaf[0]:08x}.{leaf[1]}: " + " ".join(f"{value:08x}" for value in registers)


def _compare(what: str, table: Cpuid, guest: ListGuest) -> None:
    """Every entry of the table has to be what the guest reads."""
    first: dict[tuple[int, int], Entry] = {}
    for entry in table:
        subleaf = entry.index if entry.flags & _SIGNIFICANT_INDEX else _ANY_SUBLEAF
        first.setdefault((entry.function, subleaf), entry)
    wrong = []
    for (leaf, entry), read in zip(first.items(), guest.cpuid(list(first)), strict=True):
        spared = _BY_MSR.get((entry.function, entry.index), (0, 0, 0, 0))
        if any((a ^ b) & ~mask for a, b, mask in zip(entry.registers, read, spared, strict=True)):
            wrong.append(f"{_show(leaf, read)}, in the table {_show(leaf, entry.registers)[12:]}")
    equal(f"leaves that the guest reads differently {what}", wrong, [])


@clause("cpuid.guest-reads-table", arch="x86")
def guest_reads_table(context: Context) -> None:
    """CPUID in the guest gives what KVM_GET_CPUID2 says, every leaf and subleaf, before and behind XCR0 and OSXSAVE.

    Where the subleaf does not count, any is the same, and a leaf between others that the table lacks reads as zeros.

    Source: arch/x86/kvm/cpuid.c, kvm_cpuid, kvm_vcpu_ioctl_get_cpuid2, kvm_update_cpuid_runtime.
    """
    stay_on_one_cpu()
    if unmet(TILE_GUESTS, context.host) is None:
        permit_tiles(context)
    table = cpuid.supported(context.kvm)
    guest = ListGuest(context, table)
    guest.cpuid([(0, 0)])
    _compare("without OSXSAVE", get_cpuid(guest.guest.vcpu), guest)
    if table.has("XSAVE"):
        guest.guest.cr4 = CR4_OSXSAVE
        set_xcr0(guest.guest.vcpu, table.xcr0)
        guest.cpuid([(0, 0)])
        _compare("with OSXSAVE", get_cpuid(guest.guest.vcpu), guest)
    functions = {entry.function for entry in table}
    absent = [leaf for base in (0, _EXTENDED) for leaf in range(base, table.get(base).eax) if leaf not in functions]
    if absent:
        read = zip(absent, guest.cpuid([(leaf, 0) for leaf in absent]), strict=True)
        found = [_show((leaf, 0), registers) for leaf, registers in read if any(registers)]
        equal("leaves that the table does not have and that are not zeros", found, [])


# Features that Linux 7.2 offers no guest, by the names of their CPUID bits: the bit of CR4, MSRs (some of each kind).
# Source: Intel SDM volume 3, 2.5 and volume 4; arch/x86/include/asm/msr-index.h.
_HIDDEN: dict[str, tuple[int | None, tuple[int, ...]]] = {
    "PKS": (24, (0x6E1,)),
    "UINTR": (25, (0x985, 0x986, 0x987, 0x988, 0x989, 0x98A)),
    "ARCH_LBR": (None, (0x14CE, 0x14CF, 0x1200, 0x1500, 0x1600)),
    "LASS": (27, ()),
    "KL": (19, (0xD91, 0x990)),
    "FRED": (32, (0x1CC, 0x1CD, 0x1CE, 0x1CF, 0x1D0, 0x1D1, 0x1D2, 0x1D3, 0x1D4)),
}


def _has(table: Cpuid, feature: str) -> bool:
    (function, index, register), bit = PLACES[feature]
    return bool(getattr(table.get(function, index), register) >> bit & 1)


def _cpu_has(feature: str) -> bool:
    (function, index, register), bit = PLACES[feature]
    return cpuid.host(0).eax >= function and bool(getattr(cpuid.host(function, index), register) >> bit & 1)


@clause("cpuid.hidden-state-unreachable", arch="x86", needs=(STRICT_MSRS,))
def hidden_state_unreachable(context: Context) -> None:
    """What KVM does not offer in CPUID is out of reach: its bits of CR4 and its MSRs are #GP, and refused to the VMM.

    That is protection keys for supervisor pages, user interrupts, LBRs, FRED, LASS and key locker, whether the CPU
    has them or not. Nothing changes by the attempts.

    Source: arch/x86/kvm/cpuid.c, kvm_initialize_cpu_caps (kvm_set_cpu_caps in 6.12); arch/x86/kvm/x86.c,
    kvm_get_msr_common; arch/x86/kvm/regs.c, kvm_is_valid_cr4 (x86.c in 6.12).
    """
    table = context.host.facts.cpuid
    hidden = {feature: what for feature, what in _HIDDEN.items() if not _has(table, feature)}
    if not hidden:
        context.skip(f"KVM offers all of {', '.join(_HIDDEN)}")
    guest = ListGuest(context, table)
    vcpu = guest.guest.vcpu
    msrs = [index for _, indices in hidden.values() for index in indices]
    bits = [bit for bit, _ in hidden.values() if bit is not None]
    fault = Answer(0, GP)
    for what, given in (
        ("RDMSR", guest.read_msrs(msrs)),
        ("WRMSR", guest.write_msrs([(index, 0) for index in msrs])),
    ):
        seen = [name(index) for index, answer in zip(msrs, given, strict=True) if answer != fault]
        equal(f"MSRs for which {what} is no #GP", seen, [])
    guest.read_msrs([msrs[0]])
    equal("MSRs that KVM_GET_MSRS reads", [name(index) for index in msrs if try_get(vcpu, index) is not None], [])
    equal("MSRs that KVM_SET_MSRS takes", [name(index) for index in msrs if set_msr(vcpu, index, 0)], [])
    cr4 = get_sregs(vcpu).cr4
    for bit in bits:
        sregs = get_sregs(vcpu)
        sregs.cr4 |= 1 << bit
        refused(f"KVM_SET_SREGS with CR4 bit {bit}", errno.EINVAL, set_sregs, vcpu, sregs)
    equal("CR4 after the refusals", get_sregs(vcpu).cr4, cr4)
    # Those of the upper half are cr4.upper-half's.
    lower = [bit for bit in bits if bit < 32]
    for bit, answer in zip(lower, guest.write_cr4([cr4 | 1 << bit for bit in lower]), strict=True):
        equal(f"MOV to CR4 with bit {bit}, and CR4 then", answer, Answer(cr4, GP))
    has = [feature for feature in hidden if _cpu_has(feature)]
    context.note(f"hidden: {' '.join(hidden)}; this CPU has {' '.join(has) or 'none of them'}")
