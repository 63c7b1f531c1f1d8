# SPDX-License-Identifier: Apache-2.0
"""Passes of the dirty payload, compared with what Python says they write and with the dirty log.

Runs by itself too, where only an emulated machine has what an entry needs: ``python3 -c SOURCE`` prints one JSON
line an entry.
"""

from __future__ import annotations

import json
from typing import Any

from vmm.arch import ARCHITECTURE, module
from vmm.kvm.exits import Budget
from vmm.kvm.memory import PAGE_SIZE
from vmm.kvm.system import Kvm

chain = module("chain")

_START, _PAGES, _STRIDE, _PASSES, _EVERY, _TIMEOUT = 2 << 20, 24, 3, 3, 5, 60


PAYLOAD = "dirty"
# The payload's pages, on every host.
PAGE = 4096
_MULTIPLIER = 0x9E3779B97F4A7C15


def word(gpa: int, number: int) -> int:
    """Return the 64-bit word that pass ``number`` (1 is the first) writes all over the page at ``gpa``.

    No two of them are equal below 2 ** 40 bytes of memory and 2 ** 24 passes.
    """
    return (number << 40 ^ gpa) * _MULTIPLIER & (1 << 64) - 1


def page(gpa: int, number: int, size: int = PAGE) -> bytes:
    """Return the first ``size`` bytes of the page at ``gpa`` after pass ``number``; zeros for pass 0, before any."""
    return (word(gpa, number) if number else 0).to_bytes(8, "little") * (size // 8)


def entries(kvm: Kvm) -> dict[str, tuple[str, int, int]]:
    """Return the entries that this KVM's guests can run: the level each needs, its CPL and how much of a page."""
    levels = chain.available(kvm)
    if ARCHITECTURE != "x86":
        vectors = {"dirty_sve": (levels[-1], 0, 2088)} if len(levels) > 1 else {}
        return {"dirty": ("fpsimd", 0, 4096), **vectors}
    known = {"dirty": ("sse", 3, 4096), "dirty_avx512": ("avx512", 3, 2048), "dirty_tile": ("amx", 3, 3072)}
    return {entry: needed for entry, needed in known.items() if needed[0] in levels}


def _wrong(guest: Any, written: int, size: int) -> list[str]:
    """Say what is not as it has to be after so many pages written: the mailbox, pages, and what lies between them."""
    found = []
    number, into = (written - 1) // _PAGES + 1, (written - 1) % _PAGES + 1
    if [guest.mailbox.read("values", index) for index in range(2)] != [number, into]:
        found.append(f"the mailbox after {written} pages says {guest.mailbox.values[:2]}")
    for index in range(_PAGES * _STRIDE):
        passes = (number if index // _STRIDE < into else number - 1) if index % _STRIDE == 0 else 0
        gpa = _START + index * PAGE
        if guest.memory.read(gpa, PAGE) != page(gpa, passes, size).ljust(PAGE, b"\0"):
            found.append(f"page {index} after {written} pages is not what pass {passes} leaves")
    return found


def _wrongly_logged(guest: Any) -> list[str]:
    logged = set(guest.memory.dirty_pages())
    window = {(_START + index * _STRIDE * PAGE) // PAGE_SIZE for index in range(_PAGES)}
    # Its stack, its mailbox.
    own = set(range(guest.payload.end // PAGE_SIZE + 1))
    found = [f"page {page:#x} was written and is not in the dirty log" for page in sorted(window - logged)]
    return found + [f"page {page:#x} is in the dirty log" for page in sorted(logged - window - own)]


def check(kvm: Kvm, entry: str) -> dict[str, Any]:
    """Run all passes of an entry, tick by tick, and return what was wrong, in words."""
    level, privilege, size = entries(kvm)[entry]
    result: dict[str, Any] = {"entry": entry, "ticks": 0, "wrong": []}
    with chain.configured(kvm, level, PAYLOAD) as guest:
        guest.memory.register(log_dirty=True)
        guest.prepare(entry, _START, _PAGES, _STRIDE, _PASSES, _EVERY, size, privilege=privilege)
        guest.memory.dirty_pages()
        while isinstance(exit := guest.resume(_TIMEOUT, ticks=1), Budget):
            result["ticks"] += 1
            result["wrong"] += _wrong(guest, _EVERY * result["ticks"], size)
        guest.finish(exit)
        result["wrong"] += _wrong(guest, _PASSES * _PAGES, size) + _wrongly_logged(guest)
    return result


def main() -> None:
    """Check all entries."""
    with Kvm() as kvm:
        chain.permit(kvm)
        for entry in entries(kvm):
            print(json.dumps(check(kvm, entry)), flush=True)


if __name__ == "__main__":
    main()
