# SPDX-License-Identifier: Apache-2.0
"""Model-specific registers: reading and writing them from the host, by list and one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import KvmError, Refused
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import msr_names

__all__ = [
    "MAX_BATCH",
    "UNKNOWN_MSR",
    "feature_index_list",
    "get_feature_msr",
    "get_feature_msrs",
    "get_msr",
    "get_msrs",
    "get_readable",
    "ignores_unknown",
    "index_list",
    "msr_id",
    "name",
    "set_msr",
    "set_msrs",
    "try_get",
]

# MAX_IO_MSRS, arch/x86/kvm/x86.c: this many and more are refused with E2BIG.
MAX_BATCH = 256
# An MSR of a range that neither vendor nor KVM has any use for.
UNKNOWN_MSR = 0x4F000000


def name(index: int) -> str:
    """Return an MSR's name with its number, such as ``IA32_XSS (0xda0)``; ``MSR 0x200`` where it has none."""
    return f"{msr_names.name(index)} ({index:#x})" if index in msr_names.NAMED else msr_names.name(index)


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


def feature_index_list(kvm: Kvm) -> list[int]:
    """KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that say what a CPU has, none before Linux 4.17."""
    listed = ffi.new("struct kvm_msr_list *", {"nmsrs": MAX_BATCH, "indices": MAX_BATCH})
    try:
        kvm.ioctl(lib.KVM_GET_MSR_FEATURE_INDEX_LIST, listed)
    except KvmError as error:
        if error.errno_name not in ("EINVAL", "ENOTTY"):
            raise
        return []
    return list(listed.indices[0 : listed.nmsrs])


def _batch(entries: Sequence[tuple[int, int]]) -> Any:
    rows = [(index, 0, value) for index, value in entries]
    return ffi.new("struct kvm_msrs *", {"nmsrs": len(rows), "entries": rows})


def get_msrs(vcpu: Vcpu, indices: Iterable[int]) -> list[int]:
    """KVM_GET_MSRS: the values up to the first MSR that KVM refuses, so the result may be shorter."""
    batch = _batch([(index, 0) for index in indices])
    done = vcpu.ioctl(lib.KVM_GET_MSRS, batch)
    return [entry.data for entry in batch.entries[0:done]]


def get_feature_msr(kvm: Kvm, index: int) -> int | None:
    """Return a feature MSR's value, None if KVM has no such. KvmError before Linux 4.17."""
    values = get_feature_msrs(kvm, [index])
    return values[0] if values else None


def get_feature_msrs(kvm: Kvm, indices: Iterable[int]) -> list[int]:
    """KVM_GET_MSRS of /dev/kvm: the values up to the first MSR that is no feature MSR. KvmError before Linux 4.17."""
    batch = _batch([(index, 0) for index in indices])
    done = kvm.ioctl(lib.KVM_GET_MSRS, batch)
    return [int(entry.data) for entry in batch.entries[0:done]]


def ignores_unknown(kvm: Kvm) -> bool:
    """Does KVM take accesses to MSRs that it does not know (kvm.ignore_msrs=1)? Asked of it, not of /sys.

    Source: arch/x86/kvm/x86.c, kvm_get_feature_msr: KVM_GET_MSRS of /dev/kvm goes by the same parameter.
    """
    try:
        return get_feature_msr(kvm, UNKNOWN_MSR) is not None
    except KvmError:
        return False  # before Linux 4.17 the call is a vCPU's only


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
