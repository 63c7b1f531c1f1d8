# SPDX-License-Identifier: Apache-2.0
"""Values that an ID register may and may not be given, field by field: the rules are those of id_registers."""

from __future__ import annotations

from collections.abc import Iterator

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.id_registers import REGISTERS, Field, Rule, mask_index
from vmm.kvm.vm import VirtualMachine

__all__ = ["changes", "id_masks", "least_of_all"]

# Fields that KVM does not let go below a value that is not 0: a guest without AArch64 or without debug registers.
# arch/arm64/kvm/sys_regs.c, set_id_aa64pfr0_el1, set_id_aa64dfr0_el1, set_id_dfr0_el1.
_LEAST = {
    ("ID_AA64PFR0_EL1", "EL0"): 1, ("ID_AA64PFR0_EL1", "EL1"): 1, ("ID_AA64PFR0_EL1", "EL2"): 1,
    ("ID_AA64DFR0_EL1", "DebugVer"): 6, ("ID_DFR0_EL1", "CopDbg"): 6,
    # 1 and 2 are PMUs before version 3, which nothing emulates.
    ("ID_DFR0_EL1", "PerfMon"): 3,
}  # fmt: skip

# Towards what is not safe.
_STEPS = {Rule.LOWER: 1, Rule.HIGHER: -1}


def id_masks(vm: VirtualMachine) -> dict[str, int]:
    """KVM_ARM_GET_REG_WRITABLE_MASKS: the writable bits of each of REGISTERS."""
    masks = vcpus.writable_masks(vm)
    return {name: masks[mask_index(register.encoding)] for name, register in REGISTERS.items()}


def _beside(field: Field, value: int, step: int) -> int | None:
    """Return the value that lies so many steps from another one, as the field's numbers are ordered."""
    top, shift = (1 << field.width) - 1, 1 << field.width - 1 if field.signed else 0
    place = (value + shift & top) + step
    return place - shift & top if 0 <= place <= top else None


def _next(name: str, field: Field, value: int) -> tuple[int | None, int | None]:
    """Return the nearest value that KVM takes instead of ``value``, and the nearest that it refuses."""
    if field.rule is Rule.EXACT:
        other = field.safe if value != field.safe else None
        return other, next((new for new in range(1 << field.width) if new not in (value, field.safe)), None)
    if field.rule not in _STEPS:
        return None, None
    step = _STEPS[field.rule]
    lower = None if value == _LEAST.get((name, field.name)) else _beside(field, value, -step)
    return lower, _beside(field, value, step)


def _with(field: Field, value: int, new: int | None) -> int | None:
    return None if new is None else value & ~field.mask | new << field.low


def changes(name: str, value: int, mask: int) -> Iterator[tuple[Field, int | None, int | None]]:
    """Yield each field of a register that KVM says is writable, with ``value`` made safer in it, and made unsafe.

    A None stands for what there is not: a field at its end, one that the rules do not know.
    """
    for field in REGISTERS[name].fields:
        if field.mask & mask != field.mask:
            continue
        lower, higher = _next(name, field, field.of(value))
        yield field, _with(field, value, lower), _with(field, value, higher)


def least_of_all(name: str, value: int, mask: int) -> int:
    """Return ``value`` with every writable field one step safer."""
    for field, lower, _ in changes(name, value, mask):
        if lower is not None:
            value = value & ~field.mask | lower & field.mask
    return value
