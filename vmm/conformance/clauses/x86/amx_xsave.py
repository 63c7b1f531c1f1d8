# SPDX-License-Identifier: Apache-2.0
"""The guest's own XSAVE and XRSTOR instructions with live tiles, initial ones, and XFD armed."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import TILE_GUESTS, TILEDATA, judged_call, offers
from vmm.conformance.x86.tiles import AREA_SIZE, guest_area, loaded, verify
from vmm.x86 import xfeature
from vmm.x86.guest import Guest
from vmm.x86.msr_names import Msr, name
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea

_TILES = TILE_GUESTS
_COMPACTING = (*_TILES, offers("XSAVEC"), offers("XSAVES"))
_XTILE = xfeature.XTILE
_ARMED = 1 << TILEDATA
_SAVES = ("xsave", "xsaveopt", "xsavec", "xsaves")
# Each instruction that saves, and the one that restores from its format.
_PAIRS = (("xsave", "xrstor"), ("xsavec", "xrstor"), ("xsaves", "xrstors"))


def _fill(guest: Guest, data: bytes) -> None:
    guest.memory.write(guest.payload.symbol("area"), data)


def _compacted_tiles(area: XsaveArea) -> bytes:
    """TILECFG and TILEDATA of a compacted area that holds only them: right after the header, 64-byte aligned."""
    return bytes(area.data[576 : 576 + 64 + 8192])


@clause("amx.xsave-standard", arch="x86", needs=(*_TILES, offers("XSAVEOPT")))
def xsave_standard(context: Context) -> None:
    """XSAVE and XSAVEOPT in the guest write live tiles at the offsets of CPUID 0xD and set both bits.

    Source: Intel SDM volume 1, 13.7, 13.9.
    """
    guest, image = loaded(context, 10)
    for instruction in ("xsave", "xsaveopt"):
        _fill(guest, bytes(AREA_SIZE))
        judged_call(context, guest, instruction, _XTILE)
        area = guest_area(guest)
        equal(f"XSTATE_BV of {instruction}", area.xstate_bv, _XTILE)
        image.check_area(area)


@clause("amx.xsave-compacted", arch="x86", needs=_COMPACTING)
def xsave_compacted(context: Context) -> None:
    """XSAVEC and XSAVES in the guest write live tiles right after the header and name them in XCOMP_BV.

    Source: Intel SDM volume 1, 13.10, 13.11, 13.4.3.
    """
    guest, image = loaded(context, 11)
    for instruction in ("xsavec", "xsaves"):
        _fill(guest, bytes([0xAA]) * 512 + bytes(64) + bytes([0xAA]) * (AREA_SIZE - 576))
        judged_call(context, guest, instruction, _XTILE)
        area = guest_area(guest)
        equal(f"XSTATE_BV of {instruction}", area.xstate_bv, _XTILE)
        equal(f"XCOMP_BV of {instruction}", area.xcomp_bv, 1 << 63 | _XTILE)
        image.check(guest, _compacted_tiles(area))
        rest = bytes(area.data[576 + 64 + 8192 :])
        equal(f"bytes beyond the {instruction} area", rest.count(0xAA), len(rest))


@clause("amx.xrstor-restores", arch="x86", needs=_COMPACTING)
def xrstor_restores(context: Context) -> None:
    """XRSTOR of a standard and of a compacted area, and XRSTORS, bring back every byte of the tiles.

    Source: Intel SDM volume 1, 13.8, 13.12.
    """
    guest, image = loaded(context, 12)
    for save, restore in _PAIRS:
        _fill(guest, bytes(AREA_SIZE))
        judged_call(context, guest, save, _XTILE)
        judged_call(context, guest, "release")
        judged_call(context, guest, restore, _XTILE)
        equal(f"faults of {restore}", guest.mailbox.read("values", 15), 0)
        verify(context, guest, image)


@clause("amx.xrstor-initialises", arch="x86", needs=(*_TILES, offers("XGETBV1")))
def xrstor_initialises(context: Context) -> None:
    """XRSTOR with both bits clear in XSTATE_BV puts both components into their initial state.

    Source: Intel SDM volume 1, 13.8, 13.6.
    """
    guest, _ = loaded(context, 13)
    _fill(guest, bytes(AREA_SIZE))
    judged_call(context, guest, "xrstor", _XTILE)
    equal("faults of XRSTOR", guest.mailbox.read("values", 15), 0)
    judged_call(context, guest, "xinuse")
    equal("XINUSE", guest.mailbox.values[0] & _XTILE, 0)


def _write(context: Context, guest: Guest, msr: Msr, value: int) -> None:
    judged_call(context, guest, "wrmsr", msr, value)
    equal(f"faults of WRMSR {name(msr)} {value:#x}", guest.mailbox.read("values", 15), 0)


def _error(context: Context, guest: Guest) -> int:
    judged_call(context, guest, "rdmsr", Msr.XFD_ERR)
    return guest.mailbox.values[0]


@clause("amx.xsave-with-xfd", arch="x86", needs=(*_COMPACTING, offers("XSAVEOPT")))
def save_while_armed(context: Context) -> None:
    """With XFD armed no XSAVE instruction faults, all write XSTATE_BV[18]=0, and XSAVE writes zeros for the tiles.

    Source: Intel SDM volume 1, 13.14.
    """
    guest, image = loaded(context, 14)
    for instruction in _SAVES:
        guest.call("load", timeout=context.timeout)
        _write(context, guest, Msr.XFD, _ARMED)
        _fill(guest, bytes(576) + bytes([0x55]) * (AREA_SIZE - 576))
        judged_call(context, guest, instruction, _XTILE)
        equal(f"faults of {instruction}", guest.mailbox.read("values", 15), 0)
        area = guest_area(guest)
        equal(f"XSTATE_BV[18] of {instruction}", area.xstate_bv >> TILEDATA & 1, 0)
        equal(f"XSTATE_BV[17] of {instruction}", area.xstate_bv >> XFeature.XTILECFG & 1, 1)
        if instruction in ("xsavec", "xsaves"):
            equal(f"XCOMP_BV of {instruction}", area.xcomp_bv, 1 << 63 | _XTILE)
        if instruction == "xsave":
            equal("tile bytes of xsave", area.component(XFeature.XTILEDATA).strip(b"\0"), b"")
        _write(context, guest, Msr.XFD, 0)
    equal("configuration in the area", guest_area(guest).data[576:640], image.config.data)


@clause("amx.xrstor-with-xfd", arch="x86", needs=_COMPACTING)
def restore_while_armed(context: Context) -> None:
    """With XFD armed XRSTOR and XRSTORS are #NM if the area has tile data, and work if it has none.

    Source: Intel SDM volume 1, 13.14.
    """
    guest, _ = loaded(context, 15)
    for save, restore in _PAIRS:
        guest.call("load", timeout=context.timeout)
        _fill(guest, bytes(AREA_SIZE))
        judged_call(context, guest, save, _XTILE)
        _write(context, guest, Msr.XFD, _ARMED)
        judged_call(context, guest, restore, _XTILE)
        equal(f"faults of {restore} after {save}", guest.mailbox.read("values", 15), 1)
        equal(f"the fault of {restore} after {save}", guest.fault().name, "#NM")
        equal(f"IA32_XFD_ERR of {restore} after {save}", _error(context, guest), _ARMED)
        _write(context, guest, Msr.XFD_ERR, 0)
        area = guest_area(guest)
        area.xstate_bv &= ~(1 << TILEDATA)
        guest.memory.write(guest.payload.symbol("area"), bytes(area.data))
        judged_call(context, guest, restore, _XTILE)
        equal(f"faults of {restore} without tile data", guest.mailbox.read("values", 15), 0)
        _write(context, guest, Msr.XFD, 0)
