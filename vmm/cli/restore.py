# SPDX-License-Identifier: Apache-2.0
"""``vmm restore``: a guest resumes from its saved state."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from vmm.cli import guests
from vmm.cli.options import Count, Seconds, Size
from vmm.cli.save import write
from vmm.guest.payload import load
from vmm.kvm.exits import Budget
from vmm.kvm.system import Kvm
from vmm.state.capture import restore
from vmm.state.explain import explain
from vmm.state.policy import Policy
from vmm.state.stream.container import Limits
from vmm.state.stream.decode import read_state
from vmm.state.stream.staging import Staging
from vmm.state.validate import normalise, validate

__all__ = ["command"]


@click.command("restore")
@click.argument("file", type=click.File("rb"))
@click.option("--ticks", type=Count(), help="Run this many ticks and no further.")
@click.option("--save", "save_to", metavar="FILE", help="Save the state again afterwards; - is standard output.")
@click.option("--tolerate", multiple=True, metavar="GLOB",
              help="Continue without registers that KVM refuses, such as 'MSRS.KVM_*'; repeatable.")  # fmt: skip
@click.option("--payload", metavar="ELF", help="The guest's payload, where it did not come with this package.")
@click.option("--memory", type=Size(), default="1G", show_default=True, help="The largest guest to accept.")
@click.option("--timeout", type=Seconds(0.001), default=30.0, show_default=True, help="Seconds per exit.")
@click.option("--exits", type=Count(), default=1000, show_default=True, help="Stop after this many exits.")
def command(
    file: BinaryIO, ticks: int | None, save_to: str | None, tolerate: tuple[str, ...], payload: str | None,
    memory: int, timeout: float, exits: int,
) -> int:  # fmt: skip
    """Restore the VM whose state is in FILE (- is standard input), and run it to its end as `vmm run` does.

    The file is believed in nothing: it is validated before KVM is opened, and what was restored is captured
    again and compared before the guest runs. Registers that this KVM refuses are named. Exits with 1 if the
    guest did not end as its payload promises, 2 if the state was refused.
    """
    if (save_to is None) != (ticks is None):
        raise click.UsageError("--ticks and --save go together: how far to run, and where the state goes then")
    staging = Staging()
    state = read_state(file, explain, Limits(memory=memory), staging=staging)
    state, notes = normalise(state)
    validate(state)
    policy = Policy(tolerate)
    known = load(payload) if payload else None
    with Kvm() as kvm, restore(kvm, state, policy, payload=known, staging=staging) as guest:
        for note in [*notes, *policy.notes]:
            print(f"vmm: {note}", file=sys.stderr)
        if ticks is None or save_to is None:
            status = guests.finish(guest, timeout, exits)
            for line in guest.registers():
                print(line)
            return status
        exit = guest.resume(timeout, ticks=ticks)
        if not isinstance(exit, Budget):
            print(f"vmm: the guest left with {exit} before {ticks} ticks", file=sys.stderr)
            return 1
        write(save_to, guest)
    return 0
