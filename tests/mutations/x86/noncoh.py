# SPDX-License-Identifier: Apache-2.0
"""Lies about WBINVD."""

from __future__ import annotations

from tests.mutations.lies import Proceed, Shared, called
from tests.mutations.registry import mutation
from tests.mutations.x86.lies import MEMTYPE, SLOW
from vmm.kvm.ioctl import Call, Interposer


@mutation("noncoh.wbinvd")
def wbinvd_empties_the_caches() -> Interposer:
    shared = Shared(MEMTYPE)
    last = ""

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal last
        shared.watch(call)
        entry = next((n for n in ("once", "wbinvd") if shared.entry == shared.payload.symbol(n)), "")
        result = proceed()
        if called(call) == "run" and result >= 0:
            if entry == "once" and last == "wbinvd":
                shared.set("values", shared.get("values") * SLOW)
            # The loads that warm the lines come before it, the timed pass after it.
            last = entry
        return result

    return interposer
