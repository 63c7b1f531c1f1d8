# SPDX-License-Identifier: Apache-2.0
"""What is not a feature field: caches, firmware registers, and the list of registers that a state consists of.

Source: arch/arm64/kvm/sys_regs.c, set_clidr, set_ccsidr; arch/arm64/kvm/hypercalls.c, kvm_arm_set_fw_reg.
"""

from __future__ import annotations

from vmm.arm64.id_registers import REGISTERS
from vmm.arm64.registers import Group, Register
from vmm.compat.arm64.id_registers import field_mask, field_value, missing_features
from vmm.compat.offer import Finding, Mask, Offer, Verdict

__all__ = ["caches", "firmware", "registers"]

_ALL = (1 << 64) - 1
_NO_CACHE = "the guest's CLIDR_EL1 has no such cache"
# CLIDR_EL1.LoUIS, LoC, LoUU; CTR_EL0.IDC.
_LOUIS, _LOC, _LOUU, _IDC = 21, 24, 27, 28
# The registers that a field of an ID register brings along: arch/arm64/kvm/sys_regs.c, tcr2_visibility and others.
_BY_FIELD = {
    "TCR2_EL1": ("ID_AA64MMFR3_EL1", "TCRX"), "PIR_EL1": ("ID_AA64MMFR3_EL1", "S1PIE"),
    "PIRE0_EL1": ("ID_AA64MMFR3_EL1", "S1PIE"), "POR_EL1": ("ID_AA64MMFR3_EL1", "S1POE"),
    "POR_EL0": ("ID_AA64MMFR3_EL1", "S1POE"), "SCTLR2_EL1": ("ID_AA64MMFR3_EL1", "SCTLRX"),
    "FPMR": ("ID_AA64PFR2_EL1", "FPMR"), "DISR_EL1": ("ID_AA64PFR0_EL1", "RAS"),
}  # fmt: skip
# Encodings (op1, CRn, CRm) of what comes with a vCPU feature.
_PTRAUTH = {(0, 2, crm) for crm in (1, 2, 3)}
_PMU = {(0, 9, 14), *((3, 9, crm) for crm in (12, 13, 14)), *((3, 14, crm) for crm in range(8, 16))}
_ZCR_EL1 = (3, 0, 1, 2, 0)


def _needs(register: Register) -> str | None:
    """Return the vCPU feature without which a register is not there."""
    if register.group == Group.SVE:
        return "SVE"
    if register.group != Group.SYSREG:
        return None
    op0, op1, crn, crm, _ = register.encoding
    if register.encoding == _ZCR_EL1:
        return "SVE"
    if op0 == 3 and (op1, crn, crm) in _PTRAUTH:
        return "PTRAUTH"
    return "PMU_V3" if op0 == 3 and (op1, crn, crm) in _PMU else None


def _numbers(offer: Offer, prefix: str) -> set[Register]:
    return {Register(int(key.removeprefix(prefix), 16)) for key in offer.keys(prefix) if offer.get(key)}


def _listed(offer: Offer, guest: Offer) -> set[Register]:
    """Return the registers that a vCPU with the features of ``guest`` has on the host of ``offer``."""
    missing = missing_features(guest)
    found = {register for register in _numbers(offer, "register.") if _needs(register) not in missing}
    if "SVE" in missing:  # V0 to V31 are what a vCPU has instead
        found |= {register for register in _numbers(offer, "plain.") if register.group == Group.CORE}
    return found


def _left_out(name: str) -> Mask:
    """Return the mask that a stream goes without a register whose value means nothing to the guest."""
    return Mask(f"left.{name}", 1, 1, name, f"leave {name} out of the stream", late=True)


def registers(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge KVM_GET_REG_LIST: the destination has every register whose value the guest depends on."""
    missing = [
        register
        for register in sorted(_listed(guest, guest) - _listed(destination, guest))
        if register.group not in (Group.FIRMWARE, Group.BITMAP) and not guest.get(f"left.{register.name}")
    ]
    no_caches = [r.name for r in missing if r.group == Group.DEMUX and not _is_cache(r.name, guest)]
    found = [_missing(register, guest) for register in missing if register.name not in no_caches]
    if no_caches:
        masks = tuple(map(_left_out, no_caches))
        found.append(Finding(Verdict.MASK, " ".join(no_caches), "listed", "missing", masks, _NO_CACHE))
    return found


def _missing(register: Register, guest: Offer) -> Finding:
    name, holder = register.name, _BY_FIELD.get(register.name)
    if holder is None:
        note = "the destination's KVM does not have it: its value would be lost"
        return Finding(Verdict.NO, name, "listed", "missing", note=note)
    field = next(field for field in REGISTERS[holder[0]].fields if field.name == holder[1])
    spelled = ".".join(holder)
    if not field_value(guest, *holder):
        return Finding(Verdict.MASK, name, "listed", "missing", (_left_out(name),), f"the guest has no {spelled}")
    mask = field_mask(guest, holder[0], field, 0)
    masks = (mask, _left_out(name)) if mask else ()
    return Finding(
        Verdict.MASK if masks else Verdict.NO, name, "listed", "missing", masks, f"it comes with {spelled}"
    )


def caches(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge CLIDR_EL1 and CCSIDR where both have them: the same, or a description that the destination takes."""
    found = []
    for key in guest.keys("cache."):
        name = key.removeprefix("cache.")
        ours, theirs = guest.get(key), destination.find(key)
        if theirs is None or ours == theirs or guest.get(f"left.{name}"):
            continue
        note = _cache_objection(name, ours, destination)
        if note and not _is_cache(name, guest):
            found.append(Finding(Verdict.MASK, name, f"{ours:#x}", f"{theirs:#x}", (_left_out(name),), _NO_CACHE))
        elif note:
            found.append(Finding(Verdict.NO, name, f"{ours:#x}", f"{theirs:#x}", note=note))
    return found


def _selector(name: str) -> int | None:
    """Return the CSSELR_EL1 of a CCSIDR's name; None for CLIDR_EL1 and for what is not a name."""
    number = name.removeprefix("CCSIDR[").removesuffix("]")
    return int(number) if name.startswith("CCSIDR[") and number.isdecimal() else None


def _is_cache(name: str, guest: Offer) -> bool:
    """Does CLIDR_EL1 tell the guest that there is the cache that a CCSIDR describes?"""
    selector = _selector(name)
    if selector is None:
        return True
    kind = guest.get("cache.CLIDR_EL1") >> 3 * (selector >> 1) & 7
    return kind in ((1, 3) if selector & 1 else (2, 3, 4))


def _cache_objection(name: str, ours: int, destination: Offer) -> str:
    """Return why the destination does not take a description of caches, nothing if it does."""
    if not destination.get("caches_settable"):
        return "the destination's KVM describes its own caches to every guest"
    ctr = destination.get("id.CTR_EL0")
    if name == "CLIDR_EL1":
        clean = not ours >> _LOC & 7 or (not ours >> _LOUIS & 7 and not ours >> _LOUU & 7)
        needed = not ctr >> _IDC & 1
        return "the guest was told that data need not be cleaned, and there they need" if clean and needed else ""
    selector = _selector(name) or 0
    # Both are powers of two: LineSize in 16 bytes, IminLine and DminLine in words of 4.
    smallest = ctr >> (0 if selector & 1 else 16) & 0xF
    return "its lines are shorter than the destination's shortest" if (ours & 7) + 4 < smallest + 2 else ""


def firmware(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge the firmware registers: version, levels and bitmaps that the destination can promise."""
    found = []
    for key in guest.keys("firmware."):
        name, ours, theirs = key.removeprefix("firmware."), guest.get(key), destination.find(key)
        if not guest.get(f"left.{name}") and (finding := _firmware(name, ours, theirs)):
            found.append(finding)
    return found


def _firmware(name: str, ours: int, theirs: int | None) -> Finding | None:
    shown = "missing" if theirs is None else f"{theirs:#x}"
    limit = theirs or 0
    leave = () if theirs is not None else (_left_out(name),)
    workaround = name.startswith("WORKAROUND_")
    if workaround and _level(name, ours) > _level(name, limit):
        note = "a mitigation that the guest relies on is weaker there"
        return Finding(Verdict.NO, name, f"{ours:#x}", shown, note=note)
    wanted = ours if workaround else min(ours, limit) if name == "PSCI_VERSION" else ours & limit
    if wanted == ours:
        return Finding(Verdict.MASK, name, f"{ours:#x}", shown, leave) if leave else None
    action = f"set {name} to {wanted:#x} before the first run"
    mask = Mask(f"firmware.{name}", _ALL, wanted, f"{name}={wanted:#x}", action)
    return Finding(Verdict.MASK, name, f"{ours:#x}", shown, (mask, *leave))


def _level(name: str, value: int) -> int:
    """Return a workaround's level; of WORKAROUND_2 KVM tells only two apart."""
    level = value & 0xF
    return level if name != "WORKAROUND_2" else 3 * (level >= 2)
