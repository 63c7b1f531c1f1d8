# SPDX-License-Identifier: Apache-2.0
"""The register image of the xstate payload: what the guest loads, and how a difference is named.

Its shape is that of `expected` and `observed` in guest_payloads/x86/xstate.S.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from vmm.conformance.expect import equal, true
from vmm.conformance.x86.noise import noise
from vmm.x86.guest import Guest
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea

__all__ = ["Image"]

_MXCSR_AT, _FCW_AT, _MASKS_AT, _VECTORS_AT, _SIZE = 128, 132, 192, 256, 2304
_MXCSR, _FCW = 0x1FA0, 0x27F  # unlike the initial 0x1F80 and 0x37F
_LEVELS = {
    "sse": (0, 1),
    "avx": (0, 1, 2),
    "avx512": (0, 1, 2, 5, 6, 7),
}


@dataclass(frozen=True, slots=True)
class Image:
    """ST0-7, MXCSR, k0-7 and ZMM0-31 as one block of bytes."""

    data: bytes

    @classmethod
    def random(cls, source: random.Random) -> Image:
        """Return an image whose register bytes differ from the initial state and from each other's neighbours."""
        x87 = b"".join(source.randbytes(10) + bytes(6) for _ in range(8))
        control = _MXCSR.to_bytes(4, "little") + _FCW.to_bytes(2, "little") + bytes(58)
        return cls(x87 + control + noise(source, _SIZE - _MASKS_AT))

    @property
    def mxcsr(self) -> int:
        """MXCSR."""
        return int.from_bytes(self.data[_MXCSR_AT : _MXCSR_AT + 4], "little")

    @property
    def fcw(self) -> int:
        """The x87 control word."""
        return int.from_bytes(self.data[_FCW_AT : _FCW_AT + 2], "little")

    def vector(self, number: int) -> bytes:
        """Return the 64 bytes of ZMM ``number``."""
        at = _VECTORS_AT + 64 * number
        return self.data[at : at + 64]

    def with_legacy(self, area: XsaveArea) -> Image:
        """Return the image with ST0-7, FCW and XMM0-15 of an XSAVE area; the rest stays."""
        data = bytearray(self.data)
        for number in range(8):
            data[16 * number : 16 * number + 10] = area.data[32 + 16 * number : 42 + 16 * number]
        data[_FCW_AT : _FCW_AT + 2] = area.fcw.to_bytes(2, "little")
        for number in range(16):
            at = _VECTORS_AT + 64 * number
            data[at : at + 16] = area.data[160 + 16 * number : 176 + 16 * number]
        return Image(bytes(data))

    def features(self, level: str) -> tuple[int, ...]:
        """Return the components that a level of the payload fills."""
        return _LEVELS[level]

    def component(self, number: int) -> bytes:
        """Return the registers of a component in the order of the XSAVE area (x87: ST0-7, SSE: XMM0-15)."""
        slices = {
            XFeature.SSE: (range(16), slice(0, 16)),
            XFeature.YMM: (range(16), slice(16, 32)),
            XFeature.ZMM_HI256: (range(16), slice(32, 64)),
            XFeature.HI16_ZMM: (range(16, 32), slice(0, 64)),
        }
        if number == XFeature.FP:
            return self.data[:_MXCSR_AT]
        if number == XFeature.OPMASK:
            return self.data[_MASKS_AT:_VECTORS_AT]
        registers, part = slices[XFeature(number)]
        return b"".join(self.vector(register)[part] for register in registers)

    def check_area(self, what: str, area: XsaveArea, level: str) -> None:
        """Raise a Violation if an XSAVE area does not hold what a level of the payload has loaded."""
        for number in self.features(level):
            component = XFeature(number).name
            equal(f"{component} in XSTATE_BV {what}", area.xstate_bv >> number & 1, 1)
            wanted = self.component(number)
            equal(f"bytes of {component} {what}", area.component(number)[-len(wanted) :], wanted)
        equal(f"MXCSR {what}", area.mxcsr, self.mxcsr)
        equal(f"FCW {what}", area.fcw, self.fcw)
        equal(f"FTW (all registers in use) {what}", area.data[4], 0xFF)

    def where(self, offset: int) -> str:
        """Name the byte at ``offset`` of the image."""
        if offset < _MXCSR_AT:
            return f"ST{offset // 16} byte {offset % 16}"
        if offset < _FCW_AT:
            return f"MXCSR byte {offset - _MXCSR_AT}"
        if offset < _MASKS_AT:
            return f"FCW byte {offset - _FCW_AT}"
        if offset < _VECTORS_AT:
            return f"k{(offset - _MASKS_AT) // 8} byte {offset % 8}"
        return f"ZMM{(offset - _VECTORS_AT) // 64} byte {offset % 64}"

    def check(self, guest: Guest) -> None:
        """Raise a Violation if the guest's last comparison found a difference."""
        count = guest.mailbox.read("differences")
        if not count:
            equal("bytes that the guest found different", count, 0)
            return
        offset = guest.mailbox.read("difference")
        seen = guest.memory.read(guest.payload.symbol("observed") + offset, 1)[0]
        text = f"{seen:#04x} ({count} bytes differ)"
        true(f"{self.where(offset)} in the guest", False, text, f"{self.data[offset]:#04x}")
