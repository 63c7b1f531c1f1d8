# SPDX-License-Identifier: Apache-2.0
"""Tile images: what a guest loads into TILECFG and its tiles, and how a difference is explained.

Their shape is that of `expected` and `observed` in guest_payloads/x86/amx.S.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, true
from vmm.conformance.x86.common import judged_call, permit_tiles
from vmm.conformance.x86.noise import noise
from vmm.x86 import cpuid
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.cpuid import Cpuid
from vmm.x86.guest import DONE, Guest
from vmm.x86.registers import set_xcr0
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea

__all__ = [
    "AREA_SIZE",
    "FULL",
    "TileImage",
    "TileShapes",
    "data_entries",
    "expect_fault",
    "explain",
    "guest_area",
    "loaded",
    "tile_guest",
    "verify",
]

TILES, ROWS, ROW, TILE = 8, 16, 64, 1024
_CONFIG = 64
# `area` of the payload.
AREA_SIZE = 16384


@dataclass(frozen=True, slots=True)
class TileShapes:
    """A TILECFG: ``shapes`` gives (rows, bytes per row) of each tile; palette 0 is the initial state.

    Source: Intel SDM volume 1, 18.2 (layout of the memory operand of LDTILECFG).
    """

    shapes: tuple[tuple[int, int], ...]
    palette: int = 1

    @property
    def data(self) -> bytes:
        """The 64 bytes of the memory operand."""
        image = bytearray(_CONFIG)
        image[0] = self.palette
        for number, (rows, columns) in enumerate(self.shapes):
            image[16 + 2 * number : 18 + 2 * number] = columns.to_bytes(2, "little")
            image[48 + number] = rows
        return bytes(image)


FULL = TileShapes(((ROWS, ROW),) * TILES)


@dataclass(frozen=True, slots=True)
class TileImage:
    """A configuration and 8 tiles of 1024 bytes; what a configuration leaves out of a tile is 0."""

    config: TileShapes
    tiles: bytes

    @classmethod
    def random(cls, seed: int, config: TileShapes = FULL) -> TileImage:
        """Return an image in which no two rows of any tiles are equal and no byte is 0."""
        source = random.Random(seed)
        tiles = bytearray(TILES * TILE)
        for number, (rows, columns) in enumerate(config.shapes):
            for row in range(rows):
                at = number * TILE + row * ROW
                tiles[at : at + columns] = noise(source, columns)
        return cls(config, bytes(tiles))

    @property
    def data(self) -> bytes:
        """The bytes of `expected`."""
        return self.config.data + self.tiles

    def load(self, guest: Guest) -> None:
        """Have the guest configure and load its tiles with this."""
        guest.memory.write(guest.payload.symbol("expected"), self.data)

    def check(self, guest: Guest, observed: bytes | None = None) -> None:
        """Raise a Violation that says what became of the tiles, if they are not these."""
        seen = observed or guest.memory.read(guest.payload.symbol("observed"), len(self.data))
        lines = explain(self.data, seen)
        true("tiles in the guest", not lines, "; ".join(lines[:4]), "the tiles that were loaded")

    def check_area(self, area: XsaveArea) -> None:
        """Raise a Violation if the XSAVE area does not hold exactly this."""
        for number in (XFeature.XTILECFG, XFeature.XTILEDATA):
            equal(f"{number.name} in XSTATE_BV", area.xstate_bv >> number & 1, 1)
        seen = area.component(XFeature.XTILECFG) + area.component(XFeature.XTILEDATA)
        lines = explain(self.data, seen)
        true("tiles in the XSAVE area", not lines, "; ".join(lines[:4]), "the tiles that the guest loaded")

    def put(self, area: XsaveArea) -> None:
        """Put both components into an area."""
        area.set_component(XFeature.XTILECFG, self.config.data)
        area.set_component(XFeature.XTILEDATA, self.tiles)


def _rows(tiles: bytes) -> list[bytes]:
    return [tiles[at : at + ROW] for at in range(0, len(tiles), ROW)]


def _row_name(index: int) -> str:
    return f"TMM{index // ROWS} row {index % ROWS}"


def _swapped_tiles(expected: bytes, observed: bytes) -> list[str]:
    ours = [expected[at : at + TILE] for at in range(0, len(expected), TILE)]
    theirs = [observed[at : at + TILE] for at in range(0, len(observed), TILE)]
    wrong = [number for number in range(len(ours)) if ours[number] != theirs[number]]
    if len(wrong) == 2 and ours[wrong[0]] == theirs[wrong[1]] and ours[wrong[1]] == theirs[wrong[0]]:
        return [f"TMM{wrong[0]} and TMM{wrong[1]} are swapped"]
    return []


def _swapped_rows(ours: list[bytes], theirs: list[bytes]) -> list[str]:
    wrong = [index for index in range(len(ours)) if ours[index] != theirs[index]]
    if len(wrong) == 2 and ours[wrong[0]] == theirs[wrong[1]] and ours[wrong[1]] == theirs[wrong[0]]:
        return [f"{_row_name(wrong[0])} and {_row_name(wrong[1])} are swapped"]
    return []


def explain(expected: bytes, observed: bytes) -> list[str]:
    """Say how two images (64 bytes of TILECFG, then tiles) differ: swapped tiles, swapped rows, or which bytes."""
    if expected == observed:
        return []
    lines = [
        f"TILECFG byte {index}: expected {expected[index]:#04x}, observed {observed[index]:#04x}"
        for index in range(_CONFIG)
        if expected[index] != observed[index]
    ]
    ours, theirs = expected[_CONFIG:], observed[_CONFIG:]
    swaps = _swapped_tiles(ours, theirs) or _swapped_rows(_rows(ours), _rows(theirs))
    return lines + (swaps or _different_bytes(ours, theirs))


def _different_bytes(ours: bytes, theirs: bytes) -> list[str]:
    lines = []
    for index, (row, seen) in enumerate(zip(_rows(ours), _rows(theirs), strict=True)):
        wrong = [byte for byte in range(ROW) if row[byte] != seen[byte]]
        if len(wrong) > 4:
            lines.append(f"{_row_name(index)}: {len(wrong)} of {ROW} bytes differ")
        else:
            lines += [
                f"{_row_name(index)} byte {byte}: expected {row[byte]:#04x}, observed {seen[byte]:#04x}"
                for byte in wrong
            ]
    return lines


def tile_guest(
    context: Context, table: Cpuid | None = None, *, permit: bool = True, payload: str = "amx", cr4: int = 0
) -> Guest:
    """A guest that may use tiles; the first call in a clause requests the permission. ``cr4`` is added to CR4."""
    if permit:
        permit_tiles(context)
    offered = cpuid.supported(context.kvm) if table is None else table
    guest = context.own(Guest(context.kvm, payload, cpuid=offered, cr4=CR4_OSXSAVE | cr4))
    set_xcr0(guest.vcpu, offered.xcr0)
    return guest


def data_entries(guest: Guest) -> tuple[str, ...]:
    """The entry points, beside tileload_once, with one instruction on tile data that this guest's CPUID has."""
    return ("tilezero_once", "tdpbssd_once") if guest.cpuid.has("AMX_INT8") else ("tilezero_once",)


def loaded(context: Context, seed: int, config: TileShapes = FULL) -> tuple[Guest, TileImage]:
    """A guest that has configured and loaded its tiles, and what they hold."""
    guest = tile_guest(context)
    image = TileImage.random(seed, config)
    image.load(guest)
    equal("event of loading the tiles", guest.call("load", timeout=context.timeout), DONE)
    return guest, image


def verify(context: Context, guest: Guest, image: TileImage) -> None:
    """Have the guest store its tiles and compare them with ``image``."""
    judged_call(context, guest, "verify")
    image.check(guest)


def guest_area(guest: Guest) -> XsaveArea:
    """Return what an XSAVE instruction of the guest wrote into `area`."""
    return XsaveArea(guest.memory.read(guest.payload.symbol("area"), AREA_SIZE))


def expect_fault(
    context: Context, guest: Guest, entries: tuple[str, ...], name: str, where: str, privilege: int = 0
) -> None:
    """Run entry points that have to fault once each, with the exception of that name; ``where`` says why."""
    for entry in entries:
        judged_call(context, guest, entry, privilege=privilege)
        equal(f"faults of {entry} with {where}", guest.mailbox.read("values", 15), 1)
        equal(f"the fault of {entry} with {where}", guest.fault().name, name)
