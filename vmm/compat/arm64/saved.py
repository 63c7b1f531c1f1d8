# SPDX-License-Identifier: Apache-2.0
"""A saved arm64 guest as an offer: what it was given, in the keys of vmm.compat.arm64.dimensions."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from vmm.arm64.id_registers import REGISTERS, register_name
from vmm.arm64.registers import Register
from vmm.arm64.vcpu import Feature
from vmm.arm64.vls import VectorLengths
from vmm.compat.arm64.dimensions import CAPABILITIES, IMPLEMENTATION

__all__ = ["about", "values"]

_Parts = Mapping[str, bytes | Mapping[int, bytes]]


def values(parts: _Parts, host: Mapping[str, str], memory_end: int) -> dict[str, int]:
    """Return what a guest was given, from the parts of a vCPU's state, none of it writable any longer.

    ``memory_end`` is a guest physical address; ``host``, what the state says about its host, has the frequency of
    the counter, for which there is no register in a state.
    """
    found = {f"cap.{name}": 1 for name in CAPABILITIES.needed} | {"ipa": max(memory_end - 1, 1).bit_length()}
    features = int.from_bytes(bytes(parts["INIT"])[4:8], "little")
    found |= {f"feature.{feature.name}": 1 for feature in Feature if features >> feature & 1}
    if "VLS" in parts:
        found["vls"] = sum(1 << vq - 1 for vq in VectorLengths.decode(bytes(parts["VLS"])))
    hertz = host.get("counter_hz", "")
    if hertz.isascii() and hertz.isdigit() and len(hertz) < 20:
        found["counter"] = int(hertz)
    listed = bytes(parts["LIST"])
    for (identifier,) in struct.iter_unpack("<Q", listed):
        found |= {f"register.{identifier:#x}": 1, f"plain.{identifier:#x}": 1}
    return found | _identification(parts) | _named(parts, "CACHES", "cache") | _named(parts, "FIRMWARE", "firmware")


def _identification(parts: _Parts) -> dict[str, int]:
    found = {}
    for name, value in _values(parts, "IDREGS").items():
        if name in IMPLEMENTATION:
            found[f"implementation.{name}"] = value
        elif name == "CLIDR_EL1":
            found[f"cache.{name}"] = value
        elif name in REGISTERS:
            found[f"id.{name}"] = value
    return found


def _named(parts: _Parts, part: str, prefix: str) -> dict[str, int]:
    return {f"{prefix}.{name}": value for name, value in _values(parts, part).items()}


def _values(parts: _Parts, name: str) -> dict[str, int]:
    part = parts.get(name, {})
    if isinstance(part, bytes):
        return {}
    return {register_name(Register(number)): int.from_bytes(value, "little") for number, value in part.items()}


def about(parts: _Parts) -> dict[str, str]:
    """Return vendor and model: MIDR_EL1 as the guest reads it."""
    midr = _values(parts, "IDREGS").get("MIDR_EL1", 0)
    return {"vendor": f"implementer {midr >> 24 & 0xFF:#x}", "model": f"MIDR_EL1 {midr:#x}"}
