# SPDX-License-Identifier: Apache-2.0
"""Memory types: IA32_PAT as a value, and who decides on this host how a guest's memory is cached.

Source: Intel SDM volume 3, 12.12 "Page attribute table (PAT)"; arch/x86/kvm/vmx/vmx.c, vmx_get_mt_mask;
Documentation/virt/kvm/api.rst 7.31 (KVM_CAP_DISABLE_QUIRKS2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag, StrEnum
from pathlib import Path

from vmm._kvm import lib
from vmm.kvm import coherence
from vmm.kvm.device import VFIO_FOLDER, device_type_answers, vfio_groups
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
from vmm.x86 import cpuid

__all__ = [
    "PAT_AT_RESET",
    "GuestPat",
    "MemoryType",
    "MemoryTypes",
    "Quirk",
    "describe_quirks",
    "measure",
    "pat",
    "self_snoop",
]

PAT_AT_RESET = 0x0007040600070406
_CPUINFO = Path("/proc/cpuinfo")
_BACKENDS = ("kvm_intel", "kvm_amd", "kvm_pvm")


class Quirk(IntFlag):
    """KVM_X86_QUIRK_*: behaviours that KVM_CAP_DISABLE_QUIRKS2 turns off; arch/x86/include/uapi/asm/kvm.h, 7.2."""

    LINT0_REENABLED = 1 << 0
    CD_NW_CLEARED = 1 << 1
    LAPIC_MMIO_HOLE = 1 << 2
    OUT_7E_INC_RIP = 1 << 3
    MISC_ENABLE_NO_MWAIT = 1 << 4
    FIX_HYPERCALL_INSN = 1 << 5
    MWAIT_NEVER_UD_FAULTS = 1 << 6
    SLOT_ZAP_ALL = 1 << 7
    STUFF_FEATURE_MSRS = 1 << 8
    IGNORE_GUEST_PAT = 1 << 9
    VMCS12_ALLOW_FREEZE_IN_SMM = 1 << 10
    NESTED_SVM_SHARED_PAT = 1 << 11


class MemoryType(IntEnum):
    """The encodings an entry of IA32_PAT may have; every other one is reserved."""

    UC = 0
    WC = 1
    WT = 4
    WP = 5
    WB = 6
    UC_MINUS = 7


def pat(types: Iterable[MemoryType]) -> int:
    """Return IA32_PAT with these types in its entries from 0 on, write-back in the others."""
    entries = [*types]
    entries += [MemoryType.WB] * (8 - len(entries))
    return int.from_bytes(bytes(entries), "little")


class GuestPat(StrEnum):
    """What becomes of the memory types that a guest chooses."""

    IGNORED = "ignored"  # all of its memory is write-back
    QUIRK = "quirk"  # ignored, until KVM_X86_QUIRK_IGNORE_GUEST_PAT is disabled
    HONOURED = "honoured"
    UNKNOWN = "unknown"  # a KVM that nothing is known of, or that does not show whether it shadows page tables


@dataclass(frozen=True, slots=True)
class MemoryTypes:
    """What decides about the caching of guest memory here.

    ``two_levels``: the guest has page tables of its own (EPT, NPT), not KVM's shadow of them; None where nothing
    shows it. ``quirks`` is KVM_CAP_DISABLE_QUIRKS2. ``nested``: a hypervisor is below, which may have the last word.
    ``vfio``: KVM has the VFIO device; ``groups`` are the VFIO groups that could be given to it.
    """

    guest_pat: GuestPat
    two_levels: bool | None
    quirks: int
    self_snoop: bool
    nested: bool
    vfio: bool
    groups: tuple[str, ...]
    flush_instruction: str
    line_size: int

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for people."""
        groups = f"groups {', '.join(self.groups)}" if self.groups else f"no group in {VFIO_FOLDER}"
        below = "; a hypervisor below this kernel may decide otherwise" if self.nested else ""
        return [
            ("guest PAT", _PAT_TEXT[self.guest_pat] + below),
            ("guest page tables", self.tables()),
            ("self-snoop", "yes" if self.self_snoop else "no"),
            ("quirks that can be disabled", describe_quirks(self.quirks)),
            ("KVM's VFIO device", f"{'yes' if self.vfio else 'no'}, {groups}"),
            ("cache lines", f"{self.line_size} bytes, flushed by {self.flush_instruction or 'nothing'}"),
            ("a VMM here has to", self.duty()),
        ]

    def tables(self) -> str:
        """Say what KVM does with the guest's page tables."""
        if self.two_levels is None:
            return "not shown, neither by a module parameter nor by what KVM offers a nested hypervisor"
        return "second level (EPT, NPT)" if self.two_levels else "shadowed by KVM"

    def duty(self) -> str:
        """Say what a VMM that reads guest memory has to do on this host."""
        if self.guest_pat is GuestPat.HONOURED:
            return "flush before it reads what the guest maps uncached or a non-coherent device writes"
        if self.guest_pat is GuestPat.QUIRK:
            return "flush before it reads guest memory once it disables the quirk or adds a non-coherent VFIO group"
        if self.guest_pat is GuestPat.UNKNOWN:
            return "flush before it reads guest memory that anybody may map uncached or write by DMA"
        return "flush only what a non-coherent device writes: the guest's own accesses are cached"

    def to_json(self) -> dict[str, object]:
        """Return the facts as JSON values."""
        return {
            "guest_pat": str(self.guest_pat),
            "two_levels": self.two_levels,
            "quirks": [quirk.name for quirk in Quirk if self.quirks & quirk],
            "self_snoop": self.self_snoop,
            "nested": self.nested,
            "vfio": self.vfio,
            "vfio_groups": list(self.groups),
            "flush_instruction": self.flush_instruction,
            "line_size": self.line_size,
            "duty": self.duty(),
        }


_PAT_TEXT = {
    GuestPat.IGNORED: "ignored: guest memory is write-back",
    GuestPat.QUIRK: "ignored until KVM_X86_QUIRK_IGNORE_GUEST_PAT is disabled: guest memory is write-back",
    GuestPat.HONOURED: "honoured: the guest chooses how its memory is cached",
    GuestPat.UNKNOWN: "unknown: nothing shows what this KVM does with it",
}


def describe_quirks(mask: int) -> str:
    """Return a mask of quirks in hexadecimal with their names, ``bit n`` for those without one."""
    known = {int(quirk): quirk.name for quirk in Quirk}
    names = [known.get(1 << bit) or f"bit {bit}" for bit in range(mask.bit_length()) if mask >> bit & 1]
    return f"{mask:#x} ({' '.join(names) or 'none'})"


def self_snoop(path: Path = _CPUINFO) -> bool:
    """Do this CPU's caches snoop themselves, as the kernel sees it?

    The kernel clears the bit on models with an erratum, and KVM goes by that; what it keeps is in ``path``.

    Source: arch/x86/kernel/cpu/intel.c, check_memory_type_self_snoop_errata; arch/x86/kvm/vmx/vmx.c,
    vmx_hardware_setup.
    """
    has = bool(cpuid.host(1).edx >> 27 & 1)
    try:
        flags = next((line for line in path.read_text().splitlines() if line.startswith("flags")), None)
    except OSError:
        return has
    return has and (flags is None or "ss" in flags.split())


def _guest_pat(backend: str, two_levels: bool | None, quirks: int) -> GuestPat:
    if backend not in _BACKENDS or two_levels is None:
        return GuestPat.UNKNOWN
    # Shadow page tables have no room for the guest's types; NPT always combines them; EPT has a bit to ignore them.
    if not two_levels:
        return GuestPat.IGNORED
    if backend == "kvm_amd":
        return GuestPat.HONOURED
    # Before 6.16 (backported to 6.12) EPT ignores them for as long as no non-coherent VFIO group is there.
    return GuestPat.QUIRK if quirks & Quirk.IGNORE_GUEST_PAT else GuestPat.IGNORED


def _has_vfio(kvm: Kvm) -> bool:
    try:
        with kvm.create_vm() as vm:
            return device_type_answers(vm, lib.KVM_DEV_TYPE_VFIO)
    except KvmError:
        return False


def measure(kvm: Kvm, backend: str, two_levels: bool | None) -> MemoryTypes:
    """Measure the host; a VM is created, no vCPU. The arguments are those of vmm.probe.x86.modules."""
    quirks = kvm.check_extension(lib.KVM_CAP_DISABLE_QUIRKS2)
    return MemoryTypes(
        guest_pat=_guest_pat(backend, two_levels, quirks),
        two_levels=two_levels,
        quirks=quirks,
        self_snoop=self_snoop(),
        nested=bool(cpuid.host(1).ecx >> 31),
        vfio=_has_vfio(kvm),
        groups=vfio_groups(),
        flush_instruction=coherence.instruction(),
        line_size=coherence.line_size(),
    )
