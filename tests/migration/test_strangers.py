# SPDX-License-Identifier: Apache-2.0
"""A receiver among strangers: who says nothing, or says it slowly, keeps nobody out; one place counts the guests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import LIMIT, eventually
from vmm.migration import keeper
from vmm.migration.line import SocketLine
from vmm.migration.messages import Hello
from vmm.migration.wire import Channel, Kind

pytestmark = pytest.mark.kvm
_VMM = [sys.executable, "-m", "vmm"]
_SENT = ["chain", "sse", "12000", "7", "--downtime", "0.5", "--json"]


class Receiver:
    """A `vmm receive` of its own, its address, and what it said."""

    def __init__(self, log: Path, *options: str) -> None:
        self._log = log
        with open(log, "w") as said:
            command = [*_VMM, "receive", "127.0.0.1:0", *options]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        assert eventually(lambda: "receiving at " in self.said()), self.said()
        host, _, port = self.said().split("receiving at ")[1].split()[0].rpartition(":")
        self.address = host, int(port)

    def said(self) -> str:
        return self._log.read_text()

    def send(self, *options: str) -> subprocess.Popen[str]:
        command = [*_VMM, "send", f"{self.address[0]}:{self.address[1]}", *_SENT, *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(LIMIT)


@pytest.fixture
def receiver(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Receiver]:
    made = Receiver(tmp_path / "said", *getattr(request, "param", ()))
    yield made
    made.close()


def _moved(process: subprocess.Popen[str]) -> bool:
    out, err = process.communicate(timeout=LIMIT)
    assert "Traceback" not in err, err
    return '"outcome": "moved"' in out


@contextlib.contextmanager
def _lines(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    lines = [socket.create_connection(address, 10) for _ in range(count)]
    yield lines
    for line in lines:
        line.close()


def test_two_hundred_silent_lines_keep_no_honest_sender_out(receiver: Receiver) -> None:
    with _lines(receiver.address, 200):
        assert _moved(receiver.send())


def test_lines_that_trickle_bytes_keep_no_honest_sender_out(receiver: Receiver) -> None:
    with _lines(receiver.address, 50) as lines:
        for line in lines:
            line.send(b"\x89")
        sender = receiver.send()
        while sender.poll() is None:
            for line in lines:
                with contextlib.suppress(OSError):
                    line.send(b"V")
            time.sleep(0.2)
        assert _moved(sender)


def test_a_strangers_time_is_counted_from_the_connection_and_not_from_its_last_byte(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = socket.create_connection(receiver.address, 10)
    line.settimeout(0.5)
    began = time.monotonic()
    limit = began + keeper._GREETING + 20
    ended = False
    for byte in b"\x89VMMIG\r\n" + bytes(200):
        if time.monotonic() > limit or ended:
            break
        with contextlib.suppress(TimeoutError):
            try:
                line.send(bytes([byte]))
                ended = line.recv(64) == b""
            except ConnectionError:
                ended = True
    assert ended
    assert time.monotonic() - began < keeper._GREETING + 15


def _hello(address: tuple[str, int], identifier: bytes) -> Channel:
    """Announce a guest that does not exist, and go no further."""
    from vmm.arch import ARCHITECTURE
    from vmm.guest.payload import load
    from vmm.migration.messages import Codec
    from vmm.migration.pages import KEY_SIZE
    from vmm.state.capture import identity

    channel = Channel(SocketLine(socket.create_connection(address, 10), "the receiver", 20))
    channel.open()
    channel.send(
        Kind.HELLO,
        Hello(
            identifier, ARCHITECTURE, identity(load("chain")), ((0, 4 << 20),), bytes(KEY_SIZE), Codec.RAW, {}, 30
        ).pack(),
    )
    return channel


def _answers(channels: list[Channel]) -> list[str]:
    found = []
    for channel in channels:
        try:
            found.append(channel.receive(Kind.WELCOME).kind.name)
        except Exception as error:
            found.append(type(error).__name__)
    return sorted(found)


@pytest.mark.parametrize(
    ("receiver", "most"),
    [(("--any-host", "--once"), 1), (("--any-host", "--guests", "2"), 2)],
    indirect=["receiver"],
    ids=["once", "two guests"],
)
def test_guests_that_come_at_once_are_counted_in_one_place(receiver: Receiver, most: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(7) as pool:
        channels = list(pool.map(lambda n: _hello(receiver.address, bytes([n]) * 16), range(7)))
    assert _answers(channels) == ["PeerAborted"] * (7 - most) + ["WELCOME"] * most
    for channel in channels:
        channel.line.close()


@pytest.mark.parametrize("receiver", [("--any-host",)], indirect=True)
def test_a_migration_that_has_been_here_is_refused(receiver: Receiver) -> None:
    first = _hello(receiver.address, b"x" * 16)
    assert _answers([first]) == ["WELCOME"]
    first.line.close()
    again = _hello(receiver.address, b"x" * 16)
    assert _answers([again]) == ["PeerAborted"]


def test_a_guest_that_has_settled_outlives_its_receiver(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path / "said", "--journal", str(tmp_path / "journal"))
    sender = subprocess.Popen(
        [*_VMM, "send", f"127.0.0.1:{receiver.address[1]}", "chain", "sse", "2000000", "7", "--downtime", "0.5"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, said = sender.communicate(timeout=LIMIT)
    assert sender.returncode == 0, said
    time.sleep(0.5)  # SETTLED is on its way
    receiver.process.terminate()
    receiver.process.wait(LIMIT)
    assert "runs on in process" in receiver.said()
    pid = int(receiver.said().split("runs on in process ")[1].split(",")[0])
    try:
        os.kill(pid, 0)
        time.sleep(1.0)
        os.kill(pid, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
