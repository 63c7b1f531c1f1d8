# SPDX-License-Identifier: Apache-2.0
"""Where a line comes from: addresses, connecting, listening.

An address is one of

    HOST:PORT, [V6]:PORT    TCP; port 0 listens on any
    unix:PATH               a Unix socket
    exec:COMMAND            a child whose input and output are the line (to connect only)
    fd:N, fd:IN,OUT         descriptors that were inherited
    -                       standard input and output

TLS goes over TCP and Unix sockets. Source for what a refused connection means: tcp(7), connect(2).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import shlex
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmm.migration.errors import MigrationError, Unreachable
from vmm.migration.line import ChildLine, Line, PipeLine, SocketLine

if TYPE_CHECKING:
    from vmm.migration.tls import Tls

__all__ = ["TIMEOUT", "Address", "Connector", "Listener", "inherited_line", "loopback", "parse"]

TIMEOUT = 30.0
_BACKLOG = 16


@dataclass(frozen=True, slots=True)
class Address:
    """One end of a line, as written in ``text``; ``kind`` is tcp, unix, exec, fd or stdio."""

    kind: str
    text: str
    host: str = ""
    port: int = 0
    path: str = ""
    descriptors: tuple[int, ...] = ()

    @property
    def is_socket(self) -> bool:
        """Can it be listened on, and connected to again?"""
        return self.kind in ("tcp", "unix")


def parse(text: str) -> Address:
    """Return the address that ``text`` is; MigrationError if it is none."""
    if text == "-":
        return Address("stdio", text)
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return Address("unix", text, path=rest)
    if kind == "exec" and rest:
        return Address("exec", text, path=rest)
    if kind == "fd":
        return Address("fd", text, descriptors=_descriptors(text, rest))
    host, colon, port = text.removeprefix("tcp:").rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise MigrationError(f"{text!r} is ambiguous: write an IPv6 address as [ADDRESS]:PORT")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise MigrationError(f"{text!r} is not an address: write HOST:PORT, unix:PATH, exec:COMMAND, fd:N or -")
    return Address("tcp", text, host, int(port))


def loopback(host: str) -> bool:
    """Is ``host`` an address of this host only, or its name?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _descriptors(text: str, numbers: str) -> tuple[int, ...]:
    parts = numbers.split(",")
    if not 1 <= len(parts) <= 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise MigrationError(f"{text!r} names no descriptors: write fd:N for a socket, fd:IN,OUT for pipes")
    found = tuple(map(int, parts))
    for number in found:
        try:
            os.fstat(number)
        except OSError:
            raise MigrationError(f"descriptor {number} of {text!r} is not open: let the parent pass it on") from None
    return found


def _resolve(address: Address, *, passive: bool) -> list[tuple[socket.AddressFamily, Any]]:
    if address.kind == "unix":
        return [(socket.AF_UNIX, address.path)]
    flags = socket.AI_PASSIVE if passive else 0
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
    except OSError as error:
        raise Unreachable(f"the host {address.host} is not known ({error.strerror}): check the name") from error
    return [(family, where) for family, _, _, _, where in found]


@contextlib.contextmanager
def _explained(address: Address, timeout: float) -> Iterator[None]:
    """Turn the errors of connecting into sentences."""
    try:
        yield
    except ConnectionRefusedError as error:
        raise Unreachable(
            f"nobody listens at {address.text} (connection refused): start vmm receive there first", refused=True
        ) from error
    except TimeoutError as error:
        raise Unreachable(
            f"{address.text} did not answer in {timeout:g} s: is the host up and the port open in its firewall?"
        ) from error
    except OSError as error:
        hint = {
            errno.ENOENT: "there is no such socket: start vmm receive there first",
            errno.EACCES: "no permission: it belongs to another user",
            errno.EHOSTUNREACH: "there is no route to that host",
            errno.ENETUNREACH: "there is no route to that network",
        }.get(error.errno or 0, error.strerror or str(error))
        raise Unreachable(f"{address.text} could not be connected to: {hint}") from error


class Connector:
    """Makes lines to one address; the later ones to the very host that answered the first."""

    def __init__(self, address: Address, timeout: float = TIMEOUT, tls: Tls | None = None) -> None:
        if tls and not address.is_socket:
            raise MigrationError(f"TLS needs TCP or a Unix socket, and {address.text} is neither")
        self.address = address
        self.timeout = timeout
        self._tls = tls
        self._peer: tuple[socket.AddressFamily, Any] | None = None

    @property
    def again(self) -> bool:
        """Can a lost line be replaced?"""
        return self.address.is_socket

    def connect(self) -> Line:
        """Return a new line; Unreachable or MigrationError."""
        if self.address.kind == "exec":
            return self._start()
        if not self.address.is_socket:
            return inherited_line(self.address, self.timeout)
        connected = self._connected()
        try:
            if self._tls:
                host = self.address.host or None
                return self._tls.connect(connected, host, self.address.text, self.timeout)
            return SocketLine(connected, self.address.text, self.timeout)
        except BaseException:
            connected.close()
            raise

    def _connected(self) -> socket.socket:
        candidates = [self._peer] if self._peer else _resolve(self.address, passive=False)
        failure: Unreachable | None = None
        for family, where in candidates:
            connected = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            connected.settimeout(self.timeout)
            try:
                with _explained(self.address, self.timeout):
                    connected.connect(where)
                    if family != socket.AF_UNIX and connected.getsockname() == connected.getpeername():
                        # A port of this host that nobody listens at may be connected with itself.
                        raise ConnectionRefusedError
            except Unreachable as error:
                connected.close()
                failure = error
                continue
            self._peer = family, where
            return connected
        assert failure
        raise failure

    def _start(self) -> Line:
        try:
            words = shlex.split(self.address.path)
            child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except (OSError, ValueError, IndexError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise Unreachable(f"{self.address.path!r} could not be started: {why}") from error
        return ChildLine(child, f"exec:{words[0]}", self.timeout)


def inherited_line(address: Address, timeout: float) -> Line:
    """Return the line of an address of kind fd or stdio; MigrationError where that is not a line.

    Of standard input and output copies are taken. What else is printed goes to standard error from now on, and only
    who has the line keeps it open: its other end is told at once when that process is gone.
    """
    if address.kind == "exec":
        raise MigrationError(f"cannot listen on {address.text}: use exec: with `vmm send`, which starts the receiver")
    if address.kind == "stdio":
        for stream in (sys.stdin, sys.stdout):
            if stream is None or os.isatty(stream.fileno()):
                raise MigrationError(
                    "standard input and output are a terminal: use - when another program provides them, "
                    "as in exec:'ssh HOST vmm receive -'"
                )
        sys.stdout.flush()
        incoming, outgoing = os.dup(0), os.dup(1)
        os.dup2(2, 1)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        return PipeLine(incoming, outgoing, "the other side", timeout)
    numbers = address.descriptors
    if len(numbers) == 1 and stat.S_ISSOCK(os.fstat(numbers[0]).st_mode):
        return SocketLine(socket.socket(fileno=numbers[0]), address.text, timeout)
    return PipeLine(numbers[0], numbers[-1], address.text, timeout)


class Listener:
    """A listening socket. ``text`` is the address to connect to, with the real port."""

    def __init__(self, address: Address, timeout: float = TIMEOUT, tls: Tls | None = None) -> None:
        if not address.is_socket:
            raise MigrationError(f"cannot listen on {address.text}")
        if tls:
            tls.context(server=True)  # wrong files are found now, not at the first guest
        self.address, self.timeout, self._tls = address, timeout, tls
        self._inode: tuple[int, int] | None = None
        try:
            self._socket = self._unix() if address.kind == "unix" else self._tcp()
        except OSError as error:
            hint = {
                errno.EADDRINUSE: "it is in use: stop who listens there, or take another port",
                errno.EADDRNOTAVAIL: "this host has no such address",
                errno.EACCES: "no permission",
            }.get(error.errno or 0, error.strerror or str(error))
            raise MigrationError(f"cannot listen on {address.text}: {hint}") from error
        self.text = address.text
        if address.kind == "tcp":
            host, port = self._socket.getsockname()[:2]
            self.text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _tcp(self) -> socket.socket:
        family, where = _resolve(self.address, passive=True)[0]
        listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
        return listening

    def _unix(self) -> socket.socket:
        self._remove_stale()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # The socket's mode decides who may connect, and there is no moment with another one.
        mask = os.umask(0o177)
        try:
            listening.bind(self.address.path)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
        finally:
            os.umask(mask)
        found = os.stat(self.address.path)
        self._inode = found.st_dev, found.st_ino
        return listening

    def _remove_stale(self) -> None:
        """Remove the socket of a listener that is gone; nothing else is ever removed."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(self.address.path).st_mode):
                return
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(self.address.path)
                except ConnectionRefusedError:
                    os.unlink(self.address.path)

    def fileno(self) -> int:
        """The descriptor to poll for somebody who connects."""
        return self._socket.fileno()

    def accept(self) -> tuple[socket.socket, str]:
        """Return who connected and what to call it; line() makes a line of it."""
        connected, where = self._socket.accept()
        name = f"{where[0]}:{where[1]}" if isinstance(where, tuple) else self.address.text
        return connected, name

    def line(self, connected: socket.socket, name: str) -> Line:
        """Return the line of who connected, after the TLS handshake if there is one."""
        if self._tls:
            return self._tls.accept(connected, name, self.timeout)
        return SocketLine(connected, name, self.timeout)

    def close_copy(self) -> None:
        """Close this process's copy after a fork; others keep listening."""
        self._socket.close()

    def close(self) -> None:
        """Stop listening and remove the Unix socket if it is still this one."""
        self._socket.close()
        if self._inode:
            with contextlib.suppress(OSError):
                found = os.stat(self.address.path)
                if (found.st_dev, found.st_ino) == self._inode:
                    os.unlink(self.address.path)
