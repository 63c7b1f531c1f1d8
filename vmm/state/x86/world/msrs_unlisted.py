# SPDX-License-Identifier: Apache-2.0
"""MSRs that KVM keeps and does not list for a VMM to save: another call has them, or few guests need them.

The vCPU has machine checks set up (KVM_X86_SETUP_MCE) and Hyper-V's synthetic interrupts (KVM_CAP_HYPERV_SYNIC2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vmm.kvm.vcpu import Vcpu
from vmm.state.world.row import After, Canonical, Free, Number, Of, OneOf, Refusal, Row, Untold
from vmm.state.world.table import Table
from vmm.state.x86.msrs import Msrs
from vmm.state.x86.world.msr_row import ALL, KVM_PAGES, Guest, MsrRow, amd, at, cpuid, feature, has, unknown
from vmm.state.x86.world.msrs import registers_table
from vmm.state.x86.world.msrs_cet import XFD_ROWS
from vmm.state.x86.world.msrs_paravirtual import HYPERV_ROWS, enlightened, hyperv
from vmm.state.x86.world.msrs_system import far
from vmm.x86.msr import get_msr
from vmm.x86.msr_names import STATELESS, Msr

__all__ = ["BANKS", "HYPERV", "MCG_CTL_P", "UNLISTED"]

_SET = "arch/x86/kvm/x86.c, kvm_set_msr_common, kvm_get_msr_common"
_MTRR = "arch/x86/kvm/mtrr.c, kvm_mtrr_set_msr, kvm_mtrr_valid; Intel SDM volume 3, 13.11"
_MCE = "arch/x86/kvm/x86.c, set_msr_mce, get_msr_mce, kvm_vcpu_ioctl_x86_setup_mce"
_SYNIC = "arch/x86/kvm/hyperv.c, synic_set_msr, synic_set_sint, kvm_hv_activate_synic"
_TIMER = "arch/x86/kvm/hyperv.c, stimer_set_config, stimer_set_count"
_TOP = 1 << 63
_VARIABLE, _FIXED = 8, (0x250, 0x258, 0x259, *range(0x268, 0x270))
# A VMM gives its guests some ten banks of machine checks; bit 8 of MCG_CAP brings MCG_CTL.
BANKS, MCG_CTL_P, _CMCI_P = 10, 1 << 8, 1 << 10
# The first and the last of what there are many of, and one between: time is dear in an emulated machine.
_BANKS, _SINTS, _STIMERS = (0, 4, BANKS - 1), (0, 2, 15), (0, 3)
_CTL2 = 1 << 30 | 0x7FFF
_MCG_CAP = 0x179
_COUNTS = "it counts"
_COUNTERS = "the guest has it if it has the counters that it goes with"
_MASKED = 0x1_0000
_DE_CFG = 0xC001_1029

# MSRs that read as one number, whatever is written: arch/x86/kvm/x86.c, kvm_get_msr_common.
_CONSTANT = {
    0xCD: 3, 0x2C: 1 << 24, 0x198: 4 << 40 | 1000, 0x11E: 0xBE70_2111, 0xC001_001B: 0x2000_0000,
    0: 0, 1: 0, 0x17: 0, 0x2A: 0, 0x199: 0, 0x606: 0, 0x611: 0, 0x619: 0, 0x639: 0, 0x641: 0, 0xC001_0010: 0,
    0xC001_001F: 0, 0xC001_0055: 0, 0xC001_0058: 0, 0xC001_0112: 0, 0xC001_0113: 0, 0xC001_1022: 0, 0xC001_1023: 0,
}  # fmt: skip
# Written for nothing: the others of them are the CPU's to change.
_DROPPED = {0x11E, 0xC001_001B, 0xC001_001F, 0xC001_1022, 0xC001_1023}


def _physical(vcpu: Vcpu) -> int:
    """Return how many bits a guest's physical addresses have: CPUID leaf 80000008H."""
    return cpuid(vcpu).get(0x8000_0008).eax & 0xFF or 36


def _base(vcpu: Vcpu) -> Mapping[str, Any]:
    highest = 1 << _physical(vcpu) - 1
    wrong = (2, 7, 0x100, highest << 1, _TOP)
    return {
        "values": Of(0x1234_5006, highest | 0x1000 | 5, 4, 0), "refused": [Refusal(value) for value in wrong],
    }  # fmt: skip


def _mask(vcpu: Vcpu) -> Mapping[str, Any]:
    highest = 1 << _physical(vcpu) - 1
    wrong = (1, 0x400, highest << 1, _TOP)
    return {
        "values": Of(highest | 0x800, 0x7FFF_F000, highest - 1 & ~0x7FF, 0),
        "refused": [Refusal(value) for value in wrong],
    }  # fmt: skip


def _second(vcpu: Vcpu) -> Mapping[str, Any]:
    if get_msr(vcpu, _MCG_CAP) & _CMCI_P:
        return {"values": Free(_CTL2), "refused": [Refusal(1 << 15), Refusal(_TOP)]}
    return {"values": Of(0), "refused": [Refusal(1)], "rdmsr": Guest.FAULT, "wrmsr": Guest.FAULT}


def _de_cfg(vcpu: Vcpu) -> Mapping[str, Any]:
    value = feature(_DE_CFG)
    wanted: Number | OneOf = OneOf(
        (0, value), "a vCPU's is 0 until its VMM writes it, but on KVM that is not to stay"
    )
    return {"fresh": wanted, "values": Of(value, 0), "refused": [Refusal(~value & -~value), Refusal(_TOP)]}


def _leaves(vcpu: Vcpu) -> Mapping[str, Any]:
    """What the guest writes there its VMM is told."""
    return {"wrmsr": Untold("it ends KVM_RUN")} if hyperv(vcpu) else enlightened(vcpu)


def _hash(vcpu: Vcpu) -> Mapping[str, Any]:
    return {} if has(vcpu, "SGX_LC") else {"rdmsr": Guest.FAULT, "wrmsr": Guest.FAULT}


def _constants() -> list[MsrRow]:
    return [
        MsrRow(at(index), f"{_SET}: always the same", fresh=value, values=None, init=None,
               masked=[(5, value)] if index in _DROPPED else (), wrmsr=Guest.NOTHING if index in _DROPPED else
               Untold("the VMM may not write it either, or only some of it"))
        for index, value in _CONSTANT.items()
    ]  # fmt: skip


_SYNTHETIC = (
    MsrRow(at(0x4000_0080), f"{_SYNIC}: SCONTROL", fresh=1, values=Free(ALL), init=After.KEPT, varies=_leaves),
    MsrRow(at(0x4000_0081), f"{_SYNIC}: SVERSION", fresh=1, values=Free(ALL), init=After.KEPT, wrmsr=Guest.FAULT,
           varies=lambda vcpu: {} if hyperv(vcpu) else {"rdmsr": Guest.FAULT}),
    MsrRow(at(0x4000_0082, 0x4000_0083), f"{_SYNIC}: SIEFP, SIMP", fresh=0,
           values=Of(KVM_PAGES + 0xA001, ALL, KVM_PAGES + 0xB000, 0), init=After.KEPT, varies=_leaves),
    MsrRow(at(0x4000_0084), f"{_SYNIC}: EOM", fresh=0, values=None, masked=[(5, 0)], init=None,
           varies=lambda vcpu: {"wrmsr": Guest.NOTHING} if hyperv(vcpu) else enlightened(vcpu)),
    MsrRow(at(*(0x4000_0090 + number for number in _SINTS)), f"{_SYNIC}: SINTn, masked at first", fresh=_MASKED,
           values=Free(0xFFFF_FFFF_FFFE_FF00, _MASKED | 0x31), masked=[(0, 0), (0x2_0044, 0x2_0044)],
           init=After.KEPT, varies=enlightened),
    MsrRow(at(*(0x4000_00B0 + 2 * number for number in _STIMERS)), f"{_TIMER}: STIMERn_CONFIG, not enabled",
           fresh=0, values=Free(ALL & ~9), init=After.KEPT, varies=enlightened),
    MsrRow(at(*(0x4000_00B1 + 2 * number for number in _STIMERS)), f"{_TIMER}: STIMERn_COUNT", fresh=0,
           values=Free(ALL), init=After.KEPT, varies=enlightened),
)  # fmt: skip

ROWS: tuple[Row, ...] = (
    MsrRow(at(Msr.FS_BASE, Msr.GS_BASE), "arch/x86/kvm/x86.c, __kvm_set_msr; Intel SDM volume 3, table 11-1",
           fresh=0, values=Canonical(), varies=far),
    MsrRow(at(Msr.EFER), "arch/x86/kvm/x86.c, set_efer, kvm_valid_efer; KVM_GET_SREGS shows it too", fresh=0,
           values=Of(1, 0), refused=[Refusal(2), Refusal(_TOP)], masked=[(0x401, 1)], runs=False,
           rdmsr=Untold("the guest has its own mode there"), wrmsr=Untold("the guest has its own mode there")),
    MsrRow(at(Msr.APIC_BASE), "arch/x86/kvm/lapic.c, kvm_apic_set_base, kvm_lapic_reset", fresh=0xFEE0_0900,
           values=None, init=After.KEPT, refused=[Refusal(0xFEE0_0901), Refusal(1 << 62 | 0xFEE0_0900)],
           wrmsr=Untold("it moves the APIC, which the clauses on LAPIC do")),
    MsrRow(at(Msr.TSC_DEADLINE), "arch/x86/kvm/lapic.c, kvm_set_lapic_tscdeadline_msr: nothing without the timer's "
           "mode", fresh=0, values=None, masked=[(5, 0)], init=None, wrmsr=Guest.NOTHING),
    MsrRow(at(Msr.MTRRCAP), f"{_MTRR}, kvm_mtrr_get_msr", fresh=0x508, values=None, init=None, wrmsr=Guest.UNKNOWN,
           varies=lambda vcpu: {"refused": unknown(0x509)}),
    MsrRow(at(Msr.MTRR_DEF_TYPE), _MTRR, fresh=0, values=Of(0xC06, 0x804, 0x400, 0), init=After.KEPT,
           refused=[Refusal(value) for value in (2, 3, 7, 1 << 8, 1 << 9, 1 << 12, _TOP)]),
    MsrRow(at(*_FIXED), _MTRR, fresh=0, init=After.KEPT,
           values=Of(0x0606_0606_0606_0606, 0x0001_0405_0605_0401, 0x0500_0600_0400_0100, 0),
           refused=[Refusal(2), Refusal(0x0300_0000_0000_0000), Refusal(0x0000_0007_0000_0000), Refusal(_TOP)]),
    MsrRow(at(*range(0x200, 0x200 + 2 * _VARIABLE, 2)), f"{_MTRR}: PHYSBASEn", fresh=0, values=None,
           init=After.KEPT, varies=_base),
    MsrRow(at(*range(0x201, 0x201 + 2 * _VARIABLE, 2)), f"{_MTRR}: PHYSMASKn", fresh=0, values=None,
           init=After.KEPT, varies=_mask),
    MsrRow(at(_MCG_CAP), f"{_MCE}: MCG_CAP", fresh=Untold("what KVM_X86_SETUP_MCE was given"), values=None,
           init=After.KEPT, wrmsr=Guest.UNKNOWN, varies=lambda vcpu: {"refused": unknown(1)}),
    MsrRow(at(Msr.MCG_CTL), f"{_MCE}", fresh=ALL, values=Of(0, ALL), init=After.KEPT,
           refused=[Refusal(1), Refusal(ALL - 1), Refusal(_TOP)]),
    MsrRow(at(*(0x400 + 4 * bank for bank in _BANKS)), f"{_MCE}: MCi_CTL", fresh=ALL, init=After.KEPT,
           values=Of(0, ALL & ~(1 << 10), ALL & ~1, ALL), refused=[Refusal(1), Refusal(ALL & ~2), Refusal(_TOP)]),
    MsrRow(at(*(0x401 + 4 * bank for bank in _BANKS)), f"{_MCE}: MCi_STATUS, which the guest may clear",
           fresh=0, values=Free(ALL), wrmsr_values=Of(0), init=After.KEPT),
    MsrRow(at(*(0x402 + 4 * bank for bank in _BANKS), *(0x403 + 4 * bank for bank in _BANKS)),
           f"{_MCE}: MCi_ADDR, MCi_MISC", fresh=0, values=Free(ALL), init=After.KEPT),
    MsrRow(at(*(0x280 + bank for bank in _BANKS)), f"{_MCE}: MCi_CTL2", fresh=0, values=None, init=After.KEPT,
           varies=_second),
    MsrRow(at(0xC001_0140, 0xC001_0141), f"{_SET}; svm/svm.c, svm_init_osvw: OSVW_ID_LENGTH, OSVW_STATUS",
           fresh=Untold("it tells which errata the host's CPU has"), values=Free(ALL), init=After.KEPT,
           varies=lambda vcpu: {} if amd(vcpu) else {"fresh": 0}),
    MsrRow(at(0xC001_0114), "arch/x86/kvm/svm/svm.c, svm_set_vm_cr: VM_CR", fresh=0, values=Of(7, 2, 4, 0),
           init=After.KEPT, refused=[Refusal(1 << 5), Refusal(_TOP)]),
    MsrRow(at(_DE_CFG), "arch/x86/kvm/svm/svm.c, svm_set_msr, svm_get_feature_msr: DE_CFG", fresh=None, values=None,
           init=After.KEPT, varies=_de_cfg, frozen=True),
    MsrRow(at(*range(0x8C, 0x90)), "arch/x86/kvm/vmx/vmx.c, vmx_set_msr: SGXLEPUBKEYHASHn", init=After.KEPT,
           fresh=Untold("it is Intel's key, or what the host's CPU has"), values=Free(ALL), varies=_hash),
    MsrRow(at(Msr.HV_VP_RUNTIME, Msr.HV_TIME_REF_COUNT), "arch/x86/kvm/hyperv.c, kvm_hv_get_msr",
           fresh=Untold(_COUNTS), values=None, init=None, kept=Untold(_COUNTS), rdmsr=Guest.FAULT, wrmsr=Guest.FAULT),
    MsrRow(at(*STATELESS), "arch/x86/kvm/pmu.c, kvm_pmu_get_msr: they act on others", fresh=0, values=Of(0),
           init=None, rdmsr=Untold(_COUNTERS), wrmsr=Untold(_COUNTERS)),
    *XFD_ROWS,
    *_SYNTHETIC,
    *_constants(),
)  # fmt: skip


def _table(title: str, rows: Sequence[Row]) -> Table:
    """Return a table that is no piece of a state: what a restore has to write of it, other pieces have.

    Rows name MSRs by their numbers, but for those that saved states have names for.
    """
    names = {member.name: int(member) for member in Msr}
    fields = {name for row in rows for name in row.fields.split()}
    indices = tuple(sorted(names[name] if name in names else int(name, 16) for name in fields))
    return registers_table(
        title, Msrs("MSR", lambda vcpu: indices, lambda: frozenset(indices), required=False), *rows
    )


UNLISTED = _table("unlisted-msrs", ROWS)
# For a guest that is told that it runs below Hyper-V; of the others only those without synthetic interrupts.
HYPERV = _table("hyperv-msrs", (*_SYNTHETIC, *HYPERV_ROWS))
