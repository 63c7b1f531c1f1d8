# SPDX-License-Identifier: Apache-2.0
"""``vmm run``: one payload, its exits, its registers."""

from __future__ import annotations

from typing import Any

import click

from vmm.arch import module
from vmm.cli.seconds import Seconds
from vmm.exits import Deadline, Hlt, IoIn, MmioRead, Shutdown
from vmm.payload import PARAMETERS, load, names
from vmm.system import Kvm

__all__ = ["command"]


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise click.UsageError(f"{text!r} is no number: write it as 42 or 0x2a") from None


def _exits(guest: Any, timeout: float, limit: int) -> int:
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


@click.command("run")
@click.argument("payload")
@click.argument("entry", required=False)
@click.argument("parameters", nargs=-1)
@click.option("--privilege", type=click.IntRange(0, 3), default=0, show_default=True, help="CPL 0 or 3 (x86).")
@click.option("--timeout", type=Seconds(0.001), default=5.0, show_default=True, help="Seconds an exit.")
@click.option("--exits", type=click.IntRange(1), default=1000, show_default=True, help="Stop after so many.")
def command(
    payload: str, entry: str | None, parameters: tuple[str, ...], privilege: int, timeout: float, exits: int
) -> int:
    """Run PAYLOAD from ENTRY (default: its ELF entry point) and show its exits and final registers.

    PAYLOAD is the name of one that came with this package, or the path of an ELF file. PARAMETERS are numbers
    for the mailbox. Reads by the guest are answered with 0. Exits with 0 if the payload ended as it promises or
    halted, and 1 if not.
    """
    loaded = load(payload)
    start: str | int = entry if entry is not None else loaded.entry
    if isinstance(start, str):
        loaded.symbol(start)
    values = [_number(text) for text in parameters]
    if len(values) > PARAMETERS:
        raise click.UsageError(f"a payload takes at most {PARAMETERS} parameters, not {len(values)}")
    with Kvm() as kvm, module("guest").Guest(kvm, loaded) as guest:
        guest.prepare(start, *values, privilege=privilege)
        status = _exits(guest, timeout, exits)
        for line in guest.registers():
            print(line)
    return status


command.help = f"{command.help}\n\nPayloads here: {', '.join(names())}."
