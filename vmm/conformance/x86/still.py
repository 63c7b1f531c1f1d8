# SPDX-License-Identifier: Apache-2.0
"""Guests that change nothing of their vCPU: what they run with is as unusual as the CPU lets it be in 64-bit mode."""

from __future__ import annotations

from typing import Any

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.world.tally import Tally
from vmm.conformance.world.ways import Traveller
from vmm.conformance.x86.apic import LOCAL_APICS, SPLIT, make_runnable
from vmm.kvm.exits import Budget
from vmm.kvm.vcpu import Vcpu
from vmm.state.world.row import Made
from vmm.state.world.table import Table
from vmm.state.x86.unsettled import before
from vmm.state.x86.world.tables import TABLES, VIEWS
from vmm.x86.boot import CR4_CET, CR4_OSXSAVE, CR4_PKE
from vmm.x86.cpuid import Cpuid, supported
from vmm.x86.guest import Guest
from vmm.x86.registers import get_regs, get_sregs, set_regs, set_sregs

__all__ = ["WAYS", "WITHOUT_CR4", "place", "still_guest", "still_guest_of_32_bits", "tick", "traveller"]

# For who reads and writes all tables.
WAYS = (capability("KVM_CAP_SREGS2"), LOCAL_APICS)

# What CPUID says while CR4 is 0: OSXSAVE and OSPKE are its.
WITHOUT_CR4 = {
    "CPUID.0x1.0.ecx": Made(lambda ecx: ecx & ~(1 << 27)),
    "CPUID.0x7.0.ecx": Made(lambda ecx: ecx & ~(1 << 4)),
}

# PG WP NE ET TS PE: the FPU is out of reach, which no instruction here uses. CET needs WP.
_CR0 = 0x80010039
_PAGE_CACHING = 0x18  # PWT and PCD in CR3
_PCID, _CR4_PCIDE = 0x5A3, 1 << 17
# Bits of CR4 that change nothing for code that uses neither memory nor tables, by the CPUID feature that offers them.
_CR4 = {
    "TSC": 1 << 2, "PSE": 1 << 4, "MCE": 1 << 6, "PGE": 1 << 7, "UMIP": 1 << 11, "FSGSBASE": 1 << 16,
    "XSAVE": CR4_OSXSAVE, "PKU": CR4_PKE, "SHSTK": CR4_CET, "IBT": CR4_CET,
}  # fmt: skip
_SCE = 1  # of EFER
_APIC = 0xFED9_0000
# For a guest without long mode: CPUID, the base of CS, and a CR3 that nothing uses.
_EXTENDED, _LM = 0x8000_0001, 1 << 29
_CODE, _PG, _ODD_CR3 = 0x8_1230, 1 << 31, 0x1234_5018
# Only FS and GS have a base and none has a limit in 64-bit mode; VM entry wants other bases of 32 bits, and G right.
_BASES = {"ds": 0x1234_5670, "es": 0xFEDC_BA90, "ss": 0x0F0F_0F00}
_LIMITS = {"ds": 0x2_3454, "es": 0xF_FFFE, "ss": 0x1, "fs": 0xFFFF_FFFF, "gs": 0x5678_9FFF, "ldt": 0x4567_8FFF}
_TYPES = {"ds": 0x7, "es": 0x1, "ss": 0x7, "fs": 0x5, "gs": 0x7}
# Of data segments not below the RPL.
_DPLS = {"ds": 2, "es": 1, "fs": 3, "gs": 3, "tr": 3, "ldt": 2}
_SELECTORS = {"cs": 0x128, "ds": 0x138, "es": 0x14C, "ss": 0x158, "fs": 0x163, "gs": 0x17B, "tr": 0x188, "ldt": 0x198}


def still_guest(context: Context, entry: str = "tick", *, vcpus: int = 1) -> Guest:
    """A guest with all that KVM supports, and local APICs in the kernel, ready to run at ``entry``."""
    before(context.kvm)
    guest = context.own(Guest(context.kvm, "still", vcpus=vcpus, capabilities=SPLIT))
    for index, processor in enumerate(guest.processors):
        place(guest, entry, index)
        make_runnable(processor.vcpu)
    return guest


def still_guest_of_32_bits(context: Context) -> Guest:
    """The same in protected mode without paging, with a CPUID that has no long mode."""
    before(context.kvm)
    table = supported(context.kvm)
    features = table.get(_EXTENDED)
    table = table.edit(_EXTENDED, edx=features.edx & ~_LM)
    guest = context.own(Guest(context.kvm, "still", cpuid=table, capabilities=SPLIT))
    vcpu = guest.vcpu
    sregs, regs = get_sregs(vcpu), get_regs(vcpu)
    _segments(sregs)
    _control(sregs, table)
    code = sregs.cs
    code.base, code.limit, code.type, code.db, code.g = _CODE, 0xFFFF_FFFF, 0xB, 1, 1
    sregs.ss.db, sregs.tr.type, sregs.ldt.type = 1, 0xB, 2
    sregs.cr0, sregs.cr3, sregs.cr4 = _CR0 & ~_PG, _ODD_CR3, sregs.cr4 & ~_CR4_PCIDE
    regs.rip = guest.payload.symbol("tick") - _CODE
    set_sregs(vcpu, sregs)
    set_regs(vcpu, regs)
    return guest


def place(guest: Guest, entry: str, index: int = 0) -> None:
    """Point a vCPU at an entry point, and give it segments and control registers that are unusual."""
    guest.prepare_vcpu(index, entry)
    vcpu = guest.processors[index].vcpu
    sregs = get_sregs(vcpu)
    _segments(sregs)
    _control(sregs, guest.cpuid)
    set_sregs(vcpu, sregs)


def traveller(vcpu: Vcpu, tally: Tally, *views: Table) -> Traveller:
    """Return a vCPU with all tables of x86, and with more that are only looked at."""
    return Traveller(vcpu, TABLES, tally, (*VIEWS, *views))


def _segments(sregs: Any) -> None:
    for name, selector in _SELECTORS.items():
        getattr(sregs, name).selector = selector
    for name, base in _BASES.items():
        getattr(sregs, name).base = base
    for name, limit in _LIMITS.items():
        segment = getattr(sregs, name)
        segment.limit, segment.g, segment.avl = limit, limit > 0xF_FFFF, 1
    for name, kind in _TYPES.items():
        getattr(sregs, name).type = kind
    for name, dpl in _DPLS.items():
        getattr(sregs, name).dpl = dpl
    sregs.cs.avl = 1
    sregs.tr.base, sregs.tr.limit, sregs.tr.avl = 0xFFFF_8765_4321_0F00, 0x3_4567, 1
    sregs.ldt.base, sregs.ldt.unusable, sregs.ldt.present = 0x7654_3210_FEDC, 0, 1
    sregs.gdt = {"base": 0xFFFF_9999_1234_5678, "limit": 0x3F7}
    sregs.idt = {"base": 0x6666_1234_5678, "limit": 0}


def _control(sregs: Any, offered: Cpuid) -> None:
    sregs.cr0, sregs.cr3, sregs.cr8 = _CR0, sregs.cr3 | _PAGE_CACHING, 5
    sregs.efer |= _SCE
    sregs.apic_base = sregs.apic_base & 0xFFF | _APIC
    for feature, bit in _CR4.items():
        if offered.has(feature):
            sregs.cr4 |= bit
    if offered.has("PCID"):
        sregs.cr4 |= _CR4_PCIDE
        sregs.cr3 |= _PCID


def tick(context: Context, vcpu: Vcpu, what: str, ticks: int = 3) -> None:
    """Run a vCPU to its next tick but ``ticks``, which has to come, and retire that instruction."""
    equal(f"the exit of {what}", succeeds(f"the run of {what}", vcpu.run, context.timeout, ticks), Budget(ticks))
    vcpu.complete()
