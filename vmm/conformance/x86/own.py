# SPDX-License-Identifier: Apache-2.0
"""The VMM's own registers beside a guest, or beside others on its CPU: what is in them, and how a loss is found."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cache

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, no_difference
from vmm.conformance.neighbour import Neighbour, Step
from vmm.conformance.x86.common import (
    PLAIN,
    judged_call,
    pattern,
    stay_on_one_cpu,
    vector_guest,
    vector_level,
)
from vmm.conformance.x86.image import Image
from vmm.conformance.x86.legacy import Legacy
from vmm.kvm.bits import bits
from vmm.x86 import own
from vmm.x86.guest import Guest
from vmm.x86.own import own_features
from vmm.x86.registers import get_regs, set_regs
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea

__all__ = ["SPIN", "beside", "competing", "filled_guest", "keeps", "own_registers", "prepare_spin", "unchanged"]

# Key 0 stays accessible: all memory of this process has it. Linux gives threads 0x55555554.
_PKRU = 0xA5A5A5A0
# FOP, FIP and FDP in the x87 component.
_POINTERS = slice(6, 24)
_YIELDS = 2
_TURNS = 2
_RFLAGS_IF = 1 << 9
# Seconds of a guest without end until a signal ends its run: several turns of a scheduler.
SPIN = 0.01
_LONGEST = 0.5


def _with_pointers(area: XsaveArea) -> XsaveArea:
    """Return the area with an FOP, FIP and FDP that are not 0."""
    changed = area.copy()
    changed.data[_POINTERS] = Legacy.random(0, pointers=True).data[_POINTERS]
    return changed


@cache
def _keeps_pointers() -> bool:
    """Whether this CPU gives FOP, FIP and FDP back with no exception pending: AMD's without XSaveErPtr do not."""
    given = _with_pointers(pattern(1, 0))
    return own.yield_with_registers(given, 1).data[_POINTERS] == given.data[_POINTERS]


def own_registers(seed: int) -> XsaveArea:
    """Return recognisable values for all that this thread can hold still, PKRU where the host has it."""
    features = own_features()
    area = pattern(features & PLAIN, seed)
    if _keeps_pointers():
        area = _with_pointers(area)
    if features >> XFeature.PKRU & 1:
        size = area.layout[XFeature.PKRU].size
        area.set_component(XFeature.PKRU, _PKRU.to_bytes(4, "little") + bytes(size - 4))
    return area


def unchanged(what: str, given: XsaveArea, observed: XsaveArea) -> None:
    """The registers have to be what they were given, each of them."""
    compared = sum(1 for _ in bits(own_features()))
    # XSAVE stores it whatever XSTATE_BV says.
    equal(f"MXCSR of {what}", observed.mxcsr, given.mxcsr)
    no_difference(what, given.same_state(observed), compared)


def filled_guest(context: Context, seed: int) -> tuple[Guest, Image]:
    """A guest that has loaded an image into all of its registers."""
    if context.host.facts.cpuid.xcr0:
        guest = vector_guest(context)
    else:
        guest = context.own(Guest(context.kvm, "xstate", cpuid=context.host.facts.cpuid))
    image = Image.random(random.Random(seed))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    guest.call(f"fill_{vector_level(context)}", privilege=3, timeout=context.timeout)
    return guest, image


def keeps(context: Context, guest: Guest, image: Image) -> None:
    """A guest that has been filled has to find its registers as it left them."""
    judged_call(context, guest, f"verify_{vector_level(context)}", privilege=3)
    image.check(guest)


def prepare_spin(guest: Guest) -> None:
    """Point a guest at a loop without end at CPL3, which keeps its registers; interrupts are on, as for any user."""
    guest.prepare("spin", privilege=3)
    regs = get_regs(guest.vcpu)
    regs.rflags |= _RFLAGS_IF
    set_regs(guest.vcpu, regs)


def competing() -> Step:
    """Return a step of a neighbour that holds values in all of its registers while others have its CPU."""
    given = own_registers(77)

    def step() -> str:
        lost = given.same_state(own.yield_with_registers(given, _YIELDS))
        return "; ".join(lost[:4])

    return step


def beside(
    context: Context, begin: Callable[[], Step], seed: int, run: Callable[[Guest, Image, float], None]
) -> None:
    """Have a guest without end share its CPU with a neighbour until that has had some turns, each within one ``run``.

    ``run`` is given the guest, ready to spin, what it holds, and for how many seconds to run it; then the guest looks
    at its own registers. On a busy host it takes longer until the neighbour has its turn.
    """
    stay_on_one_cpu()
    with Neighbour(min(os.sched_getaffinity(0)), begin) as neighbour:
        neighbour.wait(context.timeout)
        guest, image = filled_guest(context, seed)
        turns, seconds = 0, SPIN
        while turns < _TURNS and not neighbour.failure:
            done = neighbour.operations
            prepare_spin(guest)
            run(guest, image, seconds)
            if neighbour.has_worked_since(done):
                turns += 1
            else:
                seconds = min(2 * seconds, _LONGEST)
            keeps(context, guest, image)
        equal("what another process on this CPU lost of its registers", neighbour.failure, "")
