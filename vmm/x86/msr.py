# SPDX-License-Identifier: Apache-2.0
"""Model-specific registers: reading and writing them from the host, by list and one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import KvmError, Refused
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu

__all__ = [
    "MAX_BATCH",
    "Msr",
    "get_msr",
    "get_msrs",
    "get_readable",
    "index_list",
    "msr_id",
    "name",
    "set_msr",
    "set_msrs",
    "try_get",
]

# MAX_IO_MSRS, arch/x86/kvm/x86.c: this many and more are refused with E2BIG.
MAX_BATCH = 256


class Msr(IntEnum):
    """The MSRs this package names.

    Source: Intel SDM volume 4; Hyper-V TLFS for HV_*; Documentation/virt/kvm/x86/msr.rst for KVM_*.
    """

    TSC = 0x10
    KVM_WALL_CLOCK = 0x11
    KVM_SYSTEM_TIME = 0x12
    APIC_BASE = 0x1B
    SMI_COUNT = 0x34
    FEATURE_CONTROL = 0x3A
    TSC_ADJUST = 0x3B
    SPEC_CTRL = 0x48
    UCODE_REV = 0x8B
    SMBASE = 0x9E
    PLATFORM_INFO = 0xCE
    UMWAIT_CONTROL = 0xE1
    MTRRCAP = 0xFE
    ARCH_CAPABILITIES = 0x10A
    MISC_FEATURES_ENABLES = 0x140
    SYSENTER_CS = 0x174
    SYSENTER_ESP = 0x175
    SYSENTER_EIP = 0x176
    MCG_STATUS = 0x17A
    MCG_CTL = 0x17B
    MISC_ENABLE = 0x1A0
    XFD = 0x1C4
    XFD_ERR = 0x1C5
    PAT = 0x277
    MTRR_DEF_TYPE = 0x2FF
    U_CET = 0x6A0
    S_CET = 0x6A2
    PL0_SSP = 0x6A4
    PL1_SSP = 0x6A5
    PL2_SSP = 0x6A6
    PL3_SSP = 0x6A7
    INT_SSP_TAB = 0x6A8
    TSC_DEADLINE = 0x6E0
    XSS = 0xDA0
    HV_VP_RUNTIME = 0x40000010
    HV_TIME_REF_COUNT = 0x40000020
    KVM_WALL_CLOCK_NEW = 0x4B564D00
    KVM_SYSTEM_TIME_NEW = 0x4B564D01
    KVM_ASYNC_PF_EN = 0x4B564D02
    KVM_STEAL_TIME = 0x4B564D03
    KVM_PV_EOI_EN = 0x4B564D04
    KVM_POLL_CONTROL = 0x4B564D05
    KVM_ASYNC_PF_INT = 0x4B564D06
    EFER = 0xC0000080
    STAR = 0xC0000081
    LSTAR = 0xC0000082
    CSTAR = 0xC0000083
    SYSCALL_MASK = 0xC0000084
    FS_BASE = 0xC0000100
    GS_BASE = 0xC0000101
    KERNEL_GS_BASE = 0xC0000102
    TSC_AUX = 0xC0000103


def name(index: int) -> str:
    """Return an MSR's name with its number, such as ``IA32_XSS (0xda0)``."""
    try:
        return f"{Msr(index).name} ({index:#x})"
    except ValueError:
        return f"MSR {index:#x}"


def index_list(kvm: Kvm) -> list[int]:
    """KVM_GET_MSR_INDEX_LIST: the MSRs a VMM has to save and restore, in KVM's order."""
    probe = ffi.new("struct kvm_msr_list *", {"nmsrs": 0, "indices": 0})
    try:
        kvm.ioctl(lib.KVM_GET_MSR_INDEX_LIST, probe)
    except KvmError as error:
        if error.errno_name != "E2BIG":
            raise
    full = ffi.new("struct kvm_msr_list *", {"nmsrs": probe.nmsrs, "indices": int(probe.nmsrs)})
    kvm.ioctl(lib.KVM_GET_MSR_INDEX_LIST, full)
    return list(full.indices[0 : full.nmsrs])


def _batch(entries: Sequence[tuple[int, int]]) -> Any:
    rows = [(index, 0, value) for index, value in entries]
    return ffi.new("struct kvm_msrs *", {"nmsrs": len(rows), "entries": rows})


def get_msrs(vcpu: Vcpu, indices: Iterable[int]) -> list[int]:
    """KVM_GET_MSRS: the values up to the first MSR that KVM refuses, so the result may be shorter."""
    batch = _batch([(index, 0) for index in indices])
    done = vcpu.ioctl(lib.KVM_GET_MSRS, batch)
    return [entry.data for entry in batch.entries[0:done]]


def get_readable(vcpu: Vcpu, indices: Iterable[int]) -> dict[int, int]:
    """Return the values of those MSRs that KVM lets be read, in as few calls as that takes."""
    left = list(indices)
    found: dict[int, int] = {}
    while left:
        values = get_msrs(vcpu, left[: MAX_BATCH - 1])
        found.update(zip(left, values, strict=False))
        # What follows the values read is the one that was refused, unless the batch was full.
        left = left[len(values) + (len(values) < MAX_BATCH - 1) :]
    return found


def set_msrs(vcpu: Vcpu, values: Mapping[int, int] | Sequence[tuple[int, int]]) -> int:
    """KVM_SET_MSRS: how many were set before the first that KVM refused."""
    pairs = list(values.items()) if isinstance(values, Mapping) else list(values)
    return vcpu.ioctl(lib.KVM_SET_MSRS, _batch(pairs))


def try_get(vcpu: Vcpu, index: int) -> int | None:
    """Return one MSR's value, or None if KVM refuses to read it."""
    values = get_msrs(vcpu, [index])
    return values[0] if values else None


def get_msr(vcpu: Vcpu, index: int) -> int:
    """Return one MSR's value; Refused if KVM refuses to read it."""
    value = try_get(vcpu, index)
    if value is None:
        raise Refused(f"KVM does not let {name(index)} be read: this guest's CPUID lacks it, or KVM does")
    return value


def set_msr(vcpu: Vcpu, index: int, value: int) -> bool:
    """Set one MSR; False if KVM refused the MSR or the value."""
    return set_msrs(vcpu, [(index, value)]) == 1


def msr_id(index: int) -> int:
    """Return the KVM_{GET,SET}_ONE_REG id of an MSR (Linux 6.18 and later)."""
    return int(lib.KVM_REG_X86 | lib.KVM_REG_SIZE_U64 | lib.KVM_X86_REG_TYPE_MSR << 32 | index)
