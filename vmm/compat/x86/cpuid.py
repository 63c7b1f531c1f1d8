# SPDX-License-Identifier: Apache-2.0
"""CPUID of two hosts side by side: the features and numbers that a guest has to do without.

Feature bits that the source gives to every guest cannot be masked, and those that the destination gives to
every guest would appear under a guest that was told otherwise: see ``cpuid_forced`` in vmm.probe.x86.survey.
"""

from __future__ import annotations

from vmm.compat.offer import Finding, Mask, Offer, Verdict
from vmm.compat.x86.cpuid_rules import AS_A_WHOLE, BY_CAPABILITY, NUMBERS, REQUIRED, SILENT
from vmm.kvm.bits import bits
from vmm.x86.cpuid_names import BITS, PLACES, RUNTIME, Place

__all__ = ["cpuid_key", "features", "forced_key", "has", "mask_features", "numbers", "others", "place_name"]


def cpuid_key(place: Place) -> str:
    """Return the key of one register of one leaf."""
    function, index, register = place
    return f"cpuid.{function:08x}.{index}.{register}"


def forced_key(place: Place) -> str:
    """Return the key of the bits of a register that every guest has, whatever its VMM wrote."""
    return f"forced.{cpuid_key(place)}"


def place_name(place: Place, high: int, low: int | None = None) -> str:
    """Return bits of a register in the manner of the manuals, such as ``CPUID 7.0 EBX[16]``."""
    function, index, register = place
    part = f"{high}" if low is None else f"{high}:{low}"
    return f"CPUID {function:X}.{index} {register.upper()}[{part}]"


def has(guest: Offer, feature: str) -> bool:
    """Has the guest a feature, by its name in cpuid_names? Three names are ours: ARCH_PERFMON, TSX_CTRL and SMM."""
    if feature == "SMM":
        return guest.get("cap.KVM_CAP_X86_SMM") > 0
    if feature == "ARCH_PERFMON":
        return bool(guest.get(cpuid_key((0xA, 0, "eax"))) & 0xFF)
    if feature == "TSX_CTRL":
        return bool(guest.get("msr.0000010a") & 1 << 7)
    if feature not in PLACES:
        return False
    place, bit = PLACES[feature]
    return bool(guest.get(cpuid_key(place)) >> bit & 1)


def mask_features(guest: Offer, destination: Offer, *names: str) -> tuple[Mask, ...] | None:
    """Return the masks that take features from the guest, those that it has; None if a KVM would not let one go."""
    masks = []
    for name in names:
        if not has(guest, name):
            continue
        if name not in PLACES or name in REQUIRED:
            return None
        place, bit = PLACES[name]
        if (guest.get(forced_key(place)) | destination.get(forced_key(place))) >> bit & 1:
            return None
        masks.append(_cleared(place, bit, name))
    return tuple(masks)


def _cleared(place: Place, bit: int, name: str) -> Mask:
    return Mask(cpuid_key(place), 1 << bit, 0, name, f"clear {place_name(place, bit)}")


def features(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge the feature bits: the guest may have none that the destination lacks."""
    return [finding for place in BITS for finding in _features(place, guest, destination)]


def _features(place: Place, guest: Offer, destination: Offer) -> list[Finding]:
    key, names = cpuid_key(place), BITS[place]
    compared = ~(RUNTIME.get(place, 0) | sum(number.mask for number in NUMBERS.get(place, ())))
    ours, theirs = guest.get(key) & compared, destination.get(key) & compared
    found = []
    for bit in bits(ours & ~theirs):
        name = names.get(bit, place_name(place, bit))
        shown = name if name.startswith("CPUID") else f"{name} ({place_name(place, bit)})"
        if name in BY_CAPABILITY and _by_capability(name, destination):
            continue
        if name in REQUIRED:
            note = "every 64-bit guest needs it"
        elif guest.get(forced_key(place)) >> bit & 1:
            note = "the source's KVM gives it to every guest, so it cannot be masked there"
        else:
            found.append(Finding(Verdict.MASK, shown, "1", "0", (_cleared(place, bit, name),)))
            continue
        found.append(Finding(Verdict.NO, shown, "1", "0", note=note))
    for bit in bits(destination.get(forced_key(place)) & compared & ~ours):
        if names.get(bit) in BY_CAPABILITY:
            continue
        name = f"{names.get(bit, 'a feature')} ({place_name(place, bit)})"
        note = "the destination's KVM gives it to every guest, so the guest would see its CPUID change"
        found.append(Finding(Verdict.NO, name, "0", "1", note=note))
    return found


def _by_capability(name: str, destination: Offer) -> bool:
    """Does the destination give a feature that its KVM_GET_SUPPORTED_CPUID does not have?"""
    capability = BY_CAPABILITY[name]
    return capability is None or destination.get(f"cap.{capability}") > 0


def numbers(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge widths, versions and counts: the guest may have no more than the destination."""
    found = []
    for place, held in NUMBERS.items():
        key = cpuid_key(place)
        for number in held:
            ours, theirs = number.of(guest.get(key)), number.of(destination.get(key))
            wanted = ours | theirs if number.inverted else min(ours, theirs)
            if wanted == ours or (number.optional and not theirs):
                continue
            where = place_name(place, number.high, number.low)
            mask = Mask(key, number.mask, wanted << number.low, f"{number.name}={wanted}", f"{where} = {wanted}")
            found.append(Finding(Verdict.MASK, f"{number.name} ({where})", str(ours), str(theirs), (mask,)))
    return found


def others(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge the leaves that are neither: some are equal or go as a whole, and nobody knows what a new one means."""
    found: list[Finding] = []
    whole: set[int] = set()
    for key in guest.keys("cpuid."):
        ours, theirs = guest.get(key), destination.get(key)
        _, leaf, subleaf, register = key.split(".")
        place = (int(leaf, 16), int(subleaf), register)
        if ours == theirs or not ours or _compared_elsewhere(place):
            continue
        feature = AS_A_WHOLE.get(place[0])
        if feature is None:
            name = f"CPUID {place[0]:X}.{place[1]} {register.upper()}"
            note = "this version does not know what the leaf means"
            found.append(Finding(Verdict.UNKNOWN, name, f"{ours:#x}", f"{theirs:#x}", note=note))
        elif has(guest, feature):
            whole.add(place[0])
    return [*found, *(_whole(leaf, guest, destination) for leaf in sorted(whole))]


def _compared_elsewhere(place: Place) -> bool:
    function, _, register = place
    return place in BITS or (place in NUMBERS) or bool({(function, None), (function, register)} & SILENT)


def _whole(leaf: int, guest: Offer, destination: Offer) -> Finding:
    feature = AS_A_WHOLE[leaf]
    masks = mask_features(guest, destination, feature)
    note = f"{feature} is described differently"
    name = f"CPUID {leaf:X} ({feature})"
    return Finding(Verdict.NO if masks is None else Verdict.MASK, name, "one", "another", masks or (), note)
