# SPDX-License-Identifier: Apache-2.0
"""Values that an ID register may and may not be given, field by field: the rules are those of id_registers."""

from __future__ import annotations

from collections.abc import Iterator

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.id_registers import REGISTERS, Field, mask_index
from vmm.kvm.vm import VirtualMachine
from vmm.state.arm64.world.identity import beside

__all__ = ["changes", "id_masks", "least_of_all"]


def id_masks(vm: VirtualMachine) -> dict[str, int]:
    """KVM_ARM_GET_REG_WRITABLE_MASKS: the writable bits of each of REGISTERS."""
    masks = vcpus.writable_masks(vm)
    return {name: masks[mask_index(register.encoding)] for name, register in REGISTERS.items()}


def _with(field: Field, value: int, new: int | None) -> int | None:
    return None if new is None else value & ~field.mask | new << field.low


def changes(name: str, value: int, mask: int) -> Iterator[tuple[Field, int | None, int | None]]:
    """Yield each field of a register that KVM says is writable, with ``value`` made safer in it, and made unsafe.

    A None stands for what there is not: a field at its end, one that the rules do not know.
    """
    for field in REGISTERS[name].fields:
        if field.mask & mask != field.mask:
            continue
        lower, higher = beside(name, field, field.of(value))
        yield field, _with(field, value, lower), _with(field, value, higher)


def least_of_all(name: str, value: int, mask: int) -> int:
    """Return ``value`` with every writable field one step safer."""
    for field, lower, _ in changes(name, value, mask):
        if lower is not None:
            value = value & ~field.mask | lower & field.mask
    return value
