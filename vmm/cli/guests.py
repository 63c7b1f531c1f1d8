# SPDX-License-Identifier: Apache-2.0
"""The guest that a command line names: PAYLOAD [ENTRY] [PARAMETERS...], and what it does until it is done."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from vmm.cli.options import Places
from vmm.guest import writer
from vmm.guest.architecture import chains, guest_type
from vmm.guest.base import MEMORY_SIZE, BaseGuest
from vmm.guest.layout import Regions
from vmm.guest.payload import PARAMETERS, load
from vmm.kvm.exits import Deadline, Hlt, IoIn, MmioRead, Shutdown
from vmm.kvm.memory import MemoryUnavailable, available_memory
from vmm.kvm.system import Kvm

__all__ = ["Shape", "finish", "make", "number", "shape"]

_CHAIN = "chain"
_STEPS, _SEED = 1000, 1
_SAMPLE = 0.1  # seconds
_LOAD = (2560, 25, 20)  # pages per second, percent, seconds
_WRITTEN = 64 << 20
_FILLING = 600.0  # seconds
# What is asked for by default is enough for some vCPUs, and for each other one with this much more.
_FEW_VCPUS, _FOR_A_VCPU = 8, 2 << 20


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
    memory: Places | None = None,
    vcpus: int = 1,
    lasting: float | None = None,
) -> BaseGuest:
    """Return a guest that is about to run ``entry`` (default: the ELF's entry point).

    The payload ``chain`` takes a level for an entry (default: the best there is) and steps and seed for
    parameters; it sets up what its level needs, guest permission included. Without steps it takes a thousand, or as
    many as this host makes in ``lasting`` seconds. ``writer`` takes pages per second, percent of memory and seconds.
    """
    values = [number(text) for text in parameters]
    if len(values) > PARAMETERS:
        raise click.UsageError(f"a payload takes at most {PARAMETERS} parameters, not {len(values)}")
    wanted = shape(payload, memory, vcpus)
    if payload == _CHAIN:
        return _chain(kvm, entry, values, lasting, wanted)
    loaded = load(payload)
    start: str | int = entry if entry is not None else loaded.entry
    if isinstance(start, str):
        loaded.symbol(start)
    work = _load(values, wanted) if payload == writer.PAYLOAD and entry in (None, writer.ENTRY) else None
    guest = guest_type()(kvm, loaded, regions=wanted.regions, vcpus=vcpus)
    try:
        if work:
            writer.prepare(guest, work)
            if lasting is not None:
                guest.resume(_FILLING, ticks=1)  # what is migrated is a guest that has its memory
        else:
            guest.prepare(start, *values, privilege=privilege)
    except BaseException:
        guest.close()
        raise
    return guest


@dataclass(frozen=True, slots=True)
class Shape:
    """The memory regions and the number of vCPUs of a guest that is made here."""

    regions: Regions
    vcpus: int


def shape(payload: str, memory: Places | None, vcpus: int) -> Shape:
    """Return what was asked for; without a word about memory, what the payload needs."""
    if memory is None:
        least = _WRITTEN if payload == writer.PAYLOAD else MEMORY_SIZE
        memory = ((least + max(0, vcpus - _FEW_VCPUS) * _FOR_A_VCPU, None),)
    (size, _), *others = memory
    if not others:
        return Shape(guest_type().regions(size), vcpus)
    return Shape(((0, size), *((address or 0, other) for other, address in others)), vcpus)


def _load(values: list[int], wanted: Shape) -> writer.Load:
    """Return what a writer does; MemoryUnavailable if the host has not what it fills."""
    found = writer.Load(*[*values, *_LOAD[len(values) :]][: len(_LOAD)])
    needed = sum(size for _, size in wanted.regions)
    available = available_memory()
    if available is not None and needed > available:
        raise MemoryUnavailable(
            f"the writer fills {needed >> 20} MiB of memory, and this host has {available >> 20} MiB to give: "
            "ask for less"
        )
    return found


def _chain(kvm: Kvm, level: str | None, values: list[int], lasting: float | None, wanted: Shape) -> BaseGuest:
    chain = chains()
    offered = chain.available(kvm)
    if level is not None and level not in offered:
        raise click.UsageError(f"this host's levels of the chain are {', '.join(offered)}, and not {level}")
    chosen = level or chain.best(kvm)
    if not values and lasting is not None:
        values = [_steps_in(kvm, chosen, lasting, wanted)]
    steps, seed = [*values, *(_STEPS, _SEED)[len(values) :]][:2]
    return chain.make_guest(kvm, chosen, steps, seed, regions=wanted.regions, vcpus=wanted.vcpus)


def _steps_in(kvm: Kvm, level: str, seconds: float, wanted: Shape) -> int:
    """Return how many steps of the chain this host makes in so many seconds, going by a fraction of one."""
    with chains().make_guest(kvm, level, 1 << 62, _SEED, regions=wanted.regions, vcpus=wanted.vcpus) as guest:
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
            guest.left.vcpu.reply(0)
        elif isinstance(exit, Hlt):
            return 0
        elif isinstance(exit, Deadline | Shutdown) or not hasattr(exit, "size"):
            return 1
    print(f"stopped after {limit} exits")
    return 1
