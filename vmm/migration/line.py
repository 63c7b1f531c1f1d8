# SPDX-License-Identifier: Apache-2.0
"""A line: bytes both ways, over a socket, TLS or two pipes. Whatever waits on it gives up after its timeout."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from abc import ABC, abstractmethod
from typing import NoReturn

from vmm.migration.errors import LineLost

__all__ = ["Buffer", "ChildLine", "Line", "PipeLine", "SocketLine", "shut", "tune", "wait"]

Buffer = bytes | bytearray | memoryview
_IOV_MAX = 1024
_PIPE_SIZE = 1 << 20
_GLANCE = 0.25  # seconds between looks whether a line of pipes was cut
# Who waits in the kernel hears of a dead peer from it: seconds to the first probe, between probes, and how many.
_KEEPALIVE = (socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)


class Line(ABC):
    """Bytes to and from ``name``; ``timeout`` is how long in seconds nothing may move before LineLost."""

    def __init__(self, name: str, timeout: float) -> None:
        self.name = name
        self.timeout = timeout
        # A blocking socket with timeouts of its own, which the shim may use by itself; None where there is none.
        self.descriptor: int | None = None

    @abstractmethod
    def send(self, *buffers: Buffer) -> None:
        """Send all buffers; LineLost if that cannot be done."""

    @abstractmethod
    def receive_into(self, view: memoryview) -> None:
        """Fill all of ``view``; LineLost if the line ends before."""

    @abstractmethod
    def readable(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for something to receive, which may be the line's end."""

    @abstractmethod
    def fileno(self) -> int:
        """The descriptor to poll for input."""

    @abstractmethod
    def cut(self) -> None:
        """Have whatever waits on the line, in another thread, fail with LineLost at once."""

    @abstractmethod
    def close(self) -> None:
        """Close the line; a second call does nothing."""

    def fail(self, number: int) -> NoReturn:
        """Raise the LineLost of an errno that the shim met: ENODATA is the line's end."""
        if number == errno.ENODATA:
            self._ended()
        if number == errno.EAGAIN:
            self._silent()
        self._broken(OSError(number, os.strerror(number)))

    def _ended(self) -> NoReturn:
        raise LineLost(f"{self.name} closed the line")

    def _silent(self) -> NoReturn:
        raise LineLost(f"nothing moved on the line to {self.name} for {self.timeout:g} s")

    def _broken(self, error: OSError) -> NoReturn:
        if error.errno == errno.EPIPE:
            self._ended()
        raise LineLost(f"the line to {self.name} broke: {error.strerror or error}") from error


def wait(descriptor: int, event: int, timeout: float) -> bool:
    """Wait for an event of poll(2); False after ``timeout`` seconds."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(max(0, int(timeout * 1000))))


class SocketLine(Line):
    """A TCP or Unix stream socket. The kernel keeps the timeouts: no call more than the transfer needs."""

    def __init__(self, connected: socket.socket, name: str, timeout: float) -> None:
        super().__init__(name, timeout)
        self._socket = connected
        connected.settimeout(None)
        limit = struct.pack("@ll", int(timeout), int(timeout % 1 * 1_000_000) or int(timeout == 0))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        tune(connected, timeout)
        self.descriptor = connected.fileno()

    def send(self, *buffers: Buffer) -> None:
        left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        try:
            while left:
                sent = self._socket.sendmsg(left[:_IOV_MAX])
                left = _rest(left, sent)
        except BlockingIOError:
            self._silent()
        except OSError as error:
            self._broken(error)

    def receive_into(self, view: memoryview) -> None:
        done = 0
        try:
            while done < len(view):
                got = self._socket.recv_into(view[done:], 0, socket.MSG_WAITALL)
                if not got:
                    self._ended()
                done += got
        except BlockingIOError:
            self._silent()
        except OSError as error:
            self._broken(error)

    def readable(self, timeout: float) -> bool:
        return wait(self._socket.fileno(), select.POLLIN, timeout)

    def fileno(self) -> int:
        return self._socket.fileno()

    def cut(self) -> None:
        shut(self._socket)

    def close(self) -> None:
        self._socket.close()


def shut(connected: socket.socket) -> None:
    """End a connection in both directions, without closing its descriptor."""
    with contextlib.suppress(OSError):  # it may be gone already
        connected.shutdown(socket.SHUT_RDWR)


class PipeLine(Line):
    """Two descriptors, one for each direction: pipes, or whatever was inherited. Both are closed with the line."""

    def __init__(self, incoming: int, outgoing: int, name: str, timeout: float) -> None:
        super().__init__(name, timeout)
        self._cut = False
        self._incoming, self._outgoing = incoming, outgoing
        for descriptor in {incoming, outgoing}:
            os.set_blocking(descriptor, False)
            with contextlib.suppress(OSError):  # not a pipe, or more than a user may have
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)

    def send(self, *buffers: Buffer) -> None:
        left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while left:
            try:
                left = _rest(left, os.writev(self._outgoing, left[:_IOV_MAX]))
            except BlockingIOError:
                if not self._wait(self._outgoing, select.POLLOUT):
                    self._silent()
            except OSError as error:
                self._broken(error)

    def receive_into(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                got = os.readv(self._incoming, [view[done:]])
            except BlockingIOError:
                if not self._wait(self._incoming, select.POLLIN):
                    self._silent()
                continue
            except OSError as error:
                self._broken(error)
            if not got:
                self._ended()
            done += got

    def _wait(self, descriptor: int, event: int) -> bool:
        """Wait as wait() does, and look now and then whether the line has been cut: no descriptor tells."""
        deadline = time.monotonic() + self.timeout
        while not self._cut and (left := deadline - time.monotonic()) > 0:
            if wait(descriptor, event, min(left, _GLANCE)):
                return True
        if self._cut:
            raise LineLost(f"the line to {self.name} was cut")
        return False

    def readable(self, timeout: float) -> bool:
        return wait(self._incoming, select.POLLIN, timeout)

    def fileno(self) -> int:
        return self._incoming

    def cut(self) -> None:
        self._cut = True

    def close(self) -> None:
        descriptors = {self._incoming, self._outgoing} - {-1}
        self._incoming = self._outgoing = -1
        for descriptor in descriptors:
            os.close(descriptor)


class ChildLine(PipeLine):
    """A child process whose input and output are the line."""

    def __init__(self, child: subprocess.Popen[bytes], name: str, timeout: float) -> None:
        assert child.stdin and child.stdout
        self._child = child
        super().__init__(os.dup(child.stdout.fileno()), os.dup(child.stdin.fileno()), name, timeout)
        child.stdin.close()
        child.stdout.close()

    def exit_status(self, timeout: float) -> int | None:
        """Wait for the child's end and return its status, negative for a signal; None if it still runs."""
        deadline = time.monotonic() + timeout
        while (status := self._child.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return status

    def close(self) -> None:
        """Close the pipes. The child is left running: it may run the guest by now."""
        super().close()


def _rest(buffers: list[memoryview], sent: int) -> list[memoryview]:
    """Return what is left of buffers after ``sent`` bytes of them."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [buffer[sent:], *buffers[index + 1 :]]
        sent -= len(buffer)
    return []


def tune(connected: socket.socket, timeout: float) -> None:
    """Have a TCP connection send at once, and notice within ``timeout`` seconds or so that the peer is gone."""
    if connected.family == socket.AF_UNIX:
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(timeout * 1000)))
    for option, value in _KEEPALIVE:
        connected.setsockopt(socket.IPPROTO_TCP, option, value)
    with contextlib.suppress(OSError):  # who connected may be gone again
        if connected.getsockname()[0] == connected.getpeername()[0]:
            # Inside one host there is no network to be fair to, and a sender that stops to look at pages would be
            # paced as if there were (BBR).
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
