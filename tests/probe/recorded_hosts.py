# SPDX-License-Identifier: Apache-2.0
"""Hosts to run needs and expectations against: those of the recorded probes, and invented ones made of them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from tests.data.probes import ARM64, X86, document
from vmm.arm64.vls import VectorLengths
from vmm.probe.arm64.facts import CAPABILITIES as ARM_CAPABILITIES
from vmm.probe.arm64.facts import Facts as ArmFacts
from vmm.probe.host import Host
from vmm.probe.x86.facts import CAPABILITIES, Facts
from vmm.x86.cpuid import REGISTERS, Cpuid, Entry
from vmm.x86.memory_types import GuestPat, MemoryTypes, Quirk

__all__ = ["INVENTED", "RECORDED", "recorded"]

RECORDED = (*X86, *ARM64)
_ENTRY = re.compile(r"([0-9a-f]{8})\.(\d+): " + " ".join(f"{name}=([0-9a-f]{{8}})" for name in REGISTERS))
# Leaves whose subleaf counts: KVM's flag for them is not part of a probe.
_INDEXED = (4, 7, 0xB, 0xD, 0x14, 0x1D, 0x1E, 0x1F)


def _entry(line: str) -> Entry:
    found = _ENTRY.fullmatch(line)
    assert found, line
    function, index, *registers = found.groups()
    flags = int(int(function, 16) in _INDEXED)
    return Entry(int(function, 16), int(index), flags, *(int(value, 16) for value in registers))


def _memory_types(found: dict[str, Any]) -> MemoryTypes:
    kept = {
        key: found[key] for key in ("two_levels", "self_snoop", "nested", "vfio", "flush_instruction", "line_size")
    }
    quirks = sum(Quirk[name] for name in found["quirks"])
    return MemoryTypes(GuestPat(found["guest_pat"]), quirks=quirks, groups=tuple(found["vfio_groups"]), **kept)


def _x86(found: dict[str, Any]) -> Facts:
    return Facts(
        backend=found["backend"],
        vendor=found["cpu"]["vendor"],
        model=found["cpu"]["model"],
        xcr0=found["xcr0"],
        xcomp_supported=found["xcomp_supported"],
        xcomp_guest_permitted=found["xcomp_guest_permitted"],
        guest_supported=found["guest_supported"],
        cpuid=Cpuid(_entry(line) for line in found["cpuid"]),
        # What a probe from before did not ask for counts as absent.
        capabilities={name: found["capabilities"].get(name, 0) for name in CAPABILITIES},
        memory_types=_memory_types(found["memory_types"]),
        extension=found["cpu"].get("extension", ""),
        hypervisor=found.get("hypervisor", ""),
    )


def _arm64(found: dict[str, Any]) -> ArmFacts:
    lengths = {key: found[key] for key in ("host_vector_lengths", "guest_vector_lengths")}
    host, guest = (None if value is None else VectorLengths(value) for value in lengths.values())
    return ArmFacts(
        backend=found["backend"],
        mode=found["mode"],
        vendor=found["cpu"]["vendor"],
        model=found["cpu"]["model"],
        midr=found["cpu"]["midr"],
        hwcap=found["hwcap"],
        hwcap2=found["hwcap2"],
        host_lengths=host,
        guest_lengths=guest,
        # A capability that a later release asks for is 0 in an earlier one's record.
        capabilities={**dict.fromkeys(ARM_CAPABILITIES, 0), **found["capabilities"]},
        devices=tuple(found.get("devices", ())),
    )


def recorded(name: str) -> Host:
    """Return the host of a recorded probe."""
    found = document(name)
    facts = _x86(found) if found["architecture"] == "x86" else _arm64(found)
    return Host(found["kernel"], found["architecture"], facts, upstream=found.get("upstream", ""))


def _changed(name: str, kernel: str = "", **facts: Any) -> Host:
    host = recorded(name)
    return replace(host, kernel=kernel or host.kernel, facts=replace(host.facts, **facts))


_AMX = recorded("amx-7.2").facts
_PLAIN = _AMX.xcr0 & ~(3 << 17)

#: Hosts that nobody here has: a name that says what is special, and the host.
INVENTED = {
    "a CPU with AMX and a KVM without": _changed(
        "amx-7.2", backend="kvm_pvm", guest_supported=_PLAIN, extension="", hypervisor="KVMKVMKVM"
    ),
    "a KVM with AMX and a process that may not ask for it": _changed(
        "amx-7.2",
        xcomp_supported=None,
        xcomp_guest_permitted=None,
        refusals={"xcomp_supported": "EPERM", "xcomp_guest_permitted": "EPERM"},
    ),
    "a kernel before 5.16": _changed(
        "svm-6.1",
        kernel="5.15.0",
        xcomp_supported=None,
        xcomp_guest_permitted=None,
        guest_supported=None,
        capabilities={**recorded("svm-6.1").facts.capabilities, "KVM_CAP_XSAVE2": 0, "KVM_CAP_SYS_ATTRIBUTES": 0},
        refusals={"xcomp_supported": "EINVAL", "xcomp_guest_permitted": "EINVAL", "guest_supported": "ENXIO"},
    ),
    "a CPU without XSAVE": _changed(
        "svm-7.2",
        xcr0=0,
        xcomp_supported=0,
        xcomp_guest_permitted=0,
        guest_supported=0,
        cpuid=recorded("svm-7.2").facts.cpuid.without(0xD),
        capabilities={**recorded("svm-7.2").facts.capabilities, "KVM_CAP_XCRS": 0},
    ),
    "kvm.ignore_msrs=1": _changed("amx-7.2", ignore_msrs=True, parameters={"kvm.ignore_msrs": "Y"}),
    "no capability at all": _changed("amx-7.2", capabilities=dict.fromkeys(CAPABILITIES, 0)),
    "a future CPU with every xfeature": _changed(
        "amx-7.2", xcr0=(1 << 63) - 1, xcomp_supported=(1 << 63) - 1, guest_supported=(1 << 63) - 1, kernel="9.9.9"
    ),
}
