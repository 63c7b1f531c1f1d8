# SPDX-License-Identifier: Apache-2.0
"""A saved x86 guest as an offer: what it was given, in the keys of vmm.x86.compat."""

from __future__ import annotations

from collections.abc import Mapping

from vmm.x86.compat_cpuid import cpuid_key
from vmm.x86.cpuid import REGISTERS, Cpuid
from vmm.x86.msr_rules import FEATURE_MSRS

__all__ = ["about", "values"]

_Parts = Mapping[str, bytes | Mapping[int, bytes]]
_MSR_PARTS = ("MSRS", "XFD", "TSC")
# Without these calls no state is written; the others that a guest needs show in its CPUID and MSRs.
_NEEDED = ("KVM_CAP_XSAVE", "KVM_CAP_XCRS", "KVM_CAP_VCPU_EVENTS", "KVM_CAP_DEBUGREGS", "KVM_CAP_MP_STATE")
_BRAND = range(0x80000002, 0x80000005)


def values(parts: _Parts, host: Mapping[str, str], memory_end: int) -> dict[str, int]:
    """Return what a guest was given, from the parts of a vCPU's state: CPUID, MSRs, TSC frequency, local APIC."""
    found = {f"cap.{name}": 1 for name in _NEEDED} | {"known.permission": 1, "known.msrs": 1, "saved": 1}
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
    table = _cpuid(parts)
    first = table.get(0)
    vendor = b"".join(word.to_bytes(4, "little") for word in (first.ebx, first.edx, first.ecx))
    brand = b"".join(word.to_bytes(4, "little") for leaf in _BRAND for word in table.get(leaf).registers)
    return {"vendor": _text(vendor), "model": _text(brand) or "a CPU without a name"}


def _text(data: bytes) -> str:
    text = data.decode("ascii", "replace").replace("\0", "").strip()
    return "".join(character for character in text if character.isprintable())


def _cpuid(parts: _Parts) -> Cpuid:
    return Cpuid.unpack(bytes(parts["CPUID"]))


def _registers(parts: _Parts, name: str) -> Mapping[int, bytes]:
    part = parts.get(name, {})
    return {} if isinstance(part, bytes) else part
