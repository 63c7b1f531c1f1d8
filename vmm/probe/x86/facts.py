# SPDX-License-Identifier: Apache-2.0
"""What this host and its KVM offer an x86 guest: measured once, without creating a vCPU.

Four kinds of facts that are easily taken for one another: what the CPU has (``extension``, ``xcr0``), what the kernel
lets this process have (``xcomp_guest_permitted``), what KVM supports (``guest_supported``, ``cpuid``,
``capabilities``), and what its modules were told (``parameters``, ``ignore_msrs``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vmm._kvm import lib
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
from vmm.probe.x86 import modules
from vmm.x86 import cpuid, memory_types, msr, permission, xfeature
from vmm.x86.cpuid import Cpuid
from vmm.x86.memory_types import MemoryTypes
from vmm.x86.xfeature import XFeature

__all__ = ["CALLS", "CAPABILITIES", "Facts", "measure"]

_NAMES = (
    "KVM_CAP_XSAVE", "KVM_CAP_XCRS", "KVM_CAP_XSAVE2", "KVM_CAP_ONE_REG", "KVM_CAP_SYS_ATTRIBUTES",
    "KVM_CAP_DISABLE_QUIRKS2", "KVM_CAP_SREGS2", "KVM_CAP_DEVICE_CTRL", "KVM_CAP_SYNC_REGS",
    "KVM_CAP_USER_MEMORY2", "KVM_CAP_GUEST_MEMFD", "KVM_CAP_DIRTY_LOG_RING", "KVM_CAP_MAX_VCPUS",
    "KVM_CAP_DIRTY_LOG_RING_ACQ_REL", "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", "KVM_CAP_READONLY_MEM",
    "KVM_CAP_X86_TRIPLE_FAULT_EVENT", "KVM_CAP_EXCEPTION_PAYLOAD", "KVM_CAP_BINARY_STATS_FD",
    "KVM_CAP_IRQCHIP", "KVM_CAP_SPLIT_IRQCHIP", "KVM_CAP_SIGNAL_MSI",
    "KVM_CAP_X86_USER_SPACE_MSR", "KVM_CAP_X86_MSR_FILTER", "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
)  # fmt: skip
CAPABILITIES = {name: int(getattr(lib, name)) for name in _NAMES} | {
    "KVM_CAP_X86_SMM": 117,
    "KVM_CAP_NESTED_STATE": 157,
}
# The calls that measure the facts that may be None.
CALLS = {
    "xcomp_supported": "ARCH_GET_XCOMP_SUPP",
    "xcomp_guest_permitted": "ARCH_GET_XCOMP_GUEST_PERM",
    "guest_supported": "KVM_X86_XCOMP_GUEST_SUPP",
}
# How a kernel says that it does not know a call of these: arch_prctl by EINVAL, an attribute by ENXIO or ENOTTY.
_NO_SUCH_CALL = ("EINVAL", "ENXIO", "ENOTTY", "ENODEV")


@dataclass(frozen=True, slots=True)
class Facts:
    """Measured facts; a None is a call that failed, and ``refusals`` has its errno's name.

    ``xcomp_*`` are the arch_prctl answers, ``guest_supported`` is KVM_X86_XCOMP_GUEST_SUPP, ``cpuid`` is
    KVM_GET_SUPPORTED_CPUID without any guest permission, ``xcr0`` what the host itself has enabled (0 without XSAVE).
    ``extension`` is VMX, SVM or nothing, ``hypervisor`` the signature of what this kernel runs below.
    """

    backend: str
    vendor: str
    model: str
    xcr0: int
    xcomp_supported: int | None
    xcomp_guest_permitted: int | None
    guest_supported: int | None
    cpuid: Cpuid
    capabilities: dict[str, int]
    memory_types: MemoryTypes
    extension: str = ""
    hypervisor: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    ignore_msrs: bool = False
    refusals: Mapping[str, str] = field(default_factory=dict)

    def supports(self, name: str) -> bool:
        """Can KVM give guests the xfeature with this name, whatever this process may ask for?"""
        return bool((self.guest_supported or 0) >> XFeature[name] & 1)

    def answer(self, name: str) -> str:
        """Return one of the values that may be None as a phrase: its bits by name, or why there is none."""
        value = getattr(self, name)
        if value is not None:
            return f"{CALLS[name]} is {xfeature.describe(value)}"
        errno = self.refusals.get(name, "EINVAL")
        if errno in _NO_SUCH_CALL:
            return f"this kernel has no {CALLS[name]} ({errno})"
        return (
            f"{CALLS[name]} fails with {errno}: something, such as a seccomp policy, keeps this process from asking"
        )

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for people."""
        return [
            ("back end", self.backend),
            ("CPU", f"{self.model} ({self.vendor}), {self.extension or 'neither VMX nor SVM'}"),
            ("below", self.hypervisor or "no hypervisor"),
            (
                "module parameters",
                ", ".join(f"{name}={value}" for name, value in self.parameters.items()) or "not shown",
            ),
            ("unknown MSRs (kvm.ignore_msrs)", "ignored" if self.ignore_msrs else "refused"),
            ("host XCR0", xfeature.describe(self.xcr0) if self.xcr0 else "no XSAVE"),
            ("host may grant (ARCH_GET_XCOMP_SUPP)", self._maybe("xcomp_supported")),
            ("guest permission (ARCH_GET_XCOMP_GUEST_PERM)", self._maybe("xcomp_guest_permitted")),
            ("KVM supports (KVM_X86_XCOMP_GUEST_SUPP)", self._maybe("guest_supported")),
            ("guest XCR0 (CPUID 0xD.0)", xfeature.describe(self.cpuid.xcr0)),
            ("guest IA32_XSS (CPUID 0xD.1)", xfeature.describe(self.cpuid.xss)),
            ("guest XSAVE features", " ".join(self.cpuid.get(0xD, 1).features()) or "none"),
            (
                "XSAVE area",
                f"{self.cpuid.get(0xD).ecx} bytes by CPUID, {self.capabilities['KVM_CAP_XSAVE2']} by KVM",
            ),
            *self.memory_types.lines(),
        ]

    def _maybe(self, name: str) -> str:
        value = getattr(self, name)
        return self.answer(name) if value is None else xfeature.describe(value)

    def to_json(self) -> dict[str, object]:
        """Return the facts as JSON values; CPUID as one line per entry."""
        return {
            "backend": self.backend,
            "cpu": {"vendor": self.vendor, "model": self.model, "extension": self.extension},
            "hypervisor": self.hypervisor,
            "parameters": dict(self.parameters),
            "ignore_msrs": self.ignore_msrs,
            "refusals": dict(self.refusals),
            "xcr0": self.xcr0,
            "xcomp_supported": self.xcomp_supported,
            "xcomp_guest_permitted": self.xcomp_guest_permitted,
            "guest_supported": self.guest_supported,
            "guest_xcr0": self.cpuid.xcr0,
            "guest_xss": self.cpuid.xss,
            "capabilities": self.capabilities,
            "memory_types": self.memory_types.to_json(),
            "cpuid": [str(entry) for entry in self.cpuid if any(entry.registers)],
        }


def _ask(calls: Mapping[str, Callable[[], int]]) -> tuple[dict[str, int | None], dict[str, str]]:
    """Return the answers of calls by name, None where one failed, and the names of those failures' errnos."""
    answers: dict[str, int | None] = {}
    refusals = {}
    for name, call in calls.items():
        try:
            answers[name] = call()
        except KvmError as error:
            answers[name] = None
            refusals[name] = error.errno_name
    return answers, refusals


def measure(kvm: Kvm) -> Facts:
    """Measure everything; creates no vCPU, so the process's guest permission stays open."""
    found = modules.extension()
    capabilities = {name: kvm.check_extension(number) for name, number in CAPABILITIES.items()}
    backend = modules.backend(found, modules.loaded(), capabilities)
    told, table = modules.parameters(), cpuid.supported(kvm)
    answers, refusals = _ask({
        "xcomp_supported": permission.host_supported,
        "xcomp_guest_permitted": permission.guest_permitted,
        "guest_supported": lambda: permission.guest_supported(kvm),
    })  # fmt: skip
    return Facts(
        backend=backend,
        vendor=cpuid.vendor(cpuid.host),
        model=cpuid.model(cpuid.host) if cpuid.has_leaf(0x80000004) else "unknown",
        xcr0=int(lib.vmm_xgetbv(0)) if lib.vmm_has_osxsave() else 0,
        **answers,
        cpuid=table,
        capabilities=capabilities,
        memory_types=memory_types.measure(kvm, backend, modules.two_levels(kvm, backend, told, table)),
        extension=found,
        hypervisor=modules.hypervisor(),
        parameters=told,
        ignore_msrs=msr.ignores_unknown(kvm),
        refusals=refusals,
    )
