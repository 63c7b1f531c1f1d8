# SPDX-License-Identifier: Apache-2.0
"""Where a guest's memory lies, and where its vCPUs beyond the first have what they do not share.

All vCPUs run the same code in the same memory, but what a payload writes (mailbox, stacks, variables) each of them
has for itself, at the same virtual addresses: the translation tables of each vCPU map its own copy there. So a
payload says ``mailbox_values`` on every vCPU, no register has to hold a vCPU's index, and the first vCPU's copy is
where the payload was linked, as in a guest with one vCPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm.guest.payload import Payload, PayloadError

__all__ = ["OWN_START", "Own", "Regions", "end_of_own", "end_of_tables", "own", "split"]

# (guest physical address, size in bytes) of each region, the payload in the first, which is at 0.
Regions = tuple[tuple[int, int], ...]

_PAGE = 4096
# Where payloads begin, and what the first tables map.
_PAYLOADS, _FIRST_GIBS = 1 << 20, 4 << 30
# Beyond the first 2 MiB, whose tables differ from vCPU to vCPU, and the shadow stacks of the first vCPU (x86).
OWN_START = 0x21_0000
_FIRST_TABLE_END = 2 << 20


@dataclass(frozen=True, slots=True)
class Own:
    """What a vCPU beyond the first has for itself: translation tables and its copy of the payload's data."""

    tables: int
    data: int


def _stride(payload: Payload, pages: int) -> int:
    if not payload.smp or payload.data is None:
        raise PayloadError(f"the payload {payload.name} is for one vCPU: leave --vcpus at 1, or take chain or writer")
    if payload.end > _FIRST_TABLE_END:
        raise PayloadError(f"{payload.name} ends at {payload.end:#x}: with several vCPUs it has to end below 2 MiB")
    return (pages + -(-(payload.end - payload.data) // _PAGE)) * _PAGE


def own(payload: Payload, index: int, pages: int) -> Own:
    """Return where vCPU ``index``, 1 or more, has its own things; ``pages`` are those of its tables.

    PayloadError for a payload that is for one vCPU only.
    """
    tables = OWN_START + (index - 1) * _stride(payload, pages)
    return Own(tables, tables + pages * _PAGE)


def end_of_own(payload: Payload, vcpus: int, pages: int) -> int:
    """Return where what ``vcpus`` vCPUs have for themselves ends: the first region has to hold it."""
    return OWN_START + (vcpus - 1) * _stride(payload, pages) if vcpus > 1 else payload.end


def end_of_tables(fixed: int, end: int) -> int:
    """Return where the tables for memory up to ``end`` end: from ``fixed`` on there is one for each GiB beyond 4 GiB.

    PayloadError if there is no room for so many below the payload.
    """
    most = _FIRST_GIBS + ((_PAYLOADS - fixed) // _PAGE << 30)
    if end > most:
        raise PayloadError(f"guest memory that ends at {end:#x}: it may end at {most:#x} at most")
    return fixed + _PAGE * max(0, -(-(end - _FIRST_GIBS) >> 30))


def split(size: int, hole: tuple[int, int]) -> Regions:
    """Return the regions of a guest with so much memory, which leaves out the addresses from ``hole``'s first to
    before its second, as those of real machines do: devices are there."""
    start, end = hole
    return ((0, size),) if size <= start else ((0, start), (end, size - start))
