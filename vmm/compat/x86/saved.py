# SPDX-License-Identifier: Apache-2.0
"""A saved x86 guest as an offer: what it was given, in the keys of vmm.compat.x86.dimensions."""

from __future__ import annotations

from collections.abc import Mapping

from vmm.compat.x86.cpuid import cpuid_key
from vmm.compat.x86.dimensions import CAPABILITIES
from vmm.compat.x86.msr_rules import FEATURE_MSRS
from vmm.x86.cpuid import REGISTERS, Cpuid, model, vendor

__all__ = ["about", "values"]

_Parts = Mapping[str, bytes | Mapping[int, bytes]]
_MSR_PARTS = ("MSRS", "XFD", "TSC")


def values(parts: _Parts, host: Mapping[str, str], memory_end: int) -> dict[str, int]:
    """Return what a guest was given, from the parts of a vCPU's state: CPUID, MSRs, TSC frequency, local APIC."""
    # What else a guest needs shows in its CPUID and MSRs.
    found = {f"cap.{name}": 1 for name in CAPABILITIES.needed} | {"known.permission": 1, "known.msrs": 1, "saved": 1}
    if "LAPIC" in parts:
        found["cap.KVM_CAP_IRQCHIP"] = 1
    for entry in _cpuid(parts):
        for register in REGISTERS:
            found.setdefault(cpuid_key((entry.function, entry.index, register)), getattr(entry, register))
    msrs = {number: value for name in _MSR_PARTS for number, value in _registers(parts, name).items()}
    found |= {f"listed.{number:08x}": 1 for number in msrs}
    found |= {
        f"msr.{number:08x}": int.from_bytes(value, "little")
        for number, value in msrs.items()
        if number in FEATURE_MSRS
    }
    if "TSC_KHZ" in parts:
        found["tsc.khz"] = int.from_bytes(bytes(parts["TSC_KHZ"]), "little")
    return found


def about(parts: _Parts) -> dict[str, str]:
    """Return vendor and model as the guest's CPUID has them."""
    leaf = _cpuid(parts).get
    return {"vendor": _printable(vendor(leaf)), "model": _printable(model(leaf)) or "a CPU without a name"}


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())


def _cpuid(parts: _Parts) -> Cpuid:
    return Cpuid.unpack(bytes(parts["CPUID"]))


def _registers(parts: _Parts, name: str) -> Mapping[int, bytes]:
    part = parts.get(name, {})
    return {} if isinstance(part, bytes) else part
