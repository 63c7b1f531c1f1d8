# SPDX-License-Identifier: Apache-2.0
"""Lines: addresses, every kind of line, TLS, and what is said when there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patience import LIMIT
from tests.test_processes import terminal_pair
from vmm.migration.errors import LineLost, MigrationError, Unreachable
from vmm.migration.incarnation import Incarnation, Witness
from vmm.migration.line import ChildLine, Line, PipeLine, SocketLine
from vmm.migration.tls import Tls
from vmm.migration.transport import Connector, Listener, inherited_line, parse

_MUCH = 3 << 20


@contextmanager
def _listening(text: str, tls: Tls | None = None, timeout: float = LIMIT) -> Iterator[Listener]:
    listener = Listener(parse(text), timeout, tls)
    try:
        yield listener
    finally:
        listener.close()


def _accepted(listener: Listener) -> Line:
    return listener.line(*listener.accept())


def _exchange(ours: Line, theirs: Line) -> None:
    """Send more than any buffer holds both ways, in pieces that do not fit each other."""
    data = os.urandom(_MUCH)
    got = bytearray(_MUCH)
    pieces = (data[start : start + 99_991] for start in range(5, _MUCH, 99_991))
    sender = threading.Thread(target=ours.send, args=(data[:1], b"", memoryview(data)[1:5], *pieces))
    sender.start()
    theirs.receive_into(memoryview(got)[:7])
    assert theirs.readable(LIMIT)
    theirs.receive_into(memoryview(got)[7:])
    sender.join()
    assert got == data
    assert not ours.readable(0)
    theirs.send(b"back")
    answer = bytearray(4)
    assert ours.readable(LIMIT)
    ours.receive_into(memoryview(answer))
    assert answer == b"back"


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "host", "port", "path"),
    [
        ("host:7", "tcp", "host", 7, ""),
        ("tcp:host:7", "tcp", "host", 7, ""),
        ("127.0.0.1:65535", "tcp", "127.0.0.1", 65535, ""),
        ("[::1]:0", "tcp", "::1", 0, ""),
        ("unix:/tmp/a:b", "unix", "", 0, "/tmp/a:b"),
        ("exec:ssh host vmm receive -", "exec", "", 0, "ssh host vmm receive -"),
        ("-", "stdio", "", 0, ""),
    ],
)
def test_an_address_is_split_into_its_parts(text: str, kind: str, host: str, port: int, path: str) -> None:
    address = parse(text)
    assert (address.kind, address.host, address.port, address.path) == (kind, host, port, path)


@pytest.mark.parametrize(
    "text", ["", "host", ":7", "host:", "host:x", "host:65536", "host:-1", "host:٣", "::1:7", "unix:", "exec:"]
)
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(MigrationError, match=r"is not an address|is ambiguous"):
        parse(text)


@pytest.mark.parametrize("text", ["fd:", "fd:x", "fd:1,2,3", "fd:-1", "fd:123456"])
def test_invalid_descriptors_are_refused(text: str) -> None:
    with pytest.raises(MigrationError, match=r"names no descriptors|is not open"):
        parse(text)


# --- each kind of line ----------------------------------------------------------------------------


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("text", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_tcp_carries_data_both_ways(text: str) -> None:
    if "::1" in text and not _has_ipv6():
        pytest.skip("this host has no IPv6")
    with _listening(text) as listener:
        connector = Connector(parse(listener.text), LIMIT)
        ours, theirs = connector.connect(), _accepted(listener)
        _exchange(ours, theirs)
        again, third = connector.connect(), _accepted(listener)
        _exchange(third, again)
        for line in (ours, theirs, again, third):
            line.close()


def test_a_unix_socket_is_private_and_carries_data_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "line"
    with _listening(f"unix:{path}") as listener:
        assert path.stat().st_mode & 0o777 == 0o600
        ours, theirs = Connector(parse(listener.text), LIMIT).connect(), _accepted(listener)
        _exchange(ours, theirs)
        ours.close()
        theirs.close()
    assert not path.exists()


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "line"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with _listening(f"unix:{path}") as listener:
        Connector(parse(listener.text), LIMIT).connect().close()


def test_a_file_or_a_living_listener_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(MigrationError, match="in use"):
        Listener(parse(f"unix:{path}"))
    assert path.read_text() == "precious"
    with (
        _listening(f"unix:{tmp_path / 'line'}") as listener,
        pytest.raises(MigrationError, match="in use"),
    ):
        Listener(parse(listener.text))


def test_pipes_carry_data_both_ways() -> None:
    to_them, from_us = os.pipe()
    to_us, from_them = os.pipe()
    ours, theirs = PipeLine(to_us, from_us, "them", LIMIT), PipeLine(to_them, from_them, "us", LIMIT)
    _exchange(ours, theirs)
    ours.close()
    with pytest.raises(LineLost, match="us closed the line"):
        theirs.receive_into(memoryview(bytearray(1)))
    with pytest.raises(LineLost, match="us closed the line"):
        theirs.send(b"x")
    theirs.close()
    theirs.close()


def test_inherited_descriptors_carry_data_both_ways() -> None:
    left, right = socket.socketpair()
    ours = inherited_line(parse(f"fd:{left.detach()}"), LIMIT)
    assert isinstance(ours, SocketLine)
    _exchange(ours, SocketLine(right, "them", LIMIT))
    ours.close()
    to_them, from_us = os.pipe()
    to_us, from_them = os.pipe()
    ours = inherited_line(parse(f"fd:{to_us},{from_us}"), LIMIT)
    theirs = inherited_line(parse(f"fd:{to_them},{from_them}"), LIMIT)
    _exchange(ours, theirs)
    ours.close()
    theirs.close()


_CAT = "import os\nwhile data := os.read(0, 65536): os.write(1, data)"


def test_a_child_carries_data_both_ways_and_has_an_exit_status() -> None:
    line = Connector(parse(f"exec:{sys.executable} -c '{_CAT}'"), LIMIT).connect()
    assert isinstance(line, ChildLine)
    line.send(b"echo")
    answer = bytearray(4)
    line.receive_into(memoryview(answer))
    assert answer == b"echo"
    assert line.exit_status(0) is None
    line.close()
    assert line.exit_status(LIMIT) == 0


def test_standard_input_and_output_are_a_line_without_stray_output() -> None:
    program = (
        "from vmm.migration.transport import inherited_line, parse\n"
        "line = inherited_line(parse('-'), 120)\n"
        "print('a stray word')\n"
        "data = bytearray(4); line.receive_into(memoryview(data)); line.send(bytes(data) * 2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=b"echo", capture_output=True, timeout=LIMIT, check=True
    )
    assert (done.stdout, done.stderr) == (b"echoecho", b"a stray word\n")


def test_a_terminal_is_refused_as_a_line() -> None:
    controller, terminal = terminal_pair()
    program = "from vmm.migration.transport import inherited_line, parse; inherited_line(parse('-'), 120)"
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=terminal, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    os.close(controller)
    os.close(terminal)
    assert done.returncode
    assert "standard input and output are a terminal" in done.stderr


# --- what goes wrong ------------------------------------------------------------------------------


def test_an_address_where_nobody_listens_is_unreachable(tmp_path: Path) -> None:
    with _listening("127.0.0.1:0") as listener:
        text = listener.text
    with pytest.raises(Unreachable, match=r"nobody listens.*start vmm receive") as caught:
        Connector(parse(text), LIMIT).connect()
    assert caught.value.refused
    with pytest.raises(Unreachable, match="there is no such socket") as caught:
        Connector(parse(f"unix:{tmp_path}/none"), LIMIT).connect()
    assert not caught.value.refused
    with pytest.raises(Unreachable, match="could not be started"):
        Connector(parse("exec:/no/such/program"), LIMIT).connect()
    with pytest.raises(Unreachable, match="is not known"):
        Connector(parse("no-such-host.invalid:1"), LIMIT).connect()


def test_an_address_in_use_is_not_listened_on() -> None:
    with _listening("127.0.0.1:0") as listener, pytest.raises(MigrationError, match="it is in use"):
        Listener(parse(listener.text))


@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_silence_is_not_waited_for_without_end(kind: str) -> None:
    if kind == "socket":
        left, right = socket.socketpair()
        ours: Line = SocketLine(left, "them", 0.1)
        closing: list[socket.socket | int] = [right]
    else:
        incoming, theirs = os.pipe()
        other, outgoing = os.pipe()
        ours, closing = PipeLine(incoming, outgoing, "them", 0.1), [theirs, other]
    with pytest.raises(LineLost, match=r"nothing moved on the line to them for 0\.1 s"):
        ours.receive_into(memoryview(bytearray(1)))
    with pytest.raises(LineLost, match=r"nothing moved on the line to them for 0\.1 s"):
        ours.send(bytes(16 << 20))
    ours.close()
    for end in closing:
        os.close(end) if isinstance(end, int) else end.close()


def test_a_line_that_ends_inside_a_message_is_lost() -> None:
    left, right = socket.socketpair()
    ours = SocketLine(left, "them", LIMIT)
    right.send(b"half")
    right.close()
    with pytest.raises(LineLost, match="them closed the line"):
        ours.receive_into(memoryview(bytearray(8)))
    with pytest.raises(LineLost):
        ours.send(bytes(1 << 20))
    ours.close()


def test_a_connector_asks_the_same_host_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with _listening("localhost:0") as listener:
        connector = Connector(parse(f"localhost:{listener.text.rpartition(':')[2]}"), LIMIT)
        connector.connect().close()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the name was resolved again"))
        connector.connect().close()


# --- whose process --------------------------------------------------------------------------------


@contextmanager
def other_process() -> Iterator[tuple[subprocess.Popen[str], Incarnation]]:
    """A process that waits for its end, and who it says that it is."""
    program = "from vmm.migration.incarnation import Incarnation; print(Incarnation.own().text, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        yield child, Incarnation(child.stdout.readline().strip())


def test_a_process_is_known_to_be_gone_only_when_it_is() -> None:
    with other_process() as (child, incarnation):
        witness = Witness(incarnation)
        both = Witness(incarnation, Incarnation.own())
        assert witness.watches and not witness.gone() and both.watches
        child.kill()
        assert witness.gone(LIMIT) and not both.gone()
        witness.close()
        both.close()
    assert not witness.watches and not witness.gone()
    assert not Witness(Incarnation.own(), Incarnation("elsewhere")).watches
    # Who is gone already, or has another start time, may be anybody.
    assert not Witness(incarnation).watches
    own = Incarnation.own().text
    assert not Witness(Incarnation(own + "1")).watches
    assert not Witness(Incarnation("other-boot " + own.partition(" ")[2])).watches


@pytest.mark.parametrize("text", ["", " ", "a b c d", "boot 1 99999999999999999999 1", "boot 1 -1 1"])
def test_a_malformed_incarnation_is_not_watched(text: str) -> None:
    assert not Witness(Incarnation(text)).watches
