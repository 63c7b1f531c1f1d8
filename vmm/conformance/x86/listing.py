# SPDX-License-Identifier: Apache-2.0
"""Calls that fill a list of the caller's: how much room they need, what they say of it, and what they write."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmm._kvm import ffi
from vmm.conformance.expect import equal, refused, succeeds, true
from vmm.kvm.handle import Handle

__all__ = ["Listing", "judge"]

_POISON = 0xA5
# More room than there are items, by which the end of what is written shows.
_SPARE = 5


@dataclass(frozen=True, slots=True)
class Listing:
    """A call and its structure: ``count`` is the field for the number of ``items``.

    ``tells``: a refusal says how many there are. ``adjusts``: with more room than needed the number is corrected.
    ``clean``: KVM wants the room that it is given to be zeros. ``over``: it takes room for so many more only.
    """

    name: str
    request: int
    struct: str
    count: str
    items: str
    tells: bool
    adjusts: bool = True
    clean: bool = False
    over: int = 0

    def room(self, items: int) -> Any:
        """Return a buffer with poisoned room for so many items and some more, which KVM is not told of."""
        buffer = ffi.new(f"struct {self.struct} *", {self.items: items + _SPARE})
        data = b"".join(self._given(items, self._size(buffer)))
        ffi.memmove(getattr(buffer, self.items), data, len(data))
        setattr(buffer, self.count, items)
        return buffer

    def _size(self, buffer: Any) -> int:
        return int(ffi.sizeof(ffi.typeof(getattr(buffer, self.items)).item))

    def _given(self, items: int, size: int) -> list[bytes]:
        poison = bytes([_POISON]) * size
        return [bytes(size) if self.clean else poison] * items + [poison] * _SPARE

    def written(self, buffer: Any, items: int) -> list[bytes]:
        """Return so many of the items as bytes."""
        size = self._size(buffer)
        data = bytes(ffi.buffer(getattr(buffer, self.items), size * items))
        return [data[at : at + size] for at in range(0, len(data), size)]

    def untouched(self, buffer: Any, first: int, items: int) -> bool:
        """Tell whether the room from an item on is as it was."""
        return self.written(buffer, items + _SPARE)[first:] == self._given(items, self._size(buffer))[first:]


def _needed(listing: Listing, handle: Handle, most: int) -> int:
    """Return how many items there are, as the call says that has room for all."""
    buffer = listing.room(most)
    succeeds(f"{listing.name} with room for {most}", handle.ioctl, listing.request, buffer)
    return int(getattr(buffer, listing.count))


def judge(listing: Listing, handle: Handle, count: int | None = None, *, most: int = 256) -> Sequence[bytes]:
    """Ask with room for none, for one too few, for all and no more, and for more; return the items.

    ``count`` is how many there are, where that is known.
    """
    count = _needed(listing, handle, most) if count is None else count
    for room in sorted({0, count - 1} - {-1}):
        if room < count:
            _too_small(listing, handle, room, count)
    found: list[bytes] = []
    for room in (count + listing.over, count + listing.over + 3):
        buffer = listing.room(room)
        succeeds(f"{listing.name} with room for {room}, of {count}", handle.ioctl, listing.request, buffer)
        if room == count or listing.adjusts:
            equal(f"{listing.count} with room for {room}", int(getattr(buffer, listing.count)), count)
        items = listing.written(buffer, count)
        equal(f"the items of {listing.name} with room for {room}", items, found or items)
        true(f"the room beyond {count} items", listing.untouched(buffer, count, room), "written", "untouched")
        found = items
    return found


def _too_small(listing: Listing, handle: Handle, items: int, count: int) -> None:
    buffer = listing.room(items)
    refused(f"{listing.name} with room for {items} of {count}", errno.E2BIG, handle.ioctl, listing.request, buffer)
    told = count if listing.tells else items
    equal(f"{listing.count} after {listing.name} with room for {items}", int(getattr(buffer, listing.count)), told)
    true(f"the room of a refused {listing.name}", listing.untouched(buffer, 0, items), "written", "untouched")
