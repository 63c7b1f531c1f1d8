# SPDX-License-Identifier: Apache-2.0
"""The guest that a command line names: PAYLOAD [ENTRY] [PARAMETERS...], and what it does until it is done."""

from __future__ import annotations

import time

import click

from vmm.arch import module
from vmm.guest.base import BaseGuest
from vmm.guest.payload import PARAMETERS, load
from vmm.kvm.exits import Deadline, Hlt, IoIn, MmioRead, Shutdown
from vmm.kvm.system import Kvm

__all__ = ["finish", "make", "number"]

_CHAIN = "chain"
_STEPS, _SEED = 1000, 1
_SAMPLE = 0.1  # seconds


def number(text: str) -> int:
    """Return a number of 64 bits in any of Python's notations, a negative one as its two's complement.

    UsageError for anything else: a parameter is never cut.
    """
    try:
        value = int(text, 0)
    except ValueError:
        raise click.UsageError(f"{text!r} is not a number: write it as 42 or 0x2a") from None
    if not -(1 << 63) <= value < 1 << 64:
        raise click.UsageError(f"{text} does not fit into the 64 bits of a parameter")
    return value & (1 << 64) - 1


def make(
    kvm: Kvm,
    payload: str,
    entry: str | None,
    parameters: tuple[str, ...],
    privilege: int = 0,
    *,
    lasting: float | None = None,
) -> BaseGuest:
    """Return a guest that is about to run ``entry`` (default: the ELF's entry point).

    The payload ``chain`` takes a level for an entry (default: the best there is) and steps and seed for
    parameters; it sets up what its level needs, guest permission included. Without steps it takes a thousand, or as
    many as this host makes in ``lasting`` seconds.
    """
    values = [number(text) for text in parameters]
    if len(values) > PARAMETERS:
        raise click.UsageError(f"a payload takes at most {PARAMETERS} parameters, not {len(values)}")
    if payload == _CHAIN:
        return _chain(kvm, entry, values, lasting)
    loaded = load(payload)
    start: str | int = entry if entry is not None else loaded.entry
    if isinstance(start, str):
        loaded.symbol(start)
    guest: BaseGuest = module("guest").Guest(kvm, loaded)
    try:
        guest.prepare(start, *values, privilege=privilege)
    except BaseException:
        guest.close()
        raise
    return guest


def _chain(kvm: Kvm, level: str | None, values: list[int], lasting: float | None) -> BaseGuest:
    chain = module("chain")
    offered = chain.available(kvm)
    if level is not None and level not in offered:
        raise click.UsageError(f"this host's levels of the chain are {', '.join(offered)}, and not {level}")
    chosen = level or chain.best(kvm)
    if not values and lasting is not None:
        values = [_steps_in(kvm, chosen, lasting)]
    steps, seed = [*values, *(_STEPS, _SEED)[len(values) :]][:2]
    guest: BaseGuest = chain.make_guest(kvm, chosen, steps, seed)
    return guest


def _steps_in(kvm: Kvm, level: str, seconds: float) -> int:
    """Return how many steps of the chain this host makes in so many seconds, going by a fraction of one."""
    with module("chain").make_guest(kvm, level, 1 << 62, _SEED) as guest:
        began = time.monotonic()
        guest.resume(_SAMPLE)
        return max(_STEPS, int(guest.vcpu.entries * seconds / (time.monotonic() - began)))


def finish(guest: BaseGuest, timeout: float, limit: int) -> int:
    """Run to the payload's event, show every exit, and return 0 if that was what the payload promises."""
    for _ in range(limit):
        exit = guest.resume(timeout)
        event = guest.event(exit)
        if event is None:
            print(exit)
        else:
            print(guest.describe(event))
            return 0 if event == guest.DONE else 1
        if isinstance(exit, IoIn | MmioRead):
            guest.vcpu.reply(0)
        elif isinstance(exit, Hlt):
            return 0
        elif isinstance(exit, Deadline | Shutdown) or not hasattr(exit, "size"):
            return 1
    print(f"stopped after {limit} exits")
    return 1
