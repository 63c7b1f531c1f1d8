# SPDX-License-Identifier: Apache-2.0
"""What this host and its KVM offer an x86 guest: measured once, without creating a vCPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmm._kvm import lib
from vmm.ioctl import KvmError
from vmm.system import Kvm
from vmm.x86 import cpuid, memory_types, permission, xfeature
from vmm.x86.cpuid import Cpuid
from vmm.x86.memory_types import MemoryTypes

__all__ = ["CAPABILITIES", "Facts", "measure"]

CAPABILITIES = (
    "KVM_CAP_XSAVE", "KVM_CAP_XCRS", "KVM_CAP_XSAVE2", "KVM_CAP_ONE_REG", "KVM_CAP_SYS_ATTRIBUTES",
    "KVM_CAP_DISABLE_QUIRKS2", "KVM_CAP_SREGS2", "KVM_CAP_DEVICE_CTRL", "KVM_CAP_SYNC_REGS",
    "KVM_CAP_USER_MEMORY2", "KVM_CAP_GUEST_MEMFD", "KVM_CAP_DIRTY_LOG_RING", "KVM_CAP_MAX_VCPUS",
    "KVM_CAP_X86_TRIPLE_FAULT_EVENT", "KVM_CAP_EXCEPTION_PAYLOAD", "KVM_CAP_BINARY_STATS_FD",
    "KVM_CAP_IRQCHIP", "KVM_CAP_SIGNAL_MSI",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """Measured facts; a None is a call that this kernel does not have.

    ``xcomp_*`` are the arch_prctl answers, ``guest_supported`` is KVM_X86_XCOMP_GUEST_SUPP, ``cpuid`` is
    KVM_GET_SUPPORTED_CPUID without any guest permission, ``xcr0`` what the host itself has enabled.
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

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for people."""
        return [
            ("back end", self.backend),
            ("CPU", f"{self.model} ({self.vendor})"),
            ("host XCR0", xfeature.describe(self.xcr0)),
            ("host may grant (ARCH_GET_XCOMP_SUPP)", _maybe(self.xcomp_supported)),
            ("guest permission (ARCH_GET_XCOMP_GUEST_PERM)", _maybe(self.xcomp_guest_permitted)),
            ("KVM supports (KVM_X86_XCOMP_GUEST_SUPP)", _maybe(self.guest_supported)),
            ("guest XCR0 (CPUID 0xD.0)", xfeature.describe(self.cpuid.xcr0)),
            ("guest IA32_XSS (CPUID 0xD.1)", xfeature.describe(self.cpuid.xss)),
            ("guest XSAVE features", " ".join(self.cpuid.get(0xD, 1).features()) or "none"),
            (
                "XSAVE area",
                f"{self.cpuid.get(0xD).ecx} bytes by CPUID, {self.capabilities['KVM_CAP_XSAVE2']} by KVM",
            ),
            *self.memory_types.lines(),
        ]

    def to_json(self) -> dict[str, object]:
        """Return the facts as JSON values; CPUID as one line an entry."""
        return {
            "backend": self.backend,
            "cpu": {"vendor": self.vendor, "model": self.model},
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


def _maybe(value: int | None) -> str:
    return "not known to this kernel" if value is None else xfeature.describe(value)


def _backend() -> str:
    for name in ("kvm_pvm", "kvm_intel", "kvm_amd"):
        if Path("/sys/module", name).exists():
            return name
    return "unknown"


def _try(call: object) -> int | None:
    try:
        return call()  # type: ignore[operator, no-any-return]
    except KvmError:
        return None


def measure(kvm: Kvm) -> Facts:
    """Measure everything; creates no vCPU, so the process's guest permission stays open."""
    backend = _backend()
    return Facts(
        backend=backend,
        vendor=cpuid.vendor(cpuid.host),
        # A leaf above the highest would answer as the highest basic one does.
        model=cpuid.model(cpuid.host) if cpuid.host(0x80000000).eax >= 0x80000004 else "unknown",
        xcr0=int(lib.vmm_xgetbv(0)) if lib.vmm_has_osxsave() else 0,
        xcomp_supported=_try(permission.host_supported),
        xcomp_guest_permitted=_try(permission.guest_permitted),
        guest_supported=_try(lambda: permission.guest_supported(kvm)),
        cpuid=cpuid.supported(kvm),
        capabilities={name: kvm.check_extension(getattr(lib, name)) for name in CAPABILITIES},
        memory_types=memory_types.measure(kvm, backend),
    )
