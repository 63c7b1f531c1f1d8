# SPDX-License-Identifier: Apache-2.0
"""The rows of performance monitoring, Intel's and AMD's. No counter is enabled: what counts does not stand still.

Where KVM gives a vCPU no counters (kvm.enable_pmu=0, or a host without any) the oldest MSRs of both vendors are taken
and keep nothing: arch/x86/kvm/x86.c, kvm_set_msr_common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vmm.kvm.vcpu import Vcpu
from vmm.state.world.row import After, Canonical, Free, OneOf, Refusal, Row, Untold
from vmm.state.x86.world.msr_row import Guest, MsrRow, amd, at, cpuid, has, only_0, pmu
from vmm.state.x86.world.msrs_system import far

__all__ = ["ROWS"]

_INTEL = "arch/x86/kvm/vmx/pmu_intel.c, intel_pmu_refresh, intel_pmu_set_msr"
_AMD = "arch/x86/kvm/svm/pmu.c, amd_pmu_refresh, amd_pmu_set_msr"
_COMMON = "arch/x86/kvm/pmu.c, kvm_pmu_set_msr, kvm_pmu_refresh"
_TOP = 1 << 63
_ENABLE, _ANY_THREAD = 1 << 22, 1 << 21
_AMD_RESERVED = 0xFFFF_FFF0_0028_0000
_48 = (1 << 48) - 1
_MOST = 8
_OLD = {0xC1, 0xC2, 0x186, 0x187}
_NO_TRACE = "its bits go with the host's own performance monitoring"
_COUNTS = {"rdmsr": Guest.SAME, "wrmsr": Guest.SAME}


def _ignored() -> dict[str, Any]:
    return {"fresh": 0, "values": None, "refused": [], "masked": [(5, 0)], "wrmsr": Guest.NOTHING}


def _lacking(index: int) -> dict[str, Any]:
    """What a vCPU without this counter has of it."""
    return _ignored() if index in _OLD or 0xC001_0000 <= index <= 0xC001_0007 else only_0()


def _general(vcpu: Vcpu) -> tuple[int, int]:
    """Return how many general counters a vCPU has, and how wide they are: CPUID leaf AH."""
    leaf = cpuid(vcpu).get(0xA)
    there = leaf.eax & 0xFF and pmu() and not amd(vcpu)
    return (min(leaf.eax >> 8 & 0xFF, _MOST), leaf.eax >> 16 & 0xFF) if there else (0, 0)


def _fixed(vcpu: Vcpu) -> tuple[int, int]:
    leaf = cpuid(vcpu).get(0xA)
    there = leaf.eax & 0xFF > 1 and _general(vcpu)[0]
    return (min(leaf.edx & 0x1F, 3), leaf.edx >> 5 & 0xFF) if there else (0, 0)


def _second(vcpu: Vcpu) -> bool:
    """Version 2 of Intel's brings what is global."""
    return cpuid(vcpu).get(0xA).eax & 0xFF > 1 and _general(vcpu)[0] > 0


def _enables(vcpu: Vcpu) -> int:
    return (1 << _general(vcpu)[0]) - 1 | ((1 << _fixed(vcpu)[0]) - 1) << 32


def _counter(number: int) -> Callable[[Vcpu], Mapping[str, Any]]:
    def varies(vcpu: Vcpu) -> Mapping[str, Any]:
        count, width = _general(vcpu)
        # The guest's WRMSR extends the sign of 32 bits.
        return (
            {"values": Free((1 << width) - 1), "wrmsr_values": Free(0x7FFF_FFFF)}
            if number < count
            else _lacking(0xC1 + number)
        )

    return varies


def _select(number: int) -> Callable[[Vcpu], Mapping[str, Any]]:
    def varies(vcpu: Vcpu) -> Mapping[str, Any]:
        if number >= _general(vcpu)[0]:
            return _lacking(0x186 + number)
        return {
            "values": Free(0xFFFF_FFFF & ~_ENABLE & ~_ANY_THREAD),
            "refused": [Refusal(_ANY_THREAD), Refusal(_TOP)],
        }

    return varies


def _fixed_counter(number: int) -> Callable[[Vcpu], Mapping[str, Any]]:
    def varies(vcpu: Vcpu) -> Mapping[str, Any]:
        count, width = _fixed(vcpu)
        return {"values": Free((1 << width) - 1)} if number < count else only_0()

    return varies


def _fixed_control(vcpu: Vcpu) -> Mapping[str, Any]:
    if not _second(vcpu):
        return only_0()
    interrupts = sum(8 << 4 * number for number in range(_fixed(vcpu)[0]))
    return {"values": Free(interrupts), "refused": [Refusal(_TOP), Refusal(4)]}


def _status(vcpu: Vcpu) -> Mapping[str, Any]:
    return {"values": Free(_enables(vcpu)), "wrmsr": Guest.FAULT} if _second(vcpu) else only_0()


def _control(vcpu: Vcpu) -> Mapping[str, Any]:
    if not _second(vcpu):
        return only_0()
    reset = OneOf((0, (1 << _general(vcpu)[0]) - 1), "from Linux 6.8 on all general counters are enabled at reset")
    return {"fresh": reset, "values": Free(_enables(vcpu)), "refused": [Refusal(_TOP), Refusal(1 << 62)]}


def _area(vcpu: Vcpu) -> Mapping[str, Any]:
    return far(vcpu) if has(vcpu, "DS") and _general(vcpu)[0] else only_0()


def _precise(vcpu: Vcpu) -> Mapping[str, Any]:
    return (
        {"values": Untold(_NO_TRACE), "rdmsr": Untold(_NO_TRACE), "wrmsr": Untold(_NO_TRACE)}
        if has(vcpu, "DS")
        else only_0()
    )


# --- AMD ---


def _amd_counters(vcpu: Vcpu) -> int:
    if not (amd(vcpu) and pmu()):
        return 0
    if has(vcpu, "PERFMON_V2"):
        return cpuid(vcpu).get(0x8000_0022).ebx & 0xF
    return 6 if has(vcpu, "PERFCTR_CORE") else 4


def _amd_counter(index: int, number: int, *, core: bool) -> Callable[[Vcpu], Mapping[str, Any]]:
    def varies(vcpu: Vcpu) -> Mapping[str, Any]:
        if (core and not has(vcpu, "PERFCTR_CORE")) or number >= _amd_counters(vcpu):
            return _lacking(index)
        return {"values": Free(_48)}

    return varies


def _amd_select(index: int, number: int, *, core: bool) -> Callable[[Vcpu], Mapping[str, Any]]:
    def varies(vcpu: Vcpu) -> Mapping[str, Any]:
        if (core and not has(vcpu, "PERFCTR_CORE")) or number >= _amd_counters(vcpu):
            return _lacking(index)
        allowed = ~_AMD_RESERVED & (1 << 36) - 1 & ~_ENABLE
        return {"values": Free(allowed), "masked": [(_TOP | 1 << 19 | 0x76, 0x76)]}

    return varies


def _amd_global(vcpu: Vcpu) -> Mapping[str, Any]:
    count = _amd_counters(vcpu) if has(vcpu, "PERFMON_V2") else 0
    return {"values": Free((1 << count) - 1)} if count else only_0()


def _amd_control(vcpu: Vcpu) -> Mapping[str, Any]:
    count = _amd_counters(vcpu) if has(vcpu, "PERFMON_V2") else 0
    reset = OneOf((0, (1 << count) - 1), "from Linux 6.8 on all counters are enabled at reset")
    return {"fresh": reset, "values": Free((1 << count) - 1), "masked": [(_TOP | 1, 1)]} if count else only_0()


def _row(fields: str, source: str, varies: Callable[[Vcpu], Mapping[str, Any]], **more: Any) -> MsrRow:
    return MsrRow(fields, source, **{"fresh": 0, "values": None} | more, init=After.KEPT, varies=varies)


# Beside the newer ones (PERFCTR_CORE) the four old ones are the same counters by other numbers.
_OLD_AMD = [
    row
    for number in range(4)
    for row in (
        _row(at(0xC001_0000 + number), f"{_AMD}: K7_EVNTSELn", _amd_select(0xC001_0000 + number, number, core=False),
             alone=True),
        _row(at(0xC001_0004 + number), f"{_AMD}: K7_PERFCTRn", _amd_counter(0xC001_0004 + number, number, core=False),
             alone=True),
    )
]  # fmt: skip
_NEW_AMD = [
    row
    for number in range(6)
    for row in (
        _row(at(0xC001_0200 + 2 * number), f"{_AMD}: F15H_PERF_CTLn",
             _amd_select(0xC001_0200 + 2 * number, number, core=True)),
        _row(at(0xC001_0201 + 2 * number), f"{_AMD}: F15H_PERF_CTRn",
             _amd_counter(0xC001_0201 + 2 * number, number, core=True)),
    )
]  # fmt: skip

ROWS: tuple[Row, ...] = (
    *(_row(at(0xC1 + number), f"{_INTEL}: PERFCTRn", _counter(number)) for number in range(_MOST)),
    *(_row(at(0x186 + number), f"{_INTEL}: EVENTSELn", _select(number)) for number in range(_MOST)),
    *(_row(at(0x309 + number), f"{_INTEL}: FIXED_CTRn", _fixed_counter(number)) for number in range(3)),
    _row(at(0x38D), f"{_INTEL}: FIXED_CTR_CTRL", _fixed_control),
    _row(at(0x38E), f"{_COMMON}: PERF_GLOBAL_STATUS", _status),
    _row(at(0x38F), f"{_COMMON}: PERF_GLOBAL_CTRL", _control),
    _row(at(0x600), f"{_INTEL}: DS_AREA", _area, values=Canonical()),
    _row(at(0x3F1, 0x3F2), f"{_INTEL}: PEBS_ENABLE, PEBS_DATA_CFG", _precise),
    *_OLD_AMD,
    *_NEW_AMD,
    _row(at(0xC000_0300), f"{_COMMON}: PERF_CNTR_GLOBAL_STATUS", _amd_global),
    _row(at(0xC000_0301), f"{_COMMON}: PERF_CNTR_GLOBAL_CTL", _amd_control),
)
