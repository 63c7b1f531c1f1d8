# SPDX-License-Identifier: Apache-2.0
"""The rows of KVM's own MSRs and of Hyper-V's. Where they enable a page it is in memory that a guest does not use.

KVM's own are every guest's unless its VMM has KVM hold it to its CPUID (KVM_CAP_ENFORCE_PV_FEATURE_CPUID). Hyper-V's
are its host's always, and the guest's if its CPUID has the leaves of Hyper-V: arch/x86/kvm/hyperv.c,
kvm_hv_set_msr_common.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmm._kvm import lib
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.state.world.row import After, Free, Of, Refusal, Row, Untold
from vmm.state.x86.world.msr_row import ALL, KVM_PAGES, Guest, MsrRow, at, cpuid, has
from vmm.x86.msr_names import Msr

__all__ = ["HYPERV_ROWS", "ROWS", "enlightened", "hyperv"]

_SET = "arch/x86/kvm/x86.c, kvm_set_msr_common, kvm_vcpu_reset; Documentation/virt/kvm/x86/msr.rst"
_PARTITION = "arch/x86/kvm/hyperv.c, kvm_hv_set_msr_pw, kvm_hv_get_msr_pw; the VM has one"
_PROCESSOR = "arch/x86/kvm/hyperv.c, kvm_hv_set_msr, kvm_hv_get_msr"
_DEBUGGER = "arch/x86/kvm/hyperv.c, syndbg_set_msr, syndbg_get_msr; the VM has one"
_TOP = 1 << 63
_CLOCK, _STEAL, _FAULTS, _EOI, _ASSIST, _HYPERCALL, _TSC_PAGE, _WALL = (
    KVM_PAGES + 0x1000 * page for page in range(8)
)  # fmt: skip
_APIC_HERTZ = 1_000_000_000
_DEBUGGER_LEAF, _KERNEL_DEBUGGING = 0x4000_0082, 1 << 1
# HYPERV_CPUID_INTERFACE and "Hv#1": arch/x86/kvm/hyperv.c, kvm_cpuid_has_hyperv.
_INTERFACE, _SIGNATURE = 0x4000_0001, 0x3123_7648


def hyperv(vcpu: Vcpu) -> bool:
    """Tell whether a vCPU's CPUID says that it runs below Hyper-V."""
    entry = cpuid(vcpu).find(_INTERFACE)
    return entry is not None and entry.eax == _SIGNATURE


def enlightened(vcpu: Vcpu) -> Mapping[str, Any]:
    """Return what a row says of MSRs that the guest has if it runs below Hyper-V."""
    return {} if hyperv(vcpu) else {"rdmsr": Guest.FAULT, "wrmsr": Guest.FAULT}


def _debugs(vcpu: Vcpu) -> bool:
    """Tell whether Hyper-V's synthetic debugger is the guest's: hyperv.c, kvm_hv_is_syndbg_enabled."""
    return hyperv(vcpu) and bool(cpuid(vcpu).get(_DEBUGGER_LEAF).eax & _KERNEL_DEBUGGING)


def _steal(vcpu: Vcpu) -> str:
    return "" if has(vcpu, "KVM_STEAL_TIME") else "this kernel counts no scheduling (CONFIG_SCHED_INFO)"


def _tsc_hertz(vcpu: Vcpu) -> Mapping[str, Any]:
    try:
        hertz = 1000 * vcpu.ioctl_value(lib.KVM_GET_TSC_KHZ)
    except KvmError:
        return {"fresh": Untold("KVM does not say how fast this vCPU's TSC is"), **enlightened(vcpu)}
    return {"fresh": hertz, "masked": [(5, hertz)], **enlightened(vcpu)}


_KVM = (
    # The older number of each clock is the same state as the newer one.
    MsrRow(at(Msr.KVM_WALL_CLOCK), f"{_SET}; the VM has one", fresh=0, values=Of(_WALL, _WALL + 0x40, 0),
           init=After.KEPT, runs=False, alone=True),
    MsrRow(at(Msr.KVM_WALL_CLOCK_NEW), f"{_SET}; the VM has one", fresh=0, values=Of(_WALL + 0x80, _WALL + 0xC0, 0),
           init=After.KEPT, runs=False),
    MsrRow(at(Msr.KVM_SYSTEM_TIME), f"{_SET}, kvmclock_reset", fresh=0, values=Of(_CLOCK + 0x40, _CLOCK + 0x81, 0),
           runs=False, alone=True),
    MsrRow(at(Msr.KVM_SYSTEM_TIME_NEW), f"{_SET}, kvmclock_reset", fresh=0,
           values=Of(_CLOCK | 1, _CLOCK + 0x100, 0x1_2345_6000, 0), runs=False),
    MsrRow(at(Msr.KVM_ASYNC_PF_EN), f"{_SET}, kvm_pv_enable_async_pf", fresh=0,
           values=Of(_FAULTS | 1, _FAULTS | 2, 0x1_2345_6040, 0), runs=False,
           refused=[Refusal(1 << 4), Refusal(1 << 5), Refusal(_FAULTS | 0x31)]),
    MsrRow(at(Msr.KVM_ASYNC_PF_INT), f"{_SET}, kvm_pv_enable_async_pf_int", fresh=0, values=Free(0xFF),
           refused=[Refusal(1 << 8), Refusal(_TOP)]),
    MsrRow(at(0x4B56_4D07), f"{_SET}: KVM_ASYNC_PF_ACK", fresh=0, values=None, init=None,
           masked=[(1, 0), (ALL & ~1, 0)], wrmsr=Guest.NOTHING),
    MsrRow(at(Msr.KVM_STEAL_TIME), f"{_SET}; KVM_STEAL_RESERVED_MASK", fresh=0,
           values=Of(_STEAL | 1, _STEAL + 0x40, 0x1_2345_6040, 0), runs=False,
           refused=[Refusal(1 << bit) for bit in range(1, 6)], when=_steal),
    MsrRow(at(Msr.KVM_PV_EOI_EN), "arch/x86/kvm/lapic.c, kvm_lapic_set_pv_eoi, kvm_lapic_reset", fresh=0,
           values=Of(_EOI | 1, _EOI + 4, 0x1_2345_6040, 0), runs=False,
           refused=[Refusal(2), Refusal(_EOI | 3), Refusal(_TOP | 2)]),
    MsrRow(at(Msr.KVM_POLL_CONTROL), f"{_SET}; kvm_arch_vcpu_postcreate", fresh=1, values=Of(0, 1), init=After.KEPT,
           refused=[Refusal(2), Refusal(_TOP)]),
)  # fmt: skip

_HYPERV = (
    # Without an identity there is no hypercall page: the identity is written first, and is never 0 with others.
    MsrRow(at(0x4000_0000), f"{_PARTITION}: GUEST_OS_ID", fresh=0,
           values=Of(0x8100_0123_4567_89AB, 0x1040_A000_0383_9, ALL, 1), masked=[(0, 0)], init=After.KEPT,
           varies=enlightened),
    MsrRow(at(0x4000_0001), f"{_PARTITION}: HYPERCALL", fresh=0,
           values=Of(_HYPERCALL | 1, 0xFFFF_FFFF_FFFF_FFFE, _HYPERCALL, 0), init=After.KEPT, runs=False,
           varies=enlightened),
    MsrRow(at(0x4000_0002), f"{_PROCESSOR}: VP_INDEX", fresh=0, values=Of(5, 3, 0), masked=[(1 << 32 | 7, 7)],
           refused=[Refusal(0xFFFF_FFFF)], init=After.KEPT, wrmsr=Guest.FAULT,
           varies=lambda vcpu: {} if hyperv(vcpu) else {"rdmsr": Guest.FAULT}),
    # A 1 resets the VM at its next KVM_RUN.
    MsrRow(at(0x4000_0003), f"{_PARTITION}: RESET", fresh=0, values=None, masked=[(2, 0)], init=None,
           varies=enlightened),
    MsrRow(at(0x4000_0021), f"{_PARTITION}: REFERENCE_TSC", fresh=0,
           values=Of(_TSC_PAGE | 1, 0xFFFF_FFFF_FFFF_FFFE, _TSC_PAGE, 0), init=After.KEPT, runs=False,
           varies=enlightened),
    MsrRow(at(0x4000_0022), f"{_PROCESSOR}: TSC_FREQUENCY, written for nothing", fresh=None, values=None,
           init=After.KEPT, wrmsr=Guest.FAULT, varies=_tsc_hertz),
    MsrRow(at(0x4000_0023), f"{_PROCESSOR}: APIC_FREQUENCY, written for nothing", fresh=_APIC_HERTZ, values=None,
           masked=[(5, _APIC_HERTZ)], init=After.KEPT, wrmsr=Guest.FAULT,
           varies=lambda vcpu: {} if hyperv(vcpu) else {"rdmsr": Guest.FAULT}),
    MsrRow(at(0x4000_0073), f"{_PROCESSOR}: VP_ASSIST_PAGE", fresh=0,
           values=Of(_ASSIST | 1, 0xFFFF_FFFF_FFFF_FFFE, _ASSIST, 0), init=After.KEPT, runs=False,
           varies=enlightened),
    MsrRow(at(0x4000_0080, 0x4000_00B0), "arch/x86/kvm/hyperv.c, synic_set_msr, stimer_set_config: SCONTROL and "
           "STIMER0_CONFIG without KVM_CAP_HYPERV_SYNIC", fresh=0, values=Of(0), init=After.KEPT,
           refused=[Refusal(1), Refusal(_TOP)], rdmsr=Guest.FAULT, wrmsr=Guest.FAULT),
    MsrRow(at(0x4000_00F1, 0x4000_00F5), f"{_DEBUGGER}: SYNDBG_CONTROL, SYNDBG_PENDING_BUFFER", fresh=0,
           values=Free(ALL), init=After.KEPT, varies=lambda vcpu: {"wrmsr": Untold("it ends KVM_RUN")}
           if _debugs(vcpu) else {"rdmsr": Guest.FAULT, "wrmsr": Guest.FAULT}),
    MsrRow(at(*range(0x4000_00F2, 0x4000_00F5), 0x4000_00FF), f"{_DEBUGGER}: SYNDBG_STATUS and its like", fresh=0,
           values=Free(ALL), init=After.KEPT,
           varies=lambda vcpu: {} if _debugs(vcpu) else {"rdmsr": Guest.FAULT, "wrmsr": Guest.FAULT}),
    MsrRow(at(*range(0x4000_0100, 0x4000_0105)), f"{_PARTITION}: CRASH_P0 to CRASH_P4", fresh=0, values=Free(ALL),
           init=After.KEPT, varies=enlightened),
    MsrRow(at(0x4000_0105), f"{_PARTITION}: CRASH_CTL", fresh=0, values=Of(_TOP, 0),
           masked=[(ALL, _TOP), (ALL & ~_TOP, 0)], init=After.KEPT, wrmsr=Untold("it ends KVM_RUN or does nothing"),
           varies=lambda vcpu: {} if hyperv(vcpu) else {"rdmsr": Guest.FAULT, "wrmsr": Guest.FAULT}),
    MsrRow(at(0x4000_0106, 0x4000_0107), f"{_PARTITION}: REENLIGHTENMENT_CONTROL, TSC_EMULATION_CONTROL", fresh=0,
           values=Free(ALL), init=After.KEPT, varies=enlightened),
    MsrRow(at(0x4000_0108), f"{_PARTITION}: TSC_EMULATION_STATUS, in which the guest may write 0 only", fresh=0,
           values=Free(ALL), wrmsr_values=Of(0), init=After.KEPT, varies=enlightened),
    MsrRow(at(0x4000_0118), f"{_PARTITION}: TSC_INVARIANT_CONTROL", fresh=0, values=Of(1, 0),
           refused=[Refusal(2), Refusal(_TOP)], wrmsr_values=Of(1), init=After.KEPT, varies=enlightened),
)  # fmt: skip

HYPERV_ROWS: tuple[Row, ...] = _HYPERV
ROWS: tuple[Row, ...] = (*_KVM, *_HYPERV)
