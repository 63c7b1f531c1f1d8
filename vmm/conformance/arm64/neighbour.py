# SPDX-License-Identifier: Apache-2.0
"""Company for a VMM: a process on its CPU that has the kernel use AdvSIMD, and a child whose death is a finding."""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Self

from vmm._kvm import lib
from vmm.conformance.expect import TimedOut, Violation, looks
from vmm.conformance.needs import Need
from vmm.guest.base import GuestError
from vmm.kvm.exits import Deadline
from vmm.probe.host import Host

__all__ = ["KERNEL_NEON", "Neighbour", "in_child"]

# Drivers of the kernel's crypto API that use the vector registers. arch/arm64/crypto/aes-glue.c, sha2-ce-glue.c.
_CIPHERS = ("ctr-aes-ce", "ctr-aes-neon", "ctr-aes-neonbs", "cts-cbc-aes-ce", "cts-cbc-aes-neon")
_KEY, _IV, _DATA = bytes(16), bytes(16), bytes(32 << 10)


def _cipher() -> socket.socket | None:
    """Return an AF_ALG socket of the first of the ciphers that this kernel has."""
    if not hasattr(socket, "AF_ALG"):  # a Python built without
        return None
    for name in _CIPHERS:
        try:
            made = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
        except OSError:
            return None
        try:
            made.bind(("skcipher", name))
            return made
        except OSError:
            made.close()
    return None


def _kernel_neon(host: Host) -> tuple[bool, str]:
    found = _cipher()
    if found is None:
        return False, f"none of {', '.join(_CIPHERS)} can be bound to a socket of AF_ALG"
    with found:
        return True, "there is one"


KERNEL_NEON = Need("a cipher of the kernel that uses AdvSIMD", _kernel_neon)


class Neighbour:
    """A process that encrypts through the kernel without end, on one CPU; ``operations`` says how often."""

    def __init__(self, cpu: int) -> None:
        self._shared = mmap.mmap(-1, 8)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                if lib.vmm_die_with_parent(parent) == 0:
                    self._work(cpu)
            finally:
                os._exit(1)

    def _work(self, cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        cipher: Any = _cipher()
        cipher.setsockopt(socket.SOL_ALG, socket.ALG_SET_KEY, _KEY)
        operation, _ = cipher.accept()
        while True:
            operation.sendmsg_afalg([_DATA], op=socket.ALG_OP_ENCRYPT, iv=_IV)
            operation.recv(len(_DATA))
            self._shared[:] = (self.operations + 1).to_bytes(8, "little")

    @property
    def operations(self) -> int:
        """How often the kernel has encrypted since the process began."""
        return int.from_bytes(self._shared[:], "little")

    def wait(self, seconds: float) -> None:
        """Wait until the kernel has encrypted again; RuntimeError if it does not in so many ``seconds``."""
        done, until = self.operations, time.monotonic() + seconds
        while not self.has_worked_since(done):
            if time.monotonic() > until:
                raise RuntimeError(
                    f"the kernel has not encrypted anything for {seconds:g} seconds: does it run at all?"
                )
            time.sleep(0.001)

    def has_worked_since(self, done: int) -> bool:
        """Whether ``operations`` is past ``done``; RuntimeError if that can no longer come about."""
        if self._pid and os.waitpid(self._pid, os.WNOHANG)[0]:
            self._pid = 0
        if not self._pid:
            raise RuntimeError("the neighbour that had the kernel use AdvSIMD has died")
        return self.operations > done

    def close(self) -> None:
        """End the process."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _end(pid: int) -> int:
    """Wait for a child to end; return its wait status."""
    return os.waitpid(pid, 0)[1]


def in_child(what: str, work: Callable[[], None], watch: Callable[[int], int] = _end) -> None:
    """Do ``work`` in a process of its own: what it raises is raised here; its death by a signal is a Violation.

    ``watch`` gets the process and returns its wait status when it has ended.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        failure: BaseException | None = RuntimeError("the process that was to do it lost its parent")
        try:
            if lib.vmm_die_with_parent(parent) == 0:
                work()
                failure = None
        except BaseException as error:
            failure = error
        finally:
            os.write(writer, _told(failure))
            os._exit(0)
    os.close(writer)
    status = watch(pid)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read()
    if os.WIFSIGNALED(status):
        raise Violation(what, "a VMM that lives", f"death by {signal.Signals(os.WTERMSIG(status)).name}")
    kind, texts = json.loads(told)
    if kind == "violation":
        raise Violation(f"{what}: {texts[0]}", *texts[1:])
    if kind == "late":
        raise TimedOut(f"{what}: {texts[0]}")
    if kind == "failure":
        raise RuntimeError(f"{what}: {texts[0]}")
    looks.count += 1  # the child's own count has ended with it


def _told(failure: BaseException | None) -> bytes:
    """What the parent of a process has to know of how its work ended."""
    if isinstance(failure, Violation):
        found = failure.what, failure.expected, failure.observed[:2000], failure.finding
        return json.dumps(["violation", found]).encode()
    late = isinstance(failure, TimedOut) or (isinstance(failure, GuestError) and isinstance(failure.exit, Deadline))
    kind = "done" if failure is None else "late" if late else "failure"
    return json.dumps([kind, [str(failure)]]).encode()
