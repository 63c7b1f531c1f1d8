# SPDX-License-Identifier: Apache-2.0
"""Guests without a non-coherent device: what WBINVD does to the caches."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import Skipped, true
from vmm.conformance.registry import clause
from vmm.conformance.x86.caching import CachingGuest, Ratio, expect_control

# What WBINVD did is between these two shares of what a flush did, on a logarithmic scale.
_NOT_EXECUTED, _EXECUTED = 0.35, 0.65
_EXIT_KEEPS = 4.0


@clause("noncoh.wbinvd", arch="x86", timeout=30.0)
def wbinvd_is_nothing(context: Context) -> None:
    """Without a non-coherent device a guest's WBINVD writes nothing back: what it had cached stays cached.

    Loads after WBINVD are compared with loads after an exit that has no effect and with loads after a flush.

    Source: arch/x86/kvm/x86.c, kvm_emulate_wbinvd_noskip, need_emulate_wbinvd.
    """
    guest = CachingGuest(context)
    steps = ("cpuid", "wbinvd", "flush", "cpuid")
    rounds = [tuple(guest.after(step, privilege=3 * (step == "flush")) for step in steps) for _ in range(5)]
    flushed = Ratio("loads after a flush to loads after an exit", tuple(f / e for e, _, f, _ in rounds))
    if not flushed.above(_EXIT_KEEPS):
        raise Skipped(f"an exit empties the caches too: {flushed}, more than {_EXIT_KEEPS:.0f} are needed")
    again = tuple(a / e for e, _, _, a in rounds)
    done = Ratio("loads after WBINVD to loads after an exit", tuple(w / e for e, w, _, _ in rounds), again)
    limit = flushed.median**_NOT_EXECUTED
    executed = done.above(flushed.median**_EXECUTED)
    if executed:
        expect_control(done)
    true(done.what, not executed, str(done), f"less than {limit:.1f}, where a flush makes {flushed.median:.1f}")
    if not done.below(limit):
        raise Skipped(f"the machine is too noisy to tell: {done}; expected less than {limit:.1f} times")
    context.note(f"sure: {done}; {flushed}")
