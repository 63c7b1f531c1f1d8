# SPDX-License-Identifier: Apache-2.0
"""May a guest of one x86 host run on another: the dimensions, from what two probes say.

The guest is one that was given all of its host's offer: KVM_GET_SUPPORTED_CPUID (with guest permission where
there is some to have), every capability, every MSR listed. Keys of an offer's values:

    cpuid.LEAF.SUBLEAF.REGISTER    such as cpuid.00000007.0.ebx      forced.* the same, of bits nobody can clear
    msr.INDEX                      the value of a feature MSR        listed.INDEX, unlisted.INDEX  1 if KVM has it
    cap.NAME                       KVM_CHECK_EXTENSION               tsc.khz, tsc.scaling, xsave2, known.SECTION
    saved                          1 for a guest that is in a file

Source: what KVM checks is in arch/x86/kvm (cpuid.c, x86.c, vmx/nested.c); what a guest relies on, in the SDM.
"""

from __future__ import annotations

import re

from vmm.compat.offer import Capabilities, Dimension, Finding, Offer, Verdict
from vmm.compat.x86.cpuid import features, numbers, others
from vmm.compat.x86.msr import feature_msrs, msrs
from vmm.compat.x86.xstate import amx, layout, permission, xfeatures
from vmm.probe.document import ProbeError, Section

__all__ = ["CAPABILITIES", "DIMENSIONS", "values"]

_ENTRY = re.compile(
    r"(?P<leaf>[0-9a-f]{8})\.(?P<subleaf>[0-9]{1,4}): "
    r"eax=(?P<eax>[0-9a-f]{8}) ebx=(?P<ebx>[0-9a-f]{8}) ecx=(?P<ecx>[0-9a-f]{8}) edx=(?P<edx>[0-9a-f]{8})"
)
_INDEX = re.compile(r"0x[0-9a-f]{8}")
# Vendors whose CPUs KVM treats alike: arch/x86/kvm/cpuid.h, guest_cpuid_is_amd_compatible.
_CLASSES = {"HygonGenuine": "AuthenticAMD"}
CAPABILITIES = Capabilities(
    needed=("KVM_CAP_XSAVE", "KVM_CAP_XCRS", "KVM_CAP_VCPU_EVENTS", "KVM_CAP_DEBUGREGS", "KVM_CAP_MP_STATE"),
    optional=(
        "KVM_CAP_IRQCHIP", "KVM_CAP_SPLIT_IRQCHIP", "KVM_CAP_SREGS2", "KVM_CAP_EXCEPTION_PAYLOAD",
        "KVM_CAP_X86_TRIPLE_FAULT_EVENT", "KVM_CAP_X86_SMM", "KVM_CAP_GUEST_MEMFD",
    ),
    sets=("KVM_CAP_DISABLE_QUIRKS2", "KVM_CAP_X2APIC_API"),
    limits=("KVM_CAP_MAX_VCPUS", "KVM_CAP_MAX_VCPU_ID", "KVM_CAP_NESTED_STATE"),
)  # fmt: skip
# arch/x86/kvm/x86.c, tsc_tolerance_ppm: closer than that KVM does not scale.
_TOLERANCE_PPM = 250


def values(document: Section) -> dict[str, int]:
    """Return the numbers of a probe by key; ProbeError if something is not as a probe writes it."""
    permitted = document.section("permission") if document.has("permission") else None
    if permitted is not None and not permitted.has("cpuid"):
        permitted = None  # it was refused
    found = _leaves(permitted or document, "cpuid", "cpuid")
    if document.has("cpuid_forced"):
        forced = _leaves(document, "cpuid_forced", "cpuid")
        found |= {key: found.get(key, 0) | bits for key, bits in forced.items()}
        found |= {f"forced.{key}": bits for key, bits in forced.items()}
    found |= {f"cap.{name}": value for name, value in document.numbers("capabilities").items()}
    found["xsave2"] = permitted.number("xsave2") if permitted else found.get("cap.KVM_CAP_XSAVE2", 0)
    if permitted or ("permission" in document and not document.has("permission")):
        found["known.permission"] = 1
    return found | _registers(document) | _clock(document)


def _leaves(section: Section, key: str, prefix: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in section.texts(key):
        entry = _ENTRY.fullmatch(text)
        if entry is None:
            raise ProbeError(f"{text!r} in {key!r} of {section.where} is not a CPUID leaf")
        for register in ("eax", "ebx", "ecx", "edx"):
            # As KVM, take the first of two entries for the same leaf.
            name = f"{prefix}.{entry['leaf']}.{int(entry['subleaf'])}.{register}"
            found.setdefault(name, int(entry[register], 16))
    return found


def _registers(document: Section) -> dict[str, int]:
    found = {}
    if document.has("msrs"):
        found = {f"listed.{index:08x}": 1 for index in document.list_of_numbers("msrs")} | {"known.msrs": 1}
    if document.has("msrs_unlisted"):
        found |= {f"unlisted.{index:08x}": 1 for index in document.list_of_numbers("msrs_unlisted")}
    if document.has("feature_msrs"):
        section = document.section("feature_msrs")
        for index, _ in section.items():
            if not _INDEX.fullmatch(index):
                raise ProbeError(f"{index!r} in {section.where} is not an MSR index")
            found[f"msr.{index.removeprefix('0x')}"] = section.section(index).number("value")
        found["known.feature_msrs"] = 1
    return found


def _clock(document: Section) -> dict[str, int]:
    if not document.has("tsc"):
        return {}
    tsc = document.section("tsc")
    khz = tsc.number("khz") if tsc.has("khz") else 0
    return ({"tsc.khz": khz} if khz else {}) | {"tsc.scaling": int(tsc.flag("scaling"))}


def _vendor(guest: Offer, destination: Offer) -> list[Finding]:
    ours, theirs = guest.about["vendor"], destination.about["vendor"]
    if _CLASSES.get(ours, ours) == _CLASSES.get(theirs, theirs):
        return []
    note = "system calls, faults and the virtualization of a guest's MSRs differ between them"
    return [Finding(Verdict.NO, "vendor (CPUID 0)", ours, theirs, note=note)]


def _tsc(guest: Offer, destination: Offer) -> list[Finding]:
    ours, theirs, scaling = guest.find("tsc.khz"), destination.find("tsc.khz"), destination.find("tsc.scaling")
    if ours is not None and (scaling or ours == theirs):
        return []
    if ours is None or theirs is None or scaling is None:
        note = "frequency and KVM_CAP_TSC_CONTROL are not in both probes"
        return [Finding(Verdict.UNKNOWN, "TSC frequency", _khz(ours), _khz(theirs), note=note)]
    apart = round(abs(ours - theirs) * 1e6 / ours)
    if apart <= _TOLERANCE_PPM:
        return []
    note = f"{apart} ppm apart, and the destination cannot scale (KVM_CAP_TSC_CONTROL)"
    return [Finding(Verdict.NO, "TSC frequency", _khz(ours), _khz(theirs), note=note)]


def _khz(value: int | None) -> str:
    return "unknown" if value is None else f"{value} kHz"


# In this order: what a capability or a component brings along is gone with it before it is compared.
DIMENSIONS: tuple[Dimension, ...] = (
    Dimension("vendor", _vendor),
    Dimension("capabilities", CAPABILITIES.judge),
    Dimension("guest permission", permission),
    Dimension("xfeatures", xfeatures),
    Dimension("XSAVE layout", layout),
    Dimension("AMX limits", amx),
    Dimension("CPUID features", features),
    Dimension("CPUID numbers", numbers),
    Dimension("other CPUID leaves", others),
    Dimension("feature MSRs", feature_msrs),
    Dimension("MSRs to save", msrs),
    Dimension("TSC", _tsc),
)
