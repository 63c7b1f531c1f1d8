# SPDX-License-Identifier: Apache-2.0
"""What a row says of MSRs beside: what RDMSR and WRMSR of the guest do; and what a vCPU's CPUID tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from types import MappingProxyType

from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.state.world.row import Of, Refusal, Row, Untold, Values
from vmm.x86 import msr
from vmm.x86.cpuid import Cpuid, vendor
from vmm.x86.cpuid_names import PLACES
from vmm.x86.msr_names import saved_name

__all__ = [
    "ALL",
    "FEATURES",
    "INTEL",
    "KVM_PAGES",
    "KVM_PAGES_SIZE",
    "Guest",
    "MsrRow",
    "amd",
    "at",
    "cpuid",
    "feature",
    "has",
    "ignores_unknown",
    "needs",
    "only_0",
    "pmu",
    "unknown",
]

ALL = (1 << 64) - 1
# Guest memory that the values point to in which KVM writes: whoever writes such values has memory there.
KVM_PAGES, KVM_PAGES_SIZE = 0x30_0000, 0x1_0000
_AMD_COMPATIBLE = ("AuthenticAMD", "HygonGenuine")
_PMU_CAPABILITY = 212  # KVM_CAP_PMU_CAPABILITY


class Guest(Enum):
    """What a guest's access is: as the host's, #GP, #GP unless kvm.ignore_msrs is on, or taken for nothing."""

    SAME = auto()
    FAULT = auto()
    UNKNOWN = auto()
    NOTHING = auto()


@dataclass(frozen=True, slots=True)
class MsrRow(Row):
    """MSRs. ``rdmsr`` and ``wrmsr`` are the guest's, the latter of ``wrmsr_values`` where it may write less.

    ``frozen``: a VMM chooses it before the vCPU has run.
    """

    rdmsr: Guest | Untold = Guest.SAME
    wrmsr: Guest | Untold = Guest.SAME
    wrmsr_values: Values | None = None
    frozen: bool = False


def at(*indices: int) -> str:
    """Return the fields of MSRs, as a row names them."""
    return " ".join(saved_name(index) for index in indices)


# --- what a vCPU has ---


@cache
def _table(packed: bytes) -> Cpuid:
    return Cpuid.unpack(packed)


def cpuid(vcpu: Vcpu) -> Cpuid:
    """Return the CPUID that a vCPU was given; empty if it has none."""
    return _table(vcpu.chosen.get("CPUID", b""))


def has(vcpu: Vcpu, *features: str) -> bool:
    """Tell whether a vCPU's CPUID has one of these features."""
    return any(_has(vcpu.chosen.get("CPUID", b""), feature) for feature in features)


@cache
def _has(packed: bytes, feature: str) -> bool:
    (function, index, register), bit = PLACES[feature]
    return bool(getattr(_table(packed).get(function, index), register) >> bit & 1)


def amd(vcpu: Vcpu) -> bool:
    """Tell whether KVM treats a vCPU as AMD's. Source: arch/x86/kvm/cpuid.h, guest_cpuid_is_amd_or_hygon."""
    return vendor(cpuid(vcpu).get) in _AMD_COMPATIBLE


def INTEL(vcpu: Vcpu) -> str:
    """Intel's, and of those that are like it."""
    return "this vCPU is AMD's" if amd(vcpu) else ""


@cache
def _features() -> Mapping[int, int]:
    with Kvm() as kvm:
        values = {index: msr.get_feature_msr(kvm, index) for index in FEATURES}
    return MappingProxyType({index: value for index, value in values.items() if value is not None})


# VMX's capabilities, microcode, platform, what the CPU has and its performance monitoring, DE_CFG.
FEATURES = (*range(0x480, 0x492), 0x8B, 0xCE, 0x10A, 0x345, 0xC001_1029)


def feature(index: int) -> int:
    """Return what KVM supports of a feature MSR, 0 where it has none. The same for every VM: asked once a process."""
    try:
        return _features().get(index, 0)
    except KvmError:
        return 0  # before Linux 4.17 the call is a vCPU's only


@cache
def ignores_unknown() -> bool:
    """Does KVM take accesses to MSRs that it does not know? See vmm.x86.msr."""
    with Kvm() as kvm:
        return msr.ignores_unknown(kvm)


@cache
def pmu() -> bool:
    """Does KVM give vCPUs performance counters? Source: arch/x86/kvm/x86.c, KVM_CAP_PMU_CAPABILITY (enable_pmu)."""
    with Kvm() as kvm:
        return kvm.check_extension(_PMU_CAPABILITY) > 0


def unknown(*values: int) -> list[Refusal]:
    """Return the refusals of an MSR that this vCPU lacks: none where kvm.ignore_msrs is on."""
    return [] if ignores_unknown() else [Refusal(value) for value in values]


def only_0() -> dict[str, object]:
    """Return what a row says of an MSR that KVM lists and a vCPU lacks: the host may read 0 and write 0.

    Source: arch/x86/kvm/x86.c, kvm_do_msr_access; before Linux 6.12 kvm_set_msr_common, kvm_is_msr_to_save.
    """
    return {
        "fresh": 0,
        "values": Of(0),
        "refused": unknown(1),
        "masked": (),
        "rdmsr": Guest.UNKNOWN,
        "wrmsr": Guest.UNKNOWN,
    }


def needs(vcpu: Vcpu, *features: str) -> dict[str, object]:
    """Return nothing if a vCPU has one of the features, else that its guest gets #GP."""
    return {} if has(vcpu, *features) else {"rdmsr": Guest.FAULT, "wrmsr": Guest.FAULT}
