# SPDX-License-Identifier: Apache-2.0
"""What strangers say on a line: preambles, messages, their bodies; and the small parts that decide or wait."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmm.migration.convergence import FIXED, Convergence, Decision, Limits
from vmm.migration.errors import LineLost, MigrationError, PeerAborted, ProtocolError
from vmm.migration.incarnation import Incarnation
from vmm.migration.line import SocketLine
from vmm.migration.messages import Final, Hello, Ready, Resolve, Welcome, unpack_state
from vmm.migration.runner import Journal, Lease
from vmm.migration.wire import LIMITS, MAGIC, Channel, Kind
from vmm.state.stream.canonical import encode
from vmm.state.value import PayloadIdentity

_HELLO = Hello(
    bytes(16), "x86", PayloadIdentity("chain", bytes(32)), ((0, 4 << 20), (1 << 32, 4096)), bytes(32), 0,
    {"kernel": "7.2", "facts": [1, -1.5, None]}, 60,
)  # fmt: skip
_BODIES: dict[str, tuple[Any, Callable[[bytes], Any]]] = {
    "HELLO": (_HELLO, Hello.unpack),
    "WELCOME": (Welcome(1, 60, Incarnation("a b 1 2"), Incarnation("a b 3 4")), Welcome.unpack),
    "FINAL": (Final(b"state", ((bytes(32), bytes(32)), ())), Final.unpack),
    "READY": (Ready(bytes(range(32)), b"state"), Ready.unpack),
    "RESOLVE": (Resolve(bytes(16), bytes(32)), Resolve.unpack),
}


@contextmanager
def _channels() -> Iterator[tuple[Channel, Channel]]:
    left, right = socket.socketpair()
    ours, theirs = Channel(SocketLine(left, "them", 1)), Channel(SocketLine(right, "us", 1))
    try:
        yield ours, theirs
    finally:
        ours.line.close()
        theirs.line.close()


@contextmanager
def _hearing(data: bytes) -> Iterator[Channel]:
    """A channel that hears these bytes and then the end."""
    left, right = socket.socketpair()
    channel = Channel(SocketLine(left, "them", 1))
    right.sendall(data)
    right.shutdown(socket.SHUT_WR)
    try:
        yield channel
    finally:
        channel.line.close()
        right.close()


def _message(kind: Kind = Kind.WELCOME, body: bytes = b"body") -> bytes:
    with _channels() as (ours, theirs):
        ours.send(kind, body)
        data = bytearray(16 + len(body) + 32)
        theirs.line.receive_into(memoryview(data))
        return bytes(data)


# --- preambles ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "version"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 9), 3), ((2, 9), (1, 3), 3), ((1, 1), (2, 3), None), ((4, 5), (1, 3), None)],
)
def test_the_newest_common_version_is_chosen_or_the_line_is_refused(
    ours: tuple[int, int], theirs: tuple[int, int], version: int | None
) -> None:
    with _channels() as (here, there):
        there.line.send(struct.pack("<8sHH4x", MAGIC, *theirs))
        if version is None:
            with pytest.raises(ProtocolError, match="use the same release"):
                here.open(oldest=ours[0], newest=ours[1])
        else:
            assert here.open(oldest=ours[0], newest=ours[1]) == version


def test_somebody_who_speaks_something_else_is_refused() -> None:
    with (
        _hearing(b"HTTP/1.1 400 Bad Request\r\n") as channel,
        pytest.raises(ProtocolError, match="does not speak this"),
    ):
        channel.open()
    with _hearing(MAGIC) as channel, pytest.raises(LineLost, match="closed the line"):
        channel.open()


# --- messages -------------------------------------------------------------------------------------


def test_messages_arrive_unchanged() -> None:
    with _channels() as (ours, theirs):
        ours.send(Kind.HELLO, b"one", b"", b" body")
        ours.line.send(b"pages")
        ours.send(Kind.ROUND)
        message = theirs.receive(Kind.HELLO, Kind.RESOLVE)
        assert message == (Kind.HELLO, b"one body")
        pages = bytearray(5)
        theirs.line.receive_into(memoryview(pages))
        assert pages == b"pages"
        assert theirs.receive(Kind.ROUND).body == b""
        theirs.send(Kind.ROUND_DONE)
        assert ours.receive(Kind.ROUND_DONE).kind is Kind.ROUND_DONE


@pytest.mark.parametrize("at", range(16 + 4 + 32))
def test_a_changed_byte_is_noticed(at: int) -> None:
    data = bytearray(_message())
    data[at] ^= 0x40
    with _hearing(bytes(data)) as channel, pytest.raises((ProtocolError, LineLost)):
        channel.receive(*Kind)


@pytest.mark.parametrize("length", range(16 + 4 + 32))
def test_half_a_message_is_refused(length: int) -> None:
    with _hearing(_message()[:length]) as channel, pytest.raises(LineLost, match="closed the line"):
        channel.receive(*Kind)


def test_a_message_that_is_left_out_or_repeated_is_noticed() -> None:
    with _hearing(_message() * 2) as channel:
        channel.receive(Kind.WELCOME)
        with pytest.raises(ProtocolError, match="what should be message 1 is damaged"):
            channel.receive(Kind.WELCOME)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_length_beyond_the_limit_is_refused(kind: Kind) -> None:
    head = struct.pack("<IHHQ", 0, kind, 0, LIMITS.get(kind, 64) + 1)
    with _hearing(head) as channel, pytest.raises(ProtocolError, match=f"{kind.name} claims"):
        channel.receive(*Kind)
    with _channels() as (ours, _), pytest.raises(MigrationError, match="is longer than"):
        ours.send(kind, bytes(LIMITS.get(kind, 64) + 1))


def test_a_message_out_of_turn_is_refused() -> None:
    with (
        _hearing(_message(Kind.RUNNING, b"")) as channel,
        pytest.raises(ProtocolError, match="them said RUNNING where WELCOME or READY was due"),
    ):
        channel.receive(Kind.WELCOME, Kind.READY)
    with (
        _hearing(_message(Kind.ABORT, b"no \x1b[31m memory")) as channel,
        pytest.raises(PeerAborted, match=r"^no \?\[31m memory$"),
    ):
        channel.receive(Kind.WELCOME)
    with _hearing(_message(Kind.ABORT, b"")) as channel, pytest.raises(PeerAborted, match="no reason given"):
        channel.receive()


def test_giving_up_on_a_broken_line_does_not_fail() -> None:
    with _channels() as (ours, theirs):
        theirs.line.close()
        ours.abort("x" * 10_000)
        ours.abort("again")


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_end_in_a_sentence(data: bytes) -> None:
    with _hearing(data) as channel, pytest.raises(MigrationError):
        channel.receive(*Kind)


# --- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(_BODIES))
def test_a_body_comes_back_unchanged(name: str) -> None:
    value, unpack = _BODIES[name]
    assert unpack(value.pack()) == value


@pytest.mark.parametrize("name", sorted(_BODIES))
def test_a_truncated_body_is_refused_and_a_damaged_one_raises_nothing_else(name: str) -> None:
    value, unpack = _BODIES[name]
    body = value.pack()
    for length in range(len(body)):
        with pytest.raises(ProtocolError):
            unpack(body[:length])
    for at in range(len(body)):
        damaged = bytearray(body)
        damaged[at] ^= 0x80
        try:
            unpack(bytes(damaged))
        except ProtocolError:
            continue


@given(st.binary(max_size=300))
@example(encode({}))
@example(encode({"id": bytes(16)}))
@settings(max_examples=300)
def test_any_body_ends_in_a_sentence_or_a_value(data: bytes) -> None:
    for _, unpack in _BODIES.values():
        try:
            unpack(data)
        except ProtocolError as error:
            assert str(error).isprintable()


def _hello_with(**changes: Any) -> bytes:
    from vmm.state.stream.canonical import decode

    return encode({**decode(_HELLO.pack()), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"id": bytes(15)},
        {"digest": bytes(31)},
        {"key": b""},
        {"codec": 2},
        {"patience": 1 << 40},
        {"facts": "{"},
        {"facts": "[]"},
        {"facts": "[" * 100_000},
        {"facts": "{" + " " * (512 << 10) + "}"},
        {"arch": b"x86"},
        {"regions": []},
        {"regions": [[0, 0]]},
        {"regions": [[0, 4096], [0, 4096]]},
        {"regions": [[4096, 4096], [0, 4096]]},
        {"regions": [[1, 4096]]},
        {"regions": [[0, 4097]]},
        {"regions": [[0, 1 << 45]]},
        {"regions": [[0]]},
        {"regions": [["0", 4096]]},
        {"regions": [[at << 12, 4096] for at in range(17)]},
        {"more": 1},
    ],
)
def test_a_hello_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        Hello.unpack(_hello_with(**changes))


def test_terminal_codes_of_a_stranger_are_not_printed() -> None:
    hello = Hello.unpack(_hello_with(payload="\x1b[2J", arch="\x07"))
    assert hello.payload.name.isprintable() and hello.arch.isprintable()


def test_what_is_not_a_state_is_refused() -> None:
    with pytest.raises(ProtocolError, match="the state in FINAL"):
        unpack_state(b"no state", "FINAL")


# --- convergence ----------------------------------------------------------------------------------

_MB = 1 << 20


def _follow(
    limits: Limits, dirty: Callable[[int, float], int], rounds: int = 100
) -> tuple[Decision, int, Convergence]:
    """Run rounds at 100 MB/s; ``dirty(round, throttle)`` are the bytes that become dirty."""
    convergence, left = Convergence(limits), 1000 * _MB
    for number in range(1, rounds + 1):
        sent, left = left, dirty(number, convergence.throttle)
        decision = convergence.decide(number, left, sent, sent / (100 * _MB))
        if decision is not Decision.COPY:
            return decision, number, convergence
    raise AssertionError("it never came to an end")


def test_an_idle_guest_is_copied_once() -> None:
    decision, rounds, convergence = _follow(Limits(downtime=0.02), lambda number, throttle: 0)
    assert (decision, rounds, convergence.throttle) == (Decision.STOP, 1, 0.0)
    assert convergence.estimate(0) == FIXED <= 0.02


def test_a_guest_is_paused_no_longer_than_allowed() -> None:
    decision, rounds, convergence = _follow(Limits(downtime=0.1), lambda number, throttle: 500 * _MB >> number)
    assert decision is Decision.STOP
    assert convergence.estimate(500 * _MB >> rounds) <= 0.1 < convergence.estimate(500 * _MB >> rounds - 1)


def test_a_guest_that_writes_fast_is_slowed_down() -> None:
    decision, _, convergence = _follow(
        Limits(downtime=0.5), lambda number, throttle: int(200 * _MB * (1 - throttle))
    )  # fmt: skip
    assert decision is Decision.STOP and 0.7 < convergence.throttle < 0.99


@pytest.mark.parametrize(
    ("stall", "decision"), [("throttle", Decision.ABORT), ("abort", Decision.ABORT), ("stop", Decision.STOP)]
)
def test_a_guest_that_never_converges_is_not_copied_forever(stall: str, decision: Decision) -> None:
    found, rounds, convergence = _follow(Limits(rounds=7, stall=stall), lambda number, throttle: 900 * _MB)
    assert (found, rounds) == (decision, 7)
    assert (convergence.throttle > 0) == (stall == "throttle")


# --- the lease and the journal --------------------------------------------------------------------


def test_a_lease_is_not_given_twice(tmp_path: Path) -> None:
    path = str(tmp_path / "lease")
    first, second, nobody = Lease(path), Lease(path), Lease()
    first.take()
    first.take()
    with pytest.raises(MigrationError, match="held by another process"):
        second.take()
    first.release()
    second.take()
    second.close()
    second.close()
    first.take()
    nobody.take()
    nobody.release()
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_lease_does_not_outlive_its_process(tmp_path: Path) -> None:
    path = str(tmp_path / "lease")
    pid = os.fork()
    if pid == 0:
        Lease(path).take()
        os._exit(0)
    os.waitpid(pid, 0)
    Lease(path).take()


def test_a_journal_loses_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    one, other = Journal(str(path)), Journal(str(path))
    one.write("run", level="sse")
    other.write("stop")
    Journal().write("nowhere")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["run", "stop"]
    assert lines[0]["level"] == "sse" and lines[0]["pid"] == os.getpid() and lines[0]["ns"] <= lines[1]["ns"]
