# SPDX-License-Identifier: Apache-2.0
"""The handover, walked through completely: every interleaving of messages, lost lines, deaths and impatience.

A configuration of the model is where each side is, what is on the line, what the guest's process has noted, and who
is alive. A message, once sent, arrives or is lost with its line; a line breaks at any moment, and what was on it
arrives late or never; either side dies at any moment, between any two acts too; time is up at any moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from vmm.migration.handover import ENDS, RECEIVER, SOURCE, Act, At, Event, Machine, Table, answer
from vmm.migration.wire import Kind

_TO_SOURCE = {
    Kind.READY: Event.ACCEPTED,
    Kind.RUNNING: Event.RUNNING,
    Kind.WAITING: Event.WAITING,
    Kind.DISCARDED: Event.NEVER_RAN,
    Kind.DIED: Event.DIED,
    Kind.ABORT: Event.ABORTED,
}
_TO_RECEIVER = {
    Kind.FINAL: Event.VERIFIED,
    Kind.HANDOVER: Event.HANDOVER,
    Kind.RESOLVE: Event.RESOLVE,
    Kind.SETTLED: Event.SETTLED,
    Kind.ABORT: Event.ABORTED,
}
# ABORT means something before the handover only; after READY the receiver says DISCARDED.
_LOCAL_SOURCE = {At.COPYING: (Event.STOP, Event.FAILED), At.STOPPED: (Event.FAILED,)}
_LOCAL_RECEIVER = {At.FILLING: (Event.FAILED,), At.READY: (Event.FAILED, Event.GAVE_UP)}


@dataclass(frozen=True)
class World:
    """One configuration. Acts that are due but not done yet are kept, so that a death can come in between."""

    source: At = At.COPYING
    source_todo: tuple[Act, ...] = ()
    source_runs: bool = True
    source_alive: bool = True
    target: At = At.FILLING
    target_todo: tuple[Act, ...] = ()
    target_runs: bool = False
    target_alive: bool = True
    keeper_alive: bool = True
    noted: bool = False
    ever_ran_there: bool = False
    # The line, None when there is none, and what is on it in each direction.
    to_target: tuple[Kind, ...] | None = ()
    to_source: tuple[Kind, ...] | None = ()
    # What is still on its way to the target from a line that the source has given up.
    late: tuple[Kind, ...] = ()
    breaks: int = 0

    @property
    def connected(self) -> bool:
        return self.to_target is not None


def _on(table: Table, at: At, event: Event) -> tuple[At, tuple[Act, ...]]:
    machine = Machine(table, at)
    acts = machine.on(event)
    return machine.at, acts


def _source_on(world: World, event: Event) -> World:
    at, acts = _on(SOURCE, world.source, event)
    return replace(world, source=at, source_todo=world.source_todo + acts)


def _target_on(world: World, event: Event) -> World:
    at, acts = _on(RECEIVER, world.target, event)
    return replace(world, target=at, target_todo=world.target_todo + acts)


def _source_acts(world: World) -> World:
    act, rest = world.source_todo[0], world.source_todo[1:]
    world = replace(world, source_todo=rest)
    if act is Act.PAUSE:
        world = replace(world, source_runs=False)
        return _to_target(world, Kind.FINAL)
    if act is Act.RESUME:
        return replace(world, source_runs=True)
    if isinstance(act.value, Kind):
        return _to_target(world, act.value)
    return world  # RECONNECT is what the network does below, SAVE leaves the guest paused


def _target_acts(world: World) -> World:
    act, rest = world.target_todo[0], world.target_todo[1:]
    world = replace(world, target_todo=rest)
    if act is Act.START:
        if not world.noted:  # the note comes first, and a death may come right after it
            return replace(world, noted=True, target_todo=(act, *rest))
        return replace(world, target_runs=True, ever_ran_there=True)
    if isinstance(act.value, Kind):
        return _to_source(world, act.value)
    return world


def _to_target(world: World, kind: Kind) -> World:
    return replace(world, to_target=(*world.to_target, kind)) if world.to_target is not None else world


def _to_source(world: World, kind: Kind) -> World:
    return replace(world, to_source=(*world.to_source, kind)) if world.to_source is not None else world


def _steps(world: World, breaks: int, *, trust: bool = True) -> Iterator[tuple[str, World]]:
    """Yield everything that can happen next."""
    yield from _source_steps(world)
    yield from _target_steps(world)
    yield from _line_steps(world, breaks)
    yield from _doubt_steps(world, trust)
    yield from _deaths(world)


def _source_steps(world: World) -> Iterator[tuple[str, World]]:
    if not world.source_alive:
        return
    if world.source_todo:
        yield f"source does {world.source_todo[0].name}", _source_acts(world)
        return
    for event in _LOCAL_SOURCE.get(world.source, ()):
        yield f"source: {event.name}", _source_on(world, event)
    if world.source is At.DOUBT:
        yield "source: GAVE_UP", _source_on(world, Event.GAVE_UP)
    if world.to_source:
        kind, rest = world.to_source[0], world.to_source[1:]
        yield f"source hears {kind.name}", _source_on(replace(world, to_source=rest), _TO_SOURCE[kind])


def _target_steps(world: World) -> Iterator[tuple[str, World]]:
    if not world.target_alive:
        return
    if world.target_todo:
        yield f"target does {world.target_todo[0].name}", _target_acts(world)
        return
    for event in _LOCAL_RECEIVER.get(world.target, ()):
        yield f"target: {event.name}", _target_on(world, event)
    if world.to_target:
        kind, rest = world.to_target[0], world.to_target[1:]
        # Who takes a new line drops the old one.
        late = () if kind is Kind.RESOLVE else world.late
        yield f"target hears {kind.name}", _target_on(replace(world, to_target=rest, late=late), _TO_RECEIVER[kind])


def _line_steps(world: World, breaks: int) -> Iterator[tuple[str, World]]:
    """The line breaks. The source notices; the target hears what was on it, until it notices too."""
    if world.to_target is not None and world.breaks < breaks:
        broken = replace(world, late=world.to_target, to_target=None, to_source=None, breaks=world.breaks + 1)
        yield "line breaks", _source_on(broken, Event.LINE_LOST) if world.source_alive else broken
    if world.late and world.target_alive and not world.target_todo:
        kind, rest = world.late[0], world.late[1:]
        yield f"target hears {kind.name}, late", _target_on(replace(world, late=rest), _TO_RECEIVER[kind])
    if not world.connected and world.target_alive and not world.target_todo:
        yield "target: LINE_LOST", _target_on(replace(world, late=()), Event.LINE_LOST)


def _doubt_steps(world: World, trust: bool) -> Iterator[tuple[str, World]]:
    """A source in doubt without a line reaches the guest's process, its keeper, or nobody."""
    if not world.source_alive or world.source is not At.DOUBT or world.connected or world.source_todo:
        return
    if world.target_alive:
        yield "source connects", _source_on(replace(world, to_target=(), to_source=()), Event.CONNECTED)
    elif world.keeper_alive:
        # RUNNING is answered too for a guest that came to its end: its process is gone then, and well.
        kind = answer(started=world.noted, ended=False)
        yield f"keeper says {kind.name}", _source_on(world, _TO_SOURCE[kind])
    elif trust:
        yield "source knows that the process is gone", _source_on(world, Event.GONE)


def _deaths(world: World) -> Iterator[tuple[str, World]]:
    if world.source_alive:
        dead = replace(world, source_alive=False, source_runs=False, source_todo=())
        yield "source dies", _lost_peer(dead)
    if world.target_alive:
        dead = replace(world, target_alive=False, target_runs=False, target_todo=())
        yield "target dies", _lost_peer(dead)
        yield "target and keeper die", _lost_peer(replace(dead, keeper_alive=False))


def _lost_peer(world: World) -> World:
    """What a dead process had sent arrives all the same, then the line ends."""
    for kind in world.to_source or ():
        if world.source_alive:
            world = _source_on(world, _TO_SOURCE[kind])
    late = world.late + (world.to_target or ()) if world.target_alive else ()
    connected = world.connected
    world = replace(world, to_target=None, to_source=None, late=late)
    return _source_on(world, Event.LINE_LOST) if connected and world.source_alive else world


def _reachable(breaks: int, *, trust: bool = True) -> dict[World, tuple[World | None, str]]:
    """Return every configuration that can come about, each with the one it came from and how."""
    start = World()
    found: dict[World, tuple[World | None, str]] = {start: (None, "start")}
    queue = deque([start])
    while queue:
        world = queue.popleft()
        for how, following in _steps(world, breaks, trust=trust):
            if following not in found:
                found[following] = (world, how)
                queue.append(following)
    return found


def _story(found: dict[World, tuple[World | None, str]], world: World) -> str:
    lines, at = [], world
    while at is not None:
        before, how = found[at]
        lines.append(f"{how}: {at.source.name}/{at.target.name}")
        at = before  # type: ignore[assignment]
    return "\n".join(reversed(lines))


@pytest.fixture(scope="module")
def worlds() -> dict[World, tuple[World | None, str]]:
    return _reachable(breaks=2)


def test_a_guest_never_runs_on_both_sides(worlds: dict[World, tuple[World | None, str]]) -> None:
    assert len(worlds) > 1000
    for world in worlds:
        assert not (world.source_runs and world.target_runs), _story(worlds, world)


def test_a_guest_that_has_run_at_the_receiver_resumes_at_the_source_only_without_its_keeper(
    worlds: dict[World, tuple[World | None, str]],
) -> None:
    for world in worlds:
        if world.source_runs and world.ever_ran_there:
            # Only where the source knows that the process is gone, and nobody is left who could tell more.
            assert not world.keeper_alive, _story(worlds, world)


def test_without_knowledge_of_its_end_a_source_never_runs_a_guest_that_has_run_at_the_receiver() -> None:
    worlds = _reachable(breaks=2, trust=False)
    assert all(not (world.source_runs and world.ever_ran_there) for world in worlds)


def test_a_source_that_survives_does_not_lose_its_guest_before_the_handover(
    worlds: dict[World, tuple[World | None, str]],
) -> None:
    """Nobody gives up, so what can happen happens: a guest of a living source that never left runs there again."""
    for world in worlds:
        if world.source_alive and world.source in (At.COPYING, At.KEPT) and not world.source_todo:
            assert world.source_runs, _story(worlds, world)
        if world.source_alive and world.source in ENDS and not world.source_todo and not world.ever_ran_there:
            given_up = world.source in (At.HELD, At.LOST)
            moved = world.source is At.MOVED
            assert world.source_runs or given_up or moved, _story(worlds, world)


def test_a_source_in_doubt_is_never_stuck_while_somebody_could_answer(
    worlds: dict[World, tuple[World | None, str]],
) -> None:
    """From every doubt there is a way out that is not giving up, if the line can be made anew."""
    out: set[World] = {world for world in worlds if world.source is not At.DOUBT or not world.source_alive}
    before: dict[World, list[World]] = {}
    for world in worlds:
        for how, following in _steps(world, 2):
            if how not in ("source: GAVE_UP", "source dies", "target dies", "target and keeper die"):
                before.setdefault(following, []).append(world)
    queue = deque(out)
    while queue:
        for world in before.get(queue.popleft(), ()):
            if world not in out:
                out.add(world)
                queue.append(world)
    assert out == set(worlds), _story(worlds, next(world for world in worlds if world not in out))


def test_a_discarded_guest_never_runs(worlds: dict[World, tuple[World | None, str]]) -> None:
    for world in worlds:
        if world.target is At.DISCARDED:
            assert not world.target_runs and not world.noted, _story(worlds, world)


def test_a_guest_that_moved_runs_while_its_process_lives(
    worlds: dict[World, tuple[World | None, str]],
) -> None:
    for world in worlds:
        if world.source is At.MOVED and world.target_alive and Act.START not in world.target_todo:
            assert world.target_runs, _story(worlds, world)


def test_a_guest_is_said_to_be_lost_only_if_it_was_started(
    worlds: dict[World, tuple[World | None, str]],
) -> None:
    for world in worlds:
        if world.source is At.LOST:
            assert world.noted and not world.target_alive, _story(worlds, world)


def test_the_ways_a_handover_ends_are_all_reached(worlds: dict[World, tuple[World | None, str]]) -> None:
    assert {world.source for world in worlds} >= {At.KEPT, At.MOVED, At.LOST, At.HELD}
    assert {world.target for world in worlds} >= {At.RUNNING, At.SETTLED, At.DISCARDED}


# --- the checker itself: a table with a fault must be caught ----------------------------------------------


@pytest.mark.parametrize(
    ("table", "key", "entry"),
    [
        # a source that runs the guest when the line is lost in doubt
        ("SOURCE", (At.DOUBT, Event.LINE_LOST), (At.KEPT, (Act.RESUME,))),
        # a source that runs the guest when its patience is over
        ("SOURCE", (At.DOUBT, Event.GAVE_UP), (At.KEPT, (Act.RESUME,))),
        # a source that takes a line that was closed for an answer
        ("SOURCE", (At.DOUBT, Event.CONNECTED), (At.KEPT, (Act.RESUME,))),
        # a receiver that starts a guest without HANDOVER
        ("RECEIVER", (At.READY, Event.GAVE_UP), (At.RUNNING, (Act.START,))),
        # a receiver that starts what it has discarded
        ("RECEIVER", (At.DISCARDED, Event.HANDOVER), (At.RUNNING, (Act.START, Act.SEND_RUNNING))),
        # a receiver that says it never ran, and runs
        ("RECEIVER", (At.RUNNING, Event.RESOLVE), (At.RUNNING, (Act.SEND_DISCARDED,))),
        # HANDOVER before the guest is verified
        ("SOURCE", (At.COPYING, Event.STOP), (At.STOPPED, (Act.PAUSE, Act.SEND_HANDOVER))),
    ],
)
def test_a_faulty_table_is_caught(
    monkeypatch: pytest.MonkeyPatch, table: str, key: tuple[At, Event], entry: tuple[At, tuple[Act, ...]]
) -> None:
    original = {"SOURCE": SOURCE, "RECEIVER": RECEIVER}[table]
    monkeypatch.setitem(original, key, entry)
    found = _reachable(breaks=2)
    bad = [
        world
        for world in found
        if (world.source_runs and world.target_runs)
        or (world.source_runs and world.ever_ran_there and world.keeper_alive)
        or (world.target_runs and world.source in (At.COPYING, At.STOPPED))
    ]
    assert bad
