# SPDX-License-Identifier: Apache-2.0
"""``vmm run``: one payload, its exits, its registers."""

from __future__ import annotations

import click

from vmm.cli import guests
from vmm.cli.options import Count, Places, Seconds, guest_options
from vmm.guest.payload import names
from vmm.kvm.system import Kvm

__all__ = ["command"]


@click.command("run")
@click.argument("payload")
@click.argument("entry", required=False)
@click.argument("parameters", nargs=-1)
@click.option("--privilege", type=click.IntRange(0, 3), default=0, show_default=True, help="CPL 0 or 3 (x86).")
@click.option("--timeout", type=Seconds(0.001), default=5.0, show_default=True, help="Seconds per exit.")
@click.option("--exits", type=Count(), default=1000, show_default=True, help="Stop after this many exits.")
@guest_options
def command(
    payload: str, entry: str | None, parameters: tuple[str, ...], privilege: int, timeout: float, exits: int,
    memory: Places | None, vcpus: int,
) -> int:  # fmt: skip
    """Run PAYLOAD from ENTRY (default: its ELF entry point) and show its exits and final registers.

    PAYLOAD is the name of one that came with this package, or the path of an ELF file. PARAMETERS are numbers
    for the mailbox. The payload chain takes a level for ENTRY, and steps and seed for PARAMETERS; writer takes
    pages per second, the percentage of memory that it writes, and seconds. Reads by the guest are answered with 0.
    Exits with 0 if the payload ended as it promises or halted, and 1 if not.
    """
    with Kvm() as kvm, guests.make(kvm, payload, entry, parameters, privilege, memory=memory, vcpus=vcpus) as guest:
        status = guests.finish(guest, timeout, exits)
        for line in guest.registers():
            print(line)
    return status


command.help = f"{command.help}\n\nPayloads here: {', '.join(names())}."
