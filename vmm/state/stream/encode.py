# SPDX-License-Identifier: Apache-2.0
"""A state as sections of a stream.

The header names all that follows: ``about``, ``payload``, ``memory`` ([address, size] of each region),
``machine`` (names of the VM's parts), ``vcpus`` ([identifier, names of the parts] of each). Then come VMCONFIG
(the VM's parts), each vCPU's parts (a section's kind is the part's name, its index counts the vCPUs), and MEMORY.

A part is ``{raw}`` or ``{registers}``, as KVM gave it, and ``fields``, [name, value] pairs of what an
architecture's ``explain`` says it holds. Fields are for people on hosts of any architecture; the raw bytes decide.
What ``explain`` calls a field must mean, and print, the same as long as the format is the same: a new meaning
needs a new name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vmm.state.stream.canonical import encode
from vmm.state.stream.container import END, Writable, Writer, is_kind
from vmm.state.stream.memory import LEVEL, MEMORY, MemoryEncoder, check_region
from vmm.state.value import Part, VmState

__all__ = ["CONFIG", "RESERVED", "Explain", "config_body", "header_body", "part_body", "part_value", "write_state"]

CONFIG = "VMCONFIG"
# Kinds that are not the name of a part.
RESERVED = frozenset({CONFIG, MEMORY, END})

# What a part holds, by the names of its registers and fields: (architecture, the part's name, all parts of the
# same vCPU). All of them, because an XSAVE area can only be read with the layout that the CPUID part gives.
Explain = Callable[[str, str, Mapping[str, Part]], Mapping[str, str | int]]


def part_value(arch: str, name: str, parts: Mapping[str, Part], explain: Explain | None = None) -> dict[str, Any]:
    """Return what is encoded of one part of a vCPU or VM."""
    part = parts[name]
    fields = [[field, content] for field, content in explain(arch, name, parts).items()] if explain else []
    value: dict[str, Any] = {"raw": part} if isinstance(part, bytes) else {"registers": dict(part)}
    return {**value, "fields": fields} if fields else value


def part_body(arch: str, name: str, parts: Mapping[str, Part], explain: Explain | None = None) -> bytes:
    """Return the body of a part's section."""
    return encode(part_value(arch, name, parts, explain))


def config_body(state: VmState, explain: Explain | None = None) -> bytes:
    """Return the body of the VMCONFIG section."""
    machine = {name: part_value(state.arch, name, state.machine, explain) for name in state.machine}
    return encode({"machine": machine})


def header_body(state: VmState) -> bytes:
    """Return the body of the header; ValueError for names that no section can have."""
    names = {*state.machine, *(name for vcpu in state.vcpus for name in vcpu.parts)}
    if wrong := sorted(name for name in names if not is_kind(name) or name in RESERVED):
        raise ValueError(f"a part cannot be called {', '.join(wrong)}")
    value: dict[str, Any] = {
        "about": dict(state.about),
        "machine": list(state.machine),
        "memory": [[region.gpa, region.size] for region in state.memory],
        "vcpus": [[vcpu.identifier, list(vcpu.parts)] for vcpu in state.vcpus],
    }
    if state.payload is not None:
        value["payload"] = {"name": state.payload.name, "digest": state.payload.digest}
    return encode(value)


def write_state(file: Writable, state: VmState, explain: Explain | None = None, level: int | None = LEVEL) -> None:
    """Write a state as a whole stream; ``level`` is zstandard's, None leaves memory as it is.

    ValueError for a state that is none: unknown architecture, names no section can have, memory out of order.
    """
    for region in state.memory:
        check_region(region)
    writer = Writer(file, state.arch, header_body(state))
    writer.section(CONFIG, 0, config_body(state, explain))
    for index, vcpu in enumerate(state.vcpus):
        for name in vcpu.parts:
            writer.section(name, index, part_body(state.arch, name, vcpu.parts, explain))
    encoder = MemoryEncoder(level)
    for index, region in enumerate(state.memory):
        for body in encoder.bodies(region):
            writer.section(MEMORY, index, *body)
    writer.end()
