# SPDX-License-Identifier: Apache-2.0
"""MSRs of two hosts side by side: those that carry state, and those that say what a CPU can do."""

from __future__ import annotations

from collections.abc import Iterator

from vmm.compat.offer import Finding, Mask, Offer, Verdict
from vmm.compat.x86.cpuid import has, mask_features
from vmm.compat.x86.msr_rules import FEATURE_MSRS, FeatureMsr, Polarity
from vmm.kvm.bits import bits
from vmm.x86.msr_names import STATELESS, gate, name

__all__ = ["feature_msrs", "msrs"]


def msrs(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge the MSRs to save: the destination has each one that the guest can have changed."""
    if guest.find("known.msrs") is None or destination.find("known.msrs") is None:
        note = "KVM_GET_MSR_INDEX_LIST is not in both probes"
        return [Finding(Verdict.UNKNOWN, "MSR list", "", "", note=note)]
    found: list[Finding] = []
    for key in guest.keys("listed."):
        index = key.removeprefix("listed.")
        if guest.get(key) and not destination.get(key) and not destination.get(f"unlisted.{index}"):
            found += _missing(int(index, 16), guest, destination)
    return found


def _missing(index: int, guest: Offer, destination: Offer) -> Iterator[Finding]:
    """Yield the finding about an MSR that the destination lacks: none if the guest cannot have it.

    A saved guest has it in its state all the same.
    """
    what = f"{name(index)} ({index:#x})"
    features = [feature for feature in gate(index) if has(guest, feature)]
    if index in STATELESS or (gate(index) and not features):
        if guest.get("saved"):
            mask = Mask(f"listed.{index:08x}", 1, 0, what, f"leave {name(index)} out of the stream", late=True)
            yield Finding(Verdict.MASK, what, "saved", "missing", (mask,), "the guest cannot have used it")
        return
    masks = mask_features(guest, destination, *features) if features else None
    if masks:
        yield Finding(Verdict.MASK, what, "to be saved", "missing", masks, "it comes with these features")
    else:
        yield Finding(Verdict.NO, what, "to be saved", "missing", note="its value would be lost")


def feature_msrs(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge the MSRs that are like CPUID leaves, where the guest can see them."""
    found: list[Finding] = []
    for index, rule in FEATURE_MSRS.items():
        key = f"msr.{index:08x}"
        ours, theirs = guest.find(key), destination.find(key)
        if ours is None or rule.silent or (rule.feature and not has(guest, rule.feature)):
            continue
        if theirs is None and destination.find("known.feature_msrs") is None:
            note = "the feature MSRs are not in the destination's probe"
            return [*found, Finding(Verdict.UNKNOWN, name(index), f"{ours:#x}", "unknown", note=note)]
        if theirs is None:
            # An older KVM may have the MSR all the same, without calling it a feature.
            if rule.feature or not destination.get(f"listed.{index:08x}"):
                found += _absent(index, rule, guest, destination)
        else:
            found += _compared(index, rule, guest, destination)
    return found


def _absent(index: int, rule: FeatureMsr, guest: Offer, destination: Offer) -> Iterator[Finding]:
    ours = guest.get(f"msr.{index:08x}")
    if not ours:
        return
    if rule.feature is None:
        yield _lowered(index, ours, 0, "missing", "")
        return
    masks = mask_features(guest, destination, rule.feature)
    yield Finding(Verdict.MASK if masks else Verdict.NO, name(index), f"{ours:#x}", "missing", masks or ())


def _compared(index: int, rule: FeatureMsr, guest: Offer, destination: Offer) -> Iterator[Finding]:
    ours, theirs = (offer.get(f"msr.{index:08x}") for offer in (guest, destination))
    wanted, exact = ours, False
    for bit in bits(ours ^ theirs):
        polarity = rule.polarity(bit)
        exact |= polarity is Polarity.EXACT
        if polarity is Polarity.SUBSET:
            wanted &= ~(1 << bit) | theirs
        elif polarity is Polarity.SUPERSET:
            wanted |= theirs & 1 << bit
    if exact:
        masks = mask_features(guest, destination, rule.feature) if rule.feature else None
        verdict = Verdict.MASK if masks else Verdict.NO
        note = "a number in it differs"
        yield Finding(verdict, name(index), f"{ours:#x}", f"{theirs:#x}", masks or (), note)
    elif wanted != ours:
        named = [spelled for bit, spelled in rule.bits if (wanted ^ ours) >> bit & 1]
        yield _lowered(index, ours, wanted, f"{theirs:#x}", " ".join(named))


def _lowered(index: int, ours: int, wanted: int, theirs: str, named: str) -> Finding:
    spelled = name(index)
    what = f"{spelled} ({named})" if named else spelled
    changed = ours ^ wanted
    label = what if named else f"{spelled}={wanted:#x}"
    mask = Mask(f"msr.{index:08x}", changed, wanted & changed, label, f"set {spelled} to {wanted:#x}")
    return Finding(Verdict.MASK, what, f"{ours:#x}", theirs, (mask,))
