# SPDX-License-Identifier: Apache-2.0
"""ID registers of two hosts side by side, field by field.

The destination takes the guest's value of a field if it is its own, or if the field is writable there and the
value is the safe one of the two. Where it is not, the guest can be given another value on the source, if the
field is writable there and both take it; or it does without the vCPU feature that the field is about.
Source: arch/arm64/kvm/sys_regs.c, arm64_check_features; Documentation/virt/kvm/arm/vcpu-features.rst.
"""

from __future__ import annotations

from vmm.arm64.id_registers import REGISTERS, Field
from vmm.compat.offer import Finding, Mask, Offer, Verdict

__all__ = ["FEATURES", "feature_mask", "field_mask", "field_value", "id_registers", "id_value", "missing_features"]

# The vCPU features that go together, and the fields that are 0 without them (none named: the whole register).
FEATURES: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "SVE": (("SVE",), {"ID_AA64PFR0_EL1": ("SVE",), "ID_AA64ZFR0_EL1": ()}),
    "PMU_V3": (("PMU_V3",), {"ID_AA64DFR0_EL1": ("PMUVer",), "ID_DFR0_EL1": ("PerfMon",)}),
    "PTRAUTH": (
        ("PTRAUTH_ADDRESS", "PTRAUTH_GENERIC"),
        {"ID_AA64ISAR1_EL1": ("APA", "API", "GPA", "GPI"), "ID_AA64ISAR2_EL1": ("APA3", "GPA3")},
    ),
}
# KVM once gave these to guests and takes them back where the hardware has them, without an effect:
# arch/arm64/kvm/sys_regs.c, set_id_aa64pfr0_el1, set_id_aa64pfr1_el1, set_id_aa64mmfr2_el1.
_TAKEN_BACK = {("ID_AA64PFR0_EL1", "MPAM"), ("ID_AA64PFR1_EL1", "MPAM_frac"), ("ID_AA64MMFR2_EL1", "NV")}
_ALL = (1 << 64) - 1


def missing_features(guest: Offer) -> list[str]:
    """Return the names in FEATURES that the guest was not given."""
    return [name for name, (parts, _) in FEATURES.items() if not all(guest.get(f"feature.{p}") for p in parts)]


def feature_mask(name: str) -> tuple[Mask, ...]:
    """Return the masks that take a feature of FEATURES from a guest."""
    action = f"leave {name} out of KVM_ARM_VCPU_INIT"
    return tuple(Mask(f"feature.{part}", _ALL, 0, name, action) for part in FEATURES[name][0])


def id_value(offer: Offer, register: str, guest: Offer) -> int:
    """Return an ID register of ``offer`` as a vCPU with the features of ``guest`` has it."""
    value = offer.get(f"id.{register}")
    for feature in missing_features(guest):
        names = FEATURES[feature][1].get(register)
        if names == ():
            return 0
        if names:
            value &= ~sum(field.mask for field in REGISTERS[register].fields if field.name in names)
    return value


def field_value(offer: Offer, register: str, name: str) -> int:
    """Return one field of an ID register."""
    found = next(field for field in REGISTERS[register].fields if field.name == name)
    return found.of(id_value(offer, register, offer))


def field_mask(guest: Offer, register: str, field: Field, value: int) -> Mask | None:
    """Return the mask that gives a field another value; None if the source does not let it be written."""
    writable = guest.get(f"writable.{register}") & field.mask == field.mask
    if not writable or field.safe_value(value, field.of(guest.get(f"id.{register}"))) != value:
        return None
    name = f"{register}.{field.name}={value}"
    return Mask(f"id.{register}", field.mask, value << field.low, name, f"write {name} before the first run")


def id_registers(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge all ID registers; one that a host does not list reads as 0 there."""
    names = dict.fromkeys(key.removeprefix("id.") for offer in (guest, destination) for key in offer.keys("id."))
    return [found for name in names for found in _register(name, guest, destination)]


def _register(register: str, guest: Offer, destination: Offer) -> list[Finding]:
    known = REGISTERS.get(register)
    if known is None:
        ours, theirs = guest.get(f"id.{register}"), destination.get(f"id.{register}")
        note = "this version does not know its fields"
        different = ours != theirs
        return [Finding(Verdict.UNKNOWN, register, f"{ours:#x}", f"{theirs:#x}", note=note)] if different else []
    ours, theirs = id_value(guest, register, guest), id_value(destination, register, guest)
    found = [
        finding
        for field in known.fields
        if (finding := _field(register, field, field.of(ours), field.of(theirs), guest, destination))
    ]
    rest = (ours ^ theirs) & ~known.named
    if rest:
        owner = _owner(register, None)
        masks = feature_mask(owner) if owner else ()
        verdict, values = Verdict.MASK if masks else Verdict.NO, (f"{ours & rest:#x}", f"{theirs & rest:#x}")
        found.append(Finding(verdict, f"{register} bits {rest:#x}", *values, masks, "no field is known there"))
    return found


def _owner(register: str, field: str | None) -> str | None:
    """Return the feature that a field is about, and without which it is 0; for no field, that of the register."""
    for feature, (_, registers) in FEATURES.items():
        names = registers.get(register)
        if names is not None and (not names or field in names):
            return feature
    return None


def _takes(field: Field, value: int, limit: int, writable: int) -> bool:
    """Does a host take a value of a field whose value there is ``limit``?"""
    return value == limit or (writable & field.mask == field.mask and field.safe_value(value, limit) == value)


def _field(register: str, field: Field, ours: int, theirs: int, guest: Offer, destination: Offer) -> Finding | None:
    writable = destination.get(f"writable.{register}")
    if _takes(field, ours, theirs, writable):
        return None
    name = f"{register}.{field.name}"
    if (register, field.name) in _TAKEN_BACK and not theirs:
        if guest.find("implementation.MIDR_EL1") == destination.find("implementation.MIDR_EL1"):
            return None
        note = "the destination takes it if its hardware has it"
        return Finding(Verdict.UNKNOWN, name, str(ours), str(theirs), note=note)
    safe = field.safe_value(ours, theirs)
    for value in dict.fromkeys([theirs, theirs if safe is None else safe]):
        mask = field_mask(guest, register, field, value)
        if mask and _takes(field, value, theirs, writable):
            return Finding(Verdict.MASK, name, str(ours), str(theirs), (mask,))
    owner = _owner(register, field.name)
    if owner:
        note = "it cannot be changed on its own"
        return Finding(Verdict.MASK, name, str(ours), str(theirs), feature_mask(owner), note)
    note = f"the destination does not take {ours}, and nothing that both take can be written on the source"
    return Finding(Verdict.NO, name, str(ours), str(theirs), note=note)
