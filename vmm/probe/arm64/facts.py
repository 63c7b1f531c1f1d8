# SPDX-License-Identifier: Apache-2.0
"""What this host and its KVM offer an arm64 guest: measured once, with one vCPU to ask for its vector lengths."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmm._kvm import lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.own import VL_MASK
from vmm.arm64.vcpu import Feature
from vmm.arm64.vls import MAX, QUADWORD, VectorLengths
from vmm.kvm.device import DEVICE_TYPES, device_type_answers
from vmm.kvm.ioctl import PR_SVE_GET_VL, PR_SVE_SET_VL, KvmError, prctl
from vmm.kvm.system import Kvm
from vmm.probe.arm64.first_exit import FIRST_EXIT, first_exit
from vmm.probe.arm64.kernel_log import KernelLog

__all__ = ["CAPABILITIES", "HWCAP2_SME", "HWCAP2_SVE2", "HWCAP_SVE", "Facts", "host_lengths", "measure"]

CAPABILITIES = (
    "KVM_CAP_ARM_SVE", "KVM_CAP_ONE_REG", "KVM_CAP_ARM_PTRAUTH_ADDRESS", "KVM_CAP_ARM_PTRAUTH_GENERIC",
    "KVM_CAP_ARM_PSCI_0_2", "KVM_CAP_ARM_PMU_V3", "KVM_CAP_ARM_EL1_32BIT", "KVM_CAP_ARM_MTE", "KVM_CAP_ARM_EL2",
    "KVM_CAP_ARM_EL2_E2H0", "KVM_CAP_ARM_VM_IPA_SIZE", "KVM_CAP_ARM_NISV_TO_USER",
    "KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES", "KVM_CAP_ARM_WRITABLE_IMP_ID_REGS", "KVM_CAP_SYNC_REGS",
    "KVM_CAP_VCPU_EVENTS", "KVM_CAP_MP_STATE", "KVM_CAP_DEVICE_CTRL", "KVM_CAP_IMMEDIATE_EXIT",
    "KVM_CAP_USER_MEMORY2", "KVM_CAP_GUEST_MEMFD", "KVM_CAP_DIRTY_LOG_RING", "KVM_CAP_MAX_VCPUS",
    "KVM_CAP_DIRTY_LOG_RING_ACQ_REL", "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", "KVM_CAP_READONLY_MEM",
    "KVM_CAP_BINARY_STATS_FD", "KVM_CAP_ARM_SYSTEM_SUSPEND", "KVM_CAP_COUNTER_OFFSET",
    "KVM_CAP_ARM_INJECT_EXT_DABT", "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP", "KVM_CAP_STEAL_TIME",
)  # fmt: skip

_AT_HWCAP, _AT_HWCAP2 = 16, 26
HWCAP_SVE, HWCAP2_SVE2, HWCAP2_SME = 1 << 22, 1 << 1, 1 << 23

# MIDR_EL1.Implementer and PartNum of CPUs one meets.
_IMPLEMENTERS = {
    0x00: "software", 0x41: "Arm", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x4E: "NVIDIA", 0x51: "Qualcomm",
    0x61: "Apple", 0x6D: "Microsoft", 0xC0: "Ampere",
}  # fmt: skip
_PARTS = {
    (0x00, 0x051): "QEMU TCG CPU", (0x41, 0xD03): "Cortex-A53", (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55", (0x41, 0xD07): "Cortex-A57", (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76", (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD40): "Neoverse-V1", (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2", (0x41, 0xD84): "Neoverse-V3", (0x41, 0xD8E): "Neoverse-N3",
    (0x41, 0xD0C): "Neoverse-N1", (0x41, 0xD0F): "AEM-v8", (0x46, 0x001): "A64FX",
}  # fmt: skip

# How the kernel calls the modes that kvm-arm.mode asks for, each the last word on the command line.
_ASKED = {"protected": "Protected nVHE", "nvhe": "nVHE", "nested": "VHE+NV2"}

# Errata that a finding depends on: implementer and part, the last variant and revision that has it.
# Source: arch/arm64/kernel/cpu_errata.c.
_ERRATA = {"834220": ((0x41, 0xD07), (1, 2))}

_PATIENCE = 5.0  # seconds that a guest's first instructions may take


@dataclass(frozen=True, slots=True)
class Facts:
    """Measured facts; a None is what this kernel or CPU does not have.

    ``mode`` is how KVM uses EL2 (VHE, nVHE, hVHE, Protected nVHE, VHE+NV2, ..., or unknown), ``midr`` MIDR_EL1 of
    the first CPU and ``midrs`` all different ones, ``host_lengths`` what this process can set its own vector length
    to, ``guest_lengths`` the set that a vCPU with SVE starts with. ``devices`` are the types that KVM_CREATE_DEVICE
    has, of those with a name. ``guest`` is empty where a guest gets from its
    first instruction to its first exit, else how it ends instead.
    """

    backend: str
    mode: str
    vendor: str
    model: str
    midr: int
    hwcap: int
    hwcap2: int
    host_lengths: VectorLengths | None
    guest_lengths: VectorLengths | None
    capabilities: dict[str, int]
    midrs: tuple[int, ...] = ()
    guest: str = ""
    devices: tuple[int, ...] = ()

    @property
    def errata(self) -> str:
        """Numbers of the errata that the CPUs have and a finding depends on, separated by spaces."""
        return " ".join(number for number in _ERRATA if any(_has(midr, number) for midr in self.midrs))

    @property
    def sve(self) -> bool:
        """Does the host's kernel use SVE itself?"""
        return bool(self.hwcap & HWCAP_SVE)

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for people."""
        return [
            ("back end", f"{self.backend} ({self.mode})"),
            ("CPU", self._cpu()),
            ("host SVE and SME", f"{_yes(self.sve)} and {_yes(bool(self.hwcap2 & HWCAP2_SME))}"),
            ("host vector lengths", _lengths(self.host_lengths)),
            ("guest vector lengths (KVM_REG_ARM64_SVE_VLS)", _lengths(self.guest_lengths)),
            *([("no guest runs", self.guest)] if self.guest else []),
        ]

    def _cpu(self) -> str:
        revision = f"r{self.midr >> 20 & 0xF}p{self.midr & 0xF}"
        others = f", beside {len(self.midrs) - 1} of other kinds" if len(self.midrs) > 1 else ""
        erratum = f", erratum {self.errata}" if self.errata else ""
        return f"{self.model} {revision} ({self.vendor}), MIDR_EL1 {self.midr:#x}{others}{erratum}"

    def to_json(self) -> dict[str, object]:
        """Return the facts as JSON values."""
        return {
            "backend": self.backend,
            "mode": self.mode,
            "cpu": {"vendor": self.vendor, "model": self.model, "midr": self.midr, "midrs": list(self.midrs)},
            "guest": self.guest,
            "devices": list(self.devices),
            "hwcap": self.hwcap,
            "hwcap2": self.hwcap2,
            "host_vector_lengths": None if self.host_lengths is None else sorted(self.host_lengths),
            "guest_vector_lengths": None if self.guest_lengths is None else sorted(self.guest_lengths),
            "capabilities": self.capabilities,
        }


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _lengths(value: VectorLengths | None) -> str:
    return "none" if value is None else f"{value} of 128 bits, up to {8 * value.size} bits"


def _auxv() -> dict[int, int]:
    """Return the auxiliary vector that the kernel gave to this process."""
    return dict(struct.iter_unpack("=QQ", Path("/proc/self/auxv").read_bytes()))


def _mode() -> str:
    """Return what the kernel logged about EL2: by now the log may be out of reach, so ask its arguments next."""
    with suppress(OSError), KernelLog() as log:
        for line in log.lines():
            if found := re.search(r"^kvm \[\d+\]: (.*) mode initialized", line):
                return "nVHE" if found[1] == "Hyp" else found[1].removeprefix("Hyp ")
    with suppress(OSError):
        # The kernel takes - and _ in the name of an argument for the same.
        if asked := re.findall(r"\bkvm[-_]arm\.mode=(\w+)", Path("/proc/cmdline").read_text()):
            return _ASKED.get(asked[-1], str(asked[-1]))
    return "EL2 mode unknown"


def _midrs() -> list[int]:
    """Return MIDR_EL1 of each CPU that is online, in their order."""
    text = ""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
    fields = {
        name: [int(value, 0) for value in re.findall(rf"^CPU {name}\s*: (\w+)$", text, re.MULTILINE)]
        for name in ("implementer", "variant", "part", "revision")
    }
    return [
        implementer << 24 | variant << 20 | 0xF << 16 | part << 4 | revision
        for implementer, variant, part, revision in zip(*fields.values(), strict=False)
    ]


def _kind(midr: int) -> tuple[int, int]:
    """Return implementer and part number."""
    return midr >> 24 & 0xFF, midr >> 4 & 0xFFF


def _has(midr: int, erratum: str) -> bool:
    kind, last = _ERRATA[erratum]
    return _kind(midr) == kind and (midr >> 20 & 0xF, midr & 0xF) <= last


def host_lengths() -> VectorLengths:
    """Return the lengths that prctl(PR_SVE_SET_VL) gives, from the largest down; the thread's own stays."""
    own = prctl(PR_SVE_GET_VL, 0)
    found = set()
    wanted = MAX * QUADWORD
    while wanted >= QUADWORD:
        got = prctl(PR_SVE_SET_VL, wanted) & VL_MASK
        found.add(got // QUADWORD)
        wanted = got - QUADWORD
    prctl(PR_SVE_SET_VL, own)
    return VectorLengths(found)


def _host_lengths(hwcap: int) -> VectorLengths | None:
    try:
        return host_lengths() if hwcap & HWCAP_SVE else None
    except KvmError:  # a seccomp filter that does not know PR_SVE_SET_VL
        return None


def _guest(kvm: Kvm) -> str:
    try:
        exit = first_exit(kvm, _PATIENCE)
    except KvmError as error:
        return str(error)
    return "" if exit == FIRST_EXIT else f"its first instructions end in {exit}"


def _devices(kvm: Kvm) -> tuple[int, ...]:
    with kvm.create_vm() as vm:
        return tuple(kind for kind in DEVICE_TYPES if device_type_answers(vm, kind))


def _guest_lengths(kvm: Kvm) -> VectorLengths | None:
    try:
        with kvm.create_vm() as vm:
            vcpu = vm.create_vcpu()
            vcpus.init(vcpu, Feature.SVE)
            return vcpus.get_vls(vcpu)
    except KvmError:
        return None


def measure(kvm: Kvm) -> Facts:
    """Measure everything. A vCPU is made and closed: on arm64 that leaves no trace in the process."""
    auxv, midrs = _auxv(), _midrs()
    midr = midrs[0] if midrs else 0
    implementer, part = kind = _kind(midr)
    capabilities = {name: kvm.check_extension(getattr(lib, name)) for name in CAPABILITIES}
    hwcap = auxv.get(_AT_HWCAP, 0)
    return Facts(
        backend="kvm_arm",
        mode=_mode(),
        vendor=_IMPLEMENTERS.get(implementer, f"implementer {implementer:#x}"),
        model=_PARTS.get(kind, f"part {part:#x}"),
        midr=midr,
        hwcap=hwcap,
        hwcap2=auxv.get(_AT_HWCAP2, 0),
        host_lengths=_host_lengths(hwcap),
        guest_lengths=_guest_lengths(kvm) if capabilities["KVM_CAP_ARM_SVE"] else None,
        capabilities=capabilities,
        midrs=tuple(dict.fromkeys(midrs)),
        guest=_guest(kvm),
        devices=_devices(kvm),
    )
