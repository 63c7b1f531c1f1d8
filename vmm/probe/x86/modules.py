# SPDX-License-Identifier: Apache-2.0
"""Which KVM answers on this host, and what its modules were told.

Three facts of their own: the virtualization extension that the CPU has, the module that answers, the modules'
parameters. A folder below /sys/module says only that a module is there: one that is built in has a folder on every
CPU, and a container may see no /sys at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
from vmm.x86 import cpuid, msr
from vmm.x86.cpuid import Cpuid

__all__ = [
    "PVM",
    "backend",
    "extension",
    "hypervisor",
    "loaded",
    "parameters",
    "two_levels",
]

PVM = "kvm_pvm"
_INTEL, _AMD = "kvm_intel", "kvm_amd"
_FOLDER = Path("/sys/module")
# Parameters that change what the ABI or a guest shows; the rest is tuning.
_PARAMETERS = {
    "kvm": ("ignore_msrs", "report_ignored_msrs", "enable_pmu", "tdp_mmu", "force_emulation_prefix"),
    _INTEL: ("ept", "unrestricted_guest", "enable_apicv", "nested", "vpid", "pml", "preemption_timer"),
    _AMD: ("npt", "nested", "avic", "vgif", "vls", "sev"),
}  # fmt: skip
# The one that turns the second level of page tables off: without it KVM shadows the guest's tables.
_TWO_LEVELS = {_INTEL: "kvm_intel.ept", _AMD: "kvm_amd.npt"}
# IA32_VMX_PROCBASED_CTLS2 as KVM offers it to a nested hypervisor; bit 1 of what may be 1 (63:32) is "enable EPT".
_VMX_SECONDARY, _MAY_ENABLE_EPT = 0x48B, 1 << 33


def extension() -> str:
    """Return which virtualization extension the CPU has: "VMX", "SVM" or nothing (CPUID 1.ECX, 80000001H.ECX)."""
    if cpuid.host(1).ecx >> 5 & 1:
        return "VMX"
    if cpuid.has_leaf(0x80000001) and cpuid.host(0x80000001).ecx >> 2 & 1:
        return "SVM"
    return ""


def hypervisor() -> str:
    """Return the signature of the hypervisor that this kernel runs below (CPUID 40000000H), nothing without one."""
    if not cpuid.host(1).ecx >> 31:
        return ""
    entry = cpuid.host(0x40000000)
    return (
        b"".join(part.to_bytes(4, "little") for part in (entry.ebx, entry.ecx, entry.edx))
        .decode("latin-1")
        .rstrip("\0")
    )


def loaded(folder: Path = _FOLDER) -> frozenset[str] | None:
    """Return those of KVM's modules that the kernel has, loaded or built in; None where it does not say."""
    try:
        return frozenset(path.name for path in folder.iterdir() if path.name.split("_")[0] == "kvm")
    except OSError:
        return None


def backend(found: str, modules: Collection[str] | None, capabilities: Mapping[str, int]) -> str:
    """Return the module that answers: kvm_intel, kvm_amd, kvm_pvm, or "unknown".

    ``found`` is :func:`extension`, ``modules`` is :func:`loaded`. A KVM on a CPU without VMX and SVM is kvm_pvm, the
    only one that needs neither. Where both could answer, or nothing says which modules there are, what it offers
    decides: kvm_pvm has no nested virtualization and no SMM.
    """
    hardware = {"VMX": _INTEL, "SVM": _AMD}.get(found)
    if hardware is None:
        return PVM if modules is None or PVM in modules else "unknown"
    if modules is not None and PVM not in modules:
        return hardware
    if modules is not None and hardware not in modules:
        return PVM
    return hardware if capabilities["KVM_CAP_X86_SMM"] or capabilities["KVM_CAP_NESTED_STATE"] else PVM


def two_levels(kvm: Kvm, backend: str, told: Mapping[str, str], table: Cpuid) -> bool | None:
    """Does KVM give the guest page tables of its own (EPT, NPT), or shadow the guest's? None: nothing shows it.

    ``told`` is :func:`parameters`. Where that does not say, what KVM offers a nested hypervisor does: a second level
    only if it has one itself. ``table`` is KVM_GET_SUPPORTED_CPUID.

    Source: arch/x86/kvm/vmx/nested.c, nested_vmx_setup_secondary_ctls; arch/x86/kvm/svm/svm.c, svm_set_cpu_caps.
    """
    if backend == PVM:
        return False
    parameter = told.get(_TWO_LEVELS.get(backend, ""))
    if parameter is not None:
        return parameter in ("Y", "1")
    if backend == _INTEL:
        secondary = _feature_msr(kvm, _VMX_SECONDARY)
        return bool(secondary & _MAY_ENABLE_EPT) if secondary else None
    if backend == _AMD and table.get(0x80000001).ecx >> 2 & 1:
        return bool(table.get(0x8000000A).edx & 1)
    return None


def parameters(folder: Path = _FOLDER) -> dict[str, str]:
    """Return what KVM's modules were told: "kvm.ignore_msrs": "N", ...; those that the kernel shows this process."""
    told = {}
    for module, names in _PARAMETERS.items():
        for name in names:
            try:
                told[f"{module}.{name}"] = (folder / module / "parameters" / name).read_text().strip()
            except OSError:
                continue
    return told


def _feature_msr(kvm: Kvm, index: int) -> int | None:
    """Return an MSR by KVM_GET_MSRS of /dev/kvm, None where KVM refuses it or the call."""
    try:
        return msr.get_feature_msr(kvm, index)
    except KvmError:
        return None  # before Linux 4.17 the call is a vCPU's only
