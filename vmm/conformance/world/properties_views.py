# SPDX-License-Identifier: Apache-2.0
"""What is written by one call is what every other call shows: the property ``shown``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vmm.conformance.context import Context
from vmm.conformance.expect import judged
from vmm.conformance.world.generate import Property
from vmm.conformance.world.ground import Ground
from vmm.conformance.world.properties import started
from vmm.conformance.world.tally import Tally
from vmm.guest.base import BaseGuest
from vmm.kvm.vcpu import Vcpu
from vmm.state.world.table import Table

__all__ = ["IN_GUEST", "STATEMENT", "View", "in_guest", "renamed", "shown"]

STATEMENT = "Every field of {} that another call shows or takes too is there what it is here"
IN_GUEST = "Every field of {} that a guest can read is there what KVM was given"
_ROUNDS = 2

# What a view has to show of written values: for each field its name there, and its value.
Expected = Mapping[str, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class View:
    """Another call that shows fields of a piece, by names of its own, and perhaps takes them.

    ``expects`` turns what was written into what it has to show.
    """

    name: str
    read: Callable[[Vcpu], Mapping[str, int]]
    expects: Callable[[Mapping[str, int]], Expected]
    write: Callable[[Vcpu, Mapping[str, int]], None] | None = None


def renamed(
    name: Callable[[str], str | None], value: Callable[[int], int] = lambda value: value
) -> Callable[[Mapping[str, int]], Expected]:
    """Say that a view shows the fields to which ``name`` gives a name there, each as ``value`` says."""

    def expects(meant: Mapping[str, int]) -> Expected:
        return {field: (there, value(given)) for field, given in meant.items() if (there := name(field)) is not None}

    return expects


def shown(views: Sequence[View]) -> Property:
    """Return the property that these views of a table agree with it, in both directions."""

    def judge(ground: Ground, table: Table, context: Context) -> None:
        with started(ground, table, context) as (vcpu, found, tally):
            for round in range(min(_ROUNDS, table.rounds)):
                meant = table.values(found, vcpu, round)
                with judged(f"writing {table.piece.name}"):
                    table.write(vcpu, meant)
                for view in views:
                    _look(view, table, vcpu, meant, tally)
            for view in views:
                if view.write:
                    with judged(f"writing {table.piece.name}"):
                        table.write(vcpu, table.values(found, vcpu, 1))
                    _take(view, table, vcpu, table.values(found, vcpu, 0), tally)

    return judge


def in_guest(
    start: Callable[[Context], BaseGuest],
    enter: Callable[[BaseGuest], None],
    read: Callable[[BaseGuest, Context], Mapping[str, int]],
    expects: Callable[[Mapping[str, int]], Expected],
    *,
    running: bool = True,
) -> Property:
    """Return the property that a guest finds in its registers what was written before it ran.

    ``start`` makes the guest, ``enter`` points it at what reads them, and ``read`` runs that. Without ``running`` it
    is a guest that runs with any legal values.
    """

    def judge(ground: Ground, table: Table, context: Context) -> None:
        guest = start(context)
        with Tally(context, table.piece.name) as tally:
            for round in range(_ROUNDS):
                enter(guest)
                meant = table.values(table.read(guest.vcpu), guest.vcpu, round, running=running)
                with judged(f"writing {table.piece.name}"):
                    table.write(guest.vcpu, meant)
                with judged("the run of a guest that reads what was written", "an end without a fault"):
                    seen = read(guest, context)
                for field, (name, value) in expects(meant).items():
                    tally.look(field, "in the guest", seen.get(name), value)

    return judge


def _look(view: View, table: Table, vcpu: Vcpu, meant: Mapping[str, int], tally: Tally) -> None:
    """What was written has to be what the view shows."""
    with judged(f"reading {view.name}"):
        seen = view.read(vcpu)
    for field, (name, value) in view.expects(meant).items():
        wanted = table.expected(field, value) if value == meant[field] else value
        tally.look(field, f"as {view.name} shows it", seen.get(name), wanted)


def _take(view: View, table: Table, vcpu: Vcpu, meant: Mapping[str, int], tally: Tally) -> None:
    """What is written by the view has to be what the piece's own call shows."""
    assert view.write
    given = view.expects(meant)
    with judged(f"writing {view.name}"):
        view.write(vcpu, dict(given.values()))
    read = table.read(vcpu)
    for field in given:
        tally.look(field, f"after {view.name} was written", read.get(field), table.expected(field, meant[field]))
