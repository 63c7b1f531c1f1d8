# SPDX-License-Identifier: Apache-2.0
"""Payloads that lose something: the kernel is honest, the guest's code is not what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.mutations.arm64_lies import before_entry
from tests.mutations.lies import Shared
from tests.mutations.registry import mutation
from vmm._kvm import ffi
from vmm.arm64.vector import name
from vmm.kvm.ioctl import Interposer

__all__ = ["NAMED"]

_FREE = 0x8000  # below the payload: nobody uses it
_MOV_V7 = 0x4EA71CE7  # MOV V7.16B, V7.16B: an AdvSIMD write, which zeroes the rest of Z7
_SETFFR = 0x252C9000
_LDRB, _STRB, _EOR_BIT_5 = 0x39400085, 0x39000085, 0x521B00A5  # LDRB W5, [X4]; STRB W5, [X4]; EOR W5, W5, #0x20


def _branch(source: int, target: int, link: bool = False) -> int:
    return 0x14000000 | link << 31 | (target - source) >> 2 & 0x3FFFFFF


def _load_address(address: int) -> list[int]:
    """MOVZ X4 and MOVK X4."""
    return [0xD2800004 | (address & 0xFFFF) << 5, 0xF2A00004 | (address >> 16) << 5]


def broken_payload(before: Callable[[Shared], list[int]], behind: Callable[[Shared], list[int]]) -> Interposer:
    """The payload ``sve`` as if it had been built with other instructions around its loading of the registers."""

    def patch(guest: Shared, fd: int) -> None:
        entry = guest.payload.symbol("load")
        offset = (int(_words(guest, entry)[0]) & 0x3FFFFFF ^ 0x2000000) - 0x2000000
        loader = entry + 4 * offset  # the target of the BL that is there
        words = before(guest)
        words.append(_branch(_FREE + 4 * len(words), loader, link=True))
        words += behind(guest)
        words.append(_branch(_FREE + 4 * len(words), entry + 4))
        _write(guest, _FREE, words)
        _write(guest, entry, [_branch(entry, _FREE)])

    return before_entry("load", patch)


def _words(guest: Shared, address: int) -> Any:
    """The guest's code at an address, an instruction each."""
    return ffi.cast("uint32_t *", guest.at(address))


def _write(guest: Shared, address: int, words: list[int]) -> None:
    for index, word in enumerate(words):
        _words(guest, address)[index] = word


def _nothing(guest: Shared) -> list[int]:
    return []


@mutation("guest.save-guest-state")
def the_payload_loses_the_top_of_z7() -> Interposer:
    return broken_payload(_nothing, lambda guest: [_MOV_V7])


@mutation("guest.save-guest-state")
def the_payload_loses_ffr() -> Interposer:
    return broken_payload(_nothing, lambda guest: [_SETFFR])


@mutation("guest.save-guest-state")
def the_payload_loses_bit_5_of_p3() -> Interposer:
    def toggle(guest: Shared) -> list[int]:
        place = guest.payload.symbol("image") + 8192 + 3 * 32
        return [*_load_address(place), _LDRB, _EOR_BIT_5, _STRB]

    return broken_payload(toggle, toggle)


# What the evidence of these three has to name.
NAMED = {
    "the_payload_loses_the_top_of_z7": name(7 * 256 + 16),
    "the_payload_loses_ffr": "FFR byte",
    "the_payload_loses_bit_5_of_p3": name(8192 + 3 * 32),
}
