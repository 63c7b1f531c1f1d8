# SPDX-License-Identifier: Apache-2.0
"""A source in doubt: what it takes for an answer, what it does not, and for how long it asks."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.migration.test_lines import other_process
from tests.patience import LIMIT, patiently
from vmm.migration.errors import MigrationError, Unreachable
from vmm.migration.handover import SOURCE, Act, At, Machine
from vmm.migration.incarnation import Incarnation, Witness
from vmm.migration.line import ChildLine, SocketLine
from vmm.migration.messages import Resolve
from vmm.migration.resolve import DIED, NEVER_RAN, Doubt
from vmm.migration.transport import Connector, parse
from vmm.migration.wire import Channel, Kind

_RESOLVE = Resolve(bytes(16), bytes(range(32)))
_NOBODY = Witness(Incarnation("another host"))


class _Connector:
    """Makes lines by a function; ``address`` is nobody's."""

    again = True

    def __init__(self, make: Callable[[], SocketLine]) -> None:
        self._make = make

    def connect(self) -> SocketLine:
        return self._make()


class _Receiver:
    """The other side: on each line it plays the next of some scripts, which are what it hears and says."""

    def __init__(self, *scripts: Sequence[Kind | str]) -> None:
        self._scripts = list(scripts)
        self.heard: list[Kind] = []
        self._threads: list[threading.Thread] = []

    def line(self) -> SocketLine:
        ours, theirs = socket.socketpair()
        script = self._scripts.pop(0)
        thread = threading.Thread(target=self._play, args=(Channel(SocketLine(theirs, "source", LIMIT)), script))
        thread.start()
        self._threads.append(thread)
        return SocketLine(ours, "receiver", LIMIT)

    def _play(self, channel: Channel, script: Sequence[Kind | str]) -> None:
        try:
            for step in script:
                if step == "open":
                    channel.open()
                elif step == "hear":
                    message = channel.receive(*Kind)
                    self.heard.append(message.kind)
                    assert message.body in (_RESOLVE.token, _RESOLVE.pack())
                elif step == "noise":
                    channel.line.send(bytes(100))
                else:
                    assert isinstance(step, Kind)
                    channel.send(step, b"no reason" if step is Kind.DISCARDED else b"")
        except MigrationError:
            pass
        channel.line.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(LIMIT)


def _settle(receiver: _Receiver, **options: Any) -> tuple[At, list[Act], str]:
    machine = Machine(SOURCE, At.STOPPED)
    first = Channel(receiver.line())
    given = {"patience": LIMIT, **options}
    doubt = Doubt(machine, _Connector(receiver.line), first, _RESOLVE, _NOBODY, **given)  # type: ignore[arg-type]
    acts = doubt.settle()
    doubt._channel.line.close()
    receiver.join()
    return machine.at, acts, doubt.reason


@pytest.mark.parametrize(
    ("scripts", "at", "acts", "heard"),
    [
        ([["hear", Kind.RUNNING, "hear"]], At.MOVED, [], [Kind.HANDOVER, Kind.SETTLED]),
        (
            [["hear"], ["open", "hear", Kind.RUNNING, "hear"]],
            At.MOVED, [], [Kind.HANDOVER, Kind.RESOLVE, Kind.SETTLED],
        ),
        (
            [[], ["open", "hear", Kind.WAITING, "hear", Kind.RUNNING, "hear"]],
            At.MOVED, [], [Kind.RESOLVE, Kind.HANDOVER, Kind.SETTLED],
        ),
        (
            [["hear"], ["open"], ["open", "hear"], ["open", "hear", "noise"],
             ["open", "hear", Kind.WAITING, "hear"], ["open", "hear", Kind.DISCARDED, "hear"]],
            At.KEPT, [Act.RESUME],
            [Kind.HANDOVER, Kind.RESOLVE, Kind.RESOLVE, Kind.RESOLVE, Kind.HANDOVER, Kind.RESOLVE, Kind.SETTLED],
        ),
        (
            [["hear"], ["open", "hear", Kind.DIED, "hear"]],
            At.LOST, [Act.SAVE], [Kind.HANDOVER, Kind.RESOLVE, Kind.SETTLED],
        ),
        # Not answers: a stranger at the same address, an ABORT, a message that has no place here.
        (
            [["hear"], ["open", "hear", Kind.UNKNOWN], ["open", "hear", Kind.ABORT], ["open", "hear", Kind.READY],
             ["open", "hear", Kind.RUNNING, "hear"]],
            At.MOVED, [],
            [Kind.HANDOVER, Kind.RESOLVE, Kind.RESOLVE, Kind.RESOLVE, Kind.RESOLVE, Kind.SETTLED],
        ),
    ],
    ids=["at once", "answer lost", "handover lost", "many lines", "died there", "strangers"],
)  # fmt: skip
def test_answers_are_understood_and_strangers_ignored(
    scripts: list[list[Kind | str]], at: At, acts: list[Act], heard: list[Kind]
) -> None:
    receiver = _Receiver(*scripts)
    assert _settle(receiver)[:2] == (at, acts)
    assert receiver.heard == heard


def test_a_receiver_that_never_answers_is_not_asked_forever() -> None:
    receiver = _Receiver(["hear"], *[["open", "hear"]] * 100)
    began = time.monotonic()
    at, acts, reason = _settle(receiver, patience=0.7)
    assert (at, acts) == (At.HELD, [Act.SAVE])
    assert 0.6 < time.monotonic() - began < LIMIT
    assert "it was not known within 0.7 s whether the guest runs there" in reason


class _Refused(_Connector):
    def __init__(self, *, refused: bool) -> None:
        super().__init__(self._refuse)
        self._refused = refused

    def _refuse(self) -> SocketLine:
        raise Unreachable("nobody there", refused=self._refused)


@pytest.mark.parametrize(
    ("refused", "trust", "at"),
    [(True, True, At.KEPT), (True, False, At.HELD), (False, True, At.HELD), (False, False, At.HELD)],
)
def test_who_cannot_be_reached_is_taken_for_dead_only_if_a_refusal_is_trusted(
    refused: bool, trust: bool, at: At
) -> None:
    def attempt(scale: float) -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        machine = Machine(SOURCE, At.STOPPED)
        doubt = Doubt(
            machine, _Refused(refused=refused), Channel(SocketLine(ours, "x", 1)), _RESOLVE, _NOBODY,  # type: ignore[arg-type]
            patience=3.5 * scale, trust_refusal=trust,
        )  # fmt: skip
        began = time.monotonic()
        doubt.settle()
        # A moment's refusal proves nothing even to the trustful.
        seconds = time.monotonic() - began
        if seconds < 2 or machine.at not in (at, At.HELD):
            pytest.fail(f"{machine.at} after {seconds:.1f} s", pytrace=False)
        assert machine.at is at

    patiently(attempt)


@pytest.mark.parametrize(
    ("ending", "at"),
    [
        ("exit 0", At.MOVED),
        ("exit 1", At.MOVED),
        (f"exit {NEVER_RAN}", At.KEPT),
        (f"exit {DIED}", At.LOST),
        ("exit 2", At.HELD),
        ("exit 255", At.HELD),
        ("kill -9 $$", At.HELD),
        ("exec sleep 1000", At.HELD),
    ],
)
def test_how_a_child_ended_is_understood(ending: str, at: At) -> None:
    """Behind exec: there is no other line: its status tells, if it is one of vmm receive's."""

    def attempt(scale: float) -> None:
        connector = Connector(parse(f"exec:sh -c 'exec <&- >&-; sleep 0.1; {ending}'"), LIMIT)
        line = connector.connect()
        machine = Machine(SOURCE, At.STOPPED)
        doubt = Doubt(machine, connector, Channel(line), _RESOLVE, _NOBODY, patience=1.5 * scale)
        doubt.settle()
        line.close()
        assert isinstance(line, ChildLine)  # which leaves the child alone, as it may run the guest
        line._child.kill()
        line._child.wait()
        if machine.at not in (at, At.HELD):
            pytest.fail(f"{machine.at}: {doubt.reason}")
        assert machine.at is at, doubt.reason

    patiently(attempt)


def test_a_local_process_that_is_gone_is_not_waited_for() -> None:
    """Behind pipes nobody answers, but a process of this host is known to be gone."""
    with other_process() as (child, incarnation):
        witness = Witness(incarnation)
        ours, theirs = socket.socketpair()
        connector = Connector(parse(f"fd:{ours.fileno()}"), LIMIT)
        theirs.close()
        machine = Machine(SOURCE, At.STOPPED)
        threading.Timer(0.3, child.kill).start()
        began = time.monotonic()
        doubt = Doubt(machine, connector, Channel(connector.connect()), _RESOLVE, witness, patience=LIMIT)
        assert doubt.settle() == [Act.RESUME]
        assert machine.at is At.KEPT and 0.2 < time.monotonic() - began < LIMIT
        ours.detach()
