# SPDX-License-Identifier: Apache-2.0
"""May a guest of one arm64 host run on another: the dimensions, from what two probes say.

The guest is one that was given all that vmm.probe.arm64.survey asked for: SVE with every vector length, PMU_V3,
pointer authentication, every ID register as KVM offers it. Keys of an offer's values:

    id.REGISTER, writable.REGISTER    an ID register and its bits that a VMM may write
    feature.NAME                      1 for each feature of VCPU_INIT     vls   the vector lengths, bit vq - 1
    register.ID, plain.ID             1 for each register listed, with all features and without
    implementation.NAME, cache.NAME, firmware.NAME, cap.NAME, ipa, counter, caches_settable
"""

from __future__ import annotations

import re

from vmm.arm64.vls import MAX, VectorLengths
from vmm.compat.arm64.id_registers import FEATURES, feature_mask, id_registers, missing_features
from vmm.compat.arm64.registers import caches, firmware, registers
from vmm.compat.offer import Capabilities, Dimension, Finding, Mask, Offer, Verdict
from vmm.kvm.bits import bits
from vmm.probe.document import ProbeError, Section

__all__ = ["CAPABILITIES", "DIMENSIONS", "IMPLEMENTATION", "values"]

IMPLEMENTATION = ("MIDR_EL1", "REVIDR_EL1", "AIDR_EL1")
_ALL = (1 << 64) - 1
_ID = re.compile(r"0x6[0-9a-f]{15}")
_NAME = re.compile(r"[A-Z0-9a-z_]{1,40}(\[[0-9]{1,3}\])?")
CAPABILITIES = Capabilities(
    needed=("KVM_CAP_ONE_REG", "KVM_CAP_VCPU_EVENTS", "KVM_CAP_MP_STATE"),
    optional=(
        "KVM_CAP_IRQCHIP", "KVM_CAP_ARM_EL1_32BIT", "KVM_CAP_ARM_MTE", "KVM_CAP_ARM_EL2", "KVM_CAP_ARM_EL2_E2H0",
        "KVM_CAP_ARM_NISV_TO_USER", "KVM_CAP_ARM_INJECT_SERROR_ESR", "KVM_CAP_ARM_INJECT_EXT_DABT",
        "KVM_CAP_ARM_SYSTEM_SUSPEND", "KVM_CAP_STEAL_TIME", "KVM_CAP_PTP_KVM", "KVM_CAP_COUNTER_OFFSET",
        "KVM_CAP_GUEST_MEMFD",
    ),
    sets=(),
    limits=("KVM_CAP_MAX_VCPUS", "KVM_CAP_MAX_VCPU_ID"),
)  # fmt: skip


def values(document: Section) -> dict[str, int]:
    """Return the numbers of a probe by key; ProbeError if something is not as a probe writes it."""
    found = {f"cap.{name}": value for name, value in document.numbers("capabilities").items()}
    found |= {f"feature.{name}": 1 for name in document.texts("vcpu_features")}
    section = document.section("id_registers")
    for name, _ in section.items():
        _check(_NAME, name, section)
        entry = section.section(name)
        found |= {f"id.{name}": entry.number("value"), f"writable.{name}": entry.number("writable")}
    for key, prefix in (("implementation", "implementation"), ("caches", "cache"), ("firmware", "firmware")):
        if document.has(key):
            inner = document.section(key)
            for name, value in document.numbers(key).items():
                _check(_NAME, name, inner)
                found[f"{prefix}.{name}"] = value
    listed = document.section("registers")
    for identifier, _ in listed.items():
        _check(_ID, identifier, listed)
        found[f"register.{identifier}"] = 1
    for identifier in document.texts("registers_plain"):
        _check(_ID, identifier, document)
        found[f"plain.{identifier}"] = 1
    return found | _scalars(document)


def _check(pattern: re.Pattern[str], text: str, section: Section) -> None:
    if not pattern.fullmatch(text):
        raise ProbeError(f"{text!r} in {section.where} is not a register")


def _scalars(document: Section) -> dict[str, int]:
    found = {}
    for key, name in (("ipa_bits", "ipa"), ("counter_hz", "counter")):
        if document.has(key):
            found[name] = document.number(key)
    if document.has("caches_settable"):
        found["caches_settable"] = int(document.flag("caches_settable"))
    if document.has("guest_vector_lengths"):
        lengths = document.list_of_numbers("guest_vector_lengths")
        if not lengths or not all(1 <= length <= MAX for length in lengths):
            raise ProbeError(f"'guest_vector_lengths' of {document.where} are not 1 to {MAX} quadwords")
        found["vls"] = sum(1 << length - 1 for length in set(lengths))
    return found


def _features(guest: Offer, destination: Offer) -> list[Finding]:
    found = []
    for name, (parts, _) in FEATURES.items():
        if name in missing_features(guest) or all(destination.get(f"feature.{part}") for part in parts):
            continue
        found.append(Finding(Verdict.MASK, " and ".join(parts), "1", "0", feature_mask(name)))
    return found


def _lengths(bitmap: int) -> VectorLengths:
    return VectorLengths(number + 1 for number in bits(bitmap))


def _vector_lengths(guest: Offer, destination: Offer) -> list[Finding]:
    if "SVE" in missing_features(guest):
        return []
    name, ours, theirs = "KVM_REG_ARM64_SVE_VLS", guest.find("vls"), destination.find("vls")
    if ours is None or theirs is None:
        return [Finding(Verdict.UNKNOWN, name, "", "", note="the vector lengths are not in both probes")]
    mine, other = _lengths(ours), _lengths(theirs)
    if other.up_to(mine.maximum) == mine:
        return []
    common = [vq for vq in sorted(mine) if mine.up_to(vq) == other.up_to(vq)]
    note = "KVM can cut a set only at its upper end"
    if not common:
        return [Finding(Verdict.MASK, name, str(mine), str(other), feature_mask("SVE"), note)]
    kept = mine.up_to(common[-1])
    bitmap = sum(1 << vq - 1 for vq in kept)
    mask = Mask("vls", (1 << MAX) - 1, bitmap, f"{name}={kept}", f"set {name} to {kept} before FINALIZE")
    return [Finding(Verdict.MASK, name, str(mine), str(other), (mask,), note)]


def _address_space(guest: Offer, destination: Offer) -> list[Finding]:
    name, ours, theirs = "guest physical addresses", guest.find("ipa"), destination.find("ipa")
    if ours is None or theirs is None:
        return [Finding(Verdict.UNKNOWN, name, "", "", note="KVM_CAP_ARM_VM_IPA_SIZE is not in both probes")]
    if ours <= theirs:
        return []
    mask = Mask("ipa", _ALL, theirs, f"IPA={theirs}", f"create the VM with {theirs} bits of address")
    return [Finding(Verdict.MASK, name, f"{ours} bits", f"{theirs} bits", (mask,))]


def _implementation(guest: Offer, destination: Offer) -> list[Finding]:
    found = []
    for name in IMPLEMENTATION:
        key = f"implementation.{name}"
        ours, theirs = guest.find(key), destination.find(key)
        if ours is None or theirs is None:
            found.append(Finding(Verdict.UNKNOWN, name, "", "", note="it is not in both probes"))
        elif ours != theirs and not guest.get("implementation.chosen"):
            shown = f"{ours:#x}", f"{theirs:#x}"
            if destination.get("cap.KVM_CAP_ARM_WRITABLE_IMP_ID_REGS"):
                action = "enable KVM_CAP_ARM_WRITABLE_IMP_ID_REGS on the destination before its first vCPU"
                mask = Mask("implementation.chosen", 1, 1, "WRITABLE_IMP_ID_REGS", action, late=True)
                note = "the guest's kernel has to know the errata of both CPUs"
                found.append(Finding(Verdict.MASK, name, *shown, (mask,), note))
            else:
                note = "the destination's KVM lets no guest have another one (KVM_CAP_ARM_WRITABLE_IMP_ID_REGS)"
                found.append(Finding(Verdict.NO, name, *shown, note=note))
    return found


def _counter(guest: Offer, destination: Offer) -> list[Finding]:
    ours, theirs = guest.find("counter"), destination.find("counter")
    if ours is None or theirs is None:
        return [Finding(Verdict.UNKNOWN, "CNTFRQ_EL0", "", "", note="it is not in both probes")]
    if ours == theirs:
        return []
    note = "no KVM can scale the counter: time would run at another speed"
    return [Finding(Verdict.NO, "CNTFRQ_EL0", f"{ours} Hz", f"{theirs} Hz", note=note)]


# In this order: what a feature that has to go brings along is gone before it is compared.
DIMENSIONS: tuple[Dimension, ...] = (
    Dimension("vCPU features", _features),
    Dimension("vector lengths", _vector_lengths),
    Dimension("address space", _address_space),
    Dimension("implementation", _implementation),
    Dimension("ID registers", id_registers),
    Dimension("caches", caches),
    Dimension("firmware registers", firmware),
    Dimension("register list", registers),
    Dimension("counter", _counter),
    Dimension("capabilities", CAPABILITIES.judge),
)
