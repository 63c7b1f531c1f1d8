# SPDX-License-Identifier: Apache-2.0
"""``vmm save``: run a payload for a while and write the guest's state to a file."""

from __future__ import annotations

import sys

import click

from vmm.cli import guests
from vmm.cli.options import Count, Places, Seconds, guest_options
from vmm.guest.base import BaseGuest
from vmm.kvm.exits import Budget
from vmm.kvm.system import Kvm
from vmm.state.capture import capture
from vmm.state.explain import explain
from vmm.state.stream.encode import write_state
from vmm.state.stream.files import save

__all__ = ["command", "write"]


def write(path: str, guest: BaseGuest) -> None:
    """Write the state of a guest that has left to a file; ``-`` is standard output."""
    state = capture(guest)
    if path != "-":
        save(path, state, explain)
        return
    if sys.stdout.isatty():
        raise click.UsageError("a state is binary: write it to a file or a pipe, not to a terminal")
    write_state(sys.stdout.buffer, state)
    sys.stdout.buffer.flush()


@click.command("save")
@click.argument("payload")
@click.argument("entry", required=False)
@click.argument("parameters", nargs=-1)
@click.option("--output", "-o", required=True, metavar="FILE", help="Save the state here; - is standard output.")
@click.option("--ticks", type=Count(), default=10, show_default=True, help="Run this many ticks first.")
@click.option("--privilege", type=click.IntRange(0, 3), default=0, show_default=True, help="CPL 0 or 3 (x86).")
@click.option("--timeout", type=Seconds(0.001), default=30.0, show_default=True, help="Seconds to get there.")
@guest_options
def command(
    payload: str, entry: str | None, parameters: tuple[str, ...], output: str, ticks: int, privilege: int,
    timeout: float, memory: Places | None, vcpus: int,
) -> int:  # fmt: skip
    """Run PAYLOAD for some ticks and save the state of its VM: registers, memory, all.

    PAYLOAD, ENTRY and PARAMETERS are as in `vmm run`; of the payloads here chain, hello, dirty, writer and those
    with a churn entry tick. With several vCPUs each makes its ticks, and all stop before any of them is saved. Only
    its owner can read the file, which replaces an older one when it is complete.
    """
    with Kvm() as kvm, guests.make(kvm, payload, entry, parameters, privilege, memory=memory, vcpus=vcpus) as guest:
        exit = guest.resume(timeout, ticks=ticks)
        if not isinstance(exit, Budget):
            event = guest.event(exit)
            what = guest.describe(event) if event is not None else str(exit)
            raise click.UsageError(f"the guest stopped ticking before {ticks} ticks: {what}; ask for fewer")
        write(output, guest)
    return 0
