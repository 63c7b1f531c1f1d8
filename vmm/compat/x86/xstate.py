# SPDX-License-Identifier: Apache-2.0
"""Extended state of two hosts side by side: components, their layout, AMX's limits, permission.

A component that the destination lacks, or lays out differently, takes its group and the features that need it
with it. The offsets of the standard format are the CPU's: no VMM can move them for a guest that uses XSAVE.
Source: Intel SDM volume 1, 13.3 and 13.4; volume 2, CPUID leaves 0xD, 0x1D, 0x1E.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmm.compat.offer import Finding, Mask, Offer, Verdict
from vmm.compat.x86.cpuid import cpuid_key, forced_key, mask_features
from vmm.compat.x86.cpuid_rules import BY_XFEATURE, GROUPS
from vmm.kvm.bits import bits
from vmm.x86.cpuid_names import Place
from vmm.x86.fields import TileInfo, TmulInfo
from vmm.x86.xfeature import AVX512, DYNAMIC, XTILE, XFeature, name

__all__ = ["amx", "layout", "permission", "xfeatures"]

_SMALLEST = 4096  # what KVM_GET_XSAVE takes, and KVM_GET_XSAVE2 at least
_LEGACY = 1 << XFeature.FP | 1 << XFeature.SSE
# Two registers hold each map: of what XCR0 may have, and of what IA32_XSS may have.
_XCR0: tuple[Place, Place] = ((0xD, 0, "eax"), (0xD, 0, "edx"))
_XSS: tuple[Place, Place] = ((0xD, 1, "ecx"), (0xD, 1, "edx"))
_GIVEN = "a KVM gives it to every guest, so it cannot be masked"
_APPEARS = "the destination's KVM gives it to every guest, so the guest would see its CPUID change"


def _map(offer: Offer, places: tuple[Place, Place], *, forced: bool = False) -> int:
    low, high = (offer.get(forced_key(place) if forced else cpuid_key(place)) for place in places)
    return high << 32 | low


def _components(offer: Offer) -> int:
    return _map(offer, _XCR0) | _map(offer, _XSS)


def _together(component: int) -> int:
    """Return the components that go where this one goes."""
    group = next((group for group in GROUPS if group >> component & 1), 1 << component)
    return group | AVX512 if component == XFeature.YMM else group


def _dropped(guest: Offer, destination: Offer, component: int) -> tuple[Mask, ...] | None:
    """Return the masks that take a component from the guest; None if a KVM would not let it go."""
    masks: list[Mask] = []
    for number in bits(_together(component)):
        for register, places in (("XCR0", _XCR0), ("IA32_XSS", _XSS)):
            if not _map(guest, places) >> number & 1:
                continue
            place, bit = places[number // 32], number % 32
            forced = guest.get(forced_key(place)) | destination.get(forced_key(place))
            if forced >> bit & 1 or _LEGACY >> number & 1:
                return None
            needing = mask_features(guest, destination, *BY_XFEATURE.get(number, ()))
            if needing is None:
                return None
            action = f"leave {name(number)} out of {register} ({'CPUID D.0' if places is _XCR0 else 'CPUID D.1'})"
            masks += [Mask(cpuid_key(place), 1 << bit, 0, name(number), action), *needing]
    return tuple(dict.fromkeys(masks))


def _without(ends: tuple[Offer, Offer], component: int, what: str, ours: str, theirs: str, note: str = "") -> Finding:
    """Return the finding that a component has to go, or that it should and cannot."""
    masks = _dropped(*ends, component)
    if masks is None:
        return Finding(Verdict.NO, what, ours, theirs, note=f"{note}; {_GIVEN}" if note else _GIVEN)
    return Finding(Verdict.MASK, what, ours, theirs, masks, note)


def _groups(components: int) -> Iterator[int]:
    """Yield the components that go together, one bitmap for each group."""
    while components:
        group = components & _together(next(bits(components)))
        yield group
        components &= ~group


def _named(register: str, group: int) -> str:
    return " ".join(f"{name(number)} ({register}[{number}])" for number in bits(group))


def xfeatures(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge the components that XCR0 and IA32_XSS may have."""
    found = []
    for register, places in (("XCR0", _XCR0), ("IA32_XSS", _XSS)):
        ours, theirs = _map(guest, places), _map(destination, places)
        for group in _groups(ours & ~theirs):
            found.append(_without((guest, destination), next(bits(group)), _named(register, group), "1", "0"))
        for group in _groups(_map(destination, places, forced=True) & ~ours):
            found.append(Finding(Verdict.NO, _named(register, group), "0", "1", note=_APPEARS))
    return found


def _subleaf(offer: Offer, number: int) -> tuple[int, int, int]:
    size, offset, flags = (offer.get(cpuid_key((0xD, number, register))) for register in ("eax", "ebx", "ecx"))
    return size, offset, flags & 7


def _place(subleaf: tuple[int, int, int]) -> str:
    size, offset, flags = subleaf
    words = ("supervisor", "aligned", "XFD")
    extra = "".join(f", {word}" for bit, word in enumerate(words) if flags >> bit & 1)
    return f"{size} bytes at {offset}{extra}"


def layout(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge size, offset and flags of the components both have, and whether the area holds them."""
    found, end = [], _SMALLEST
    both = _components(guest) & _components(destination) & ~_LEGACY
    for number in bits(both):
        ours, theirs = _subleaf(guest, number), _subleaf(destination, number)
        if ours != theirs:
            what = f"{name(number)} (CPUID D.{number})"
            places = _place(ours), _place(theirs)
            found.append(_without((guest, destination), number, what, *places, note="laid out differently"))
        elif not ours[2] & 1:
            end = max(end, ours[0] + ours[1])
    room = destination.find("xsave2")
    if room is not None and max(room, _SMALLEST) < end:
        note = "the state is larger than what the destination's KVM takes"
        found.append(Finding(Verdict.NO, "KVM_CAP_XSAVE2", f"{end} bytes", f"{room} bytes", note=note))
    return found


def _limits(offer: Offer) -> Iterator[tuple[str, int]]:
    yield "max_palette", offer.get(cpuid_key((0x1D, 0, "eax")))
    one = (offer.get(cpuid_key((0x1D, 1, register))) for register in ("eax", "ebx", "ecx", "edx"))
    palette = TileInfo.from_registers(tuple(one))  # type: ignore[arg-type]
    yield from ((field, int(getattr(palette, field))) for field in TileInfo.fields)
    tmul = TmulInfo(offer.get(cpuid_key((0x1E, 0, "ebx"))))
    yield from ((field, int(getattr(tmul, field))) for field in TmulInfo.fields)


def amx(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge AMX's palette and the multiplier's limits, where the guest has tiles: another palette is useless."""
    if not _components(guest) & XTILE:
        return []
    found = []
    for (field, ours), (_, theirs) in zip(_limits(guest), _limits(destination), strict=True):
        leaf = "1E.0" if field.startswith("tmul") else "1D.0" if field == "max_palette" else "1D.1"
        if ours > theirs or (leaf == "1D.1" and ours != theirs):
            what = f"{field} (CPUID {leaf})"
            found.append(_without((guest, destination), XFeature.XTILEDATA, what, str(ours), str(theirs)))
    return found


def permission(guest: Offer, destination: Offer) -> list[Finding]:
    """Judge nothing where it is known what a guest permission adds, on both sides."""
    found = []
    if guest.find("known.permission") is None:
        note = "what a guest permission adds on the source is not in its probe"
        found.append(Finding(Verdict.UNKNOWN, "guest permission", "unknown", "", note=note))
    if destination.find("known.permission") is None and _components(guest) & DYNAMIC:
        note = "what a guest permission adds on the destination is not in its probe"
        found.append(Finding(Verdict.UNKNOWN, "guest permission", "granted", "unknown", note=note))
    return found
