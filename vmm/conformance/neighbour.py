# SPDX-License-Identifier: Apache-2.0
"""Company for a VMM: a process on its CPU that is never done, and a child whose death is a finding."""

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
from vmm.arch import ARCHITECTURE
from vmm.conformance.expect import TimedOut, Violation, looks
from vmm.conformance.needs import Need
from vmm.guest.base import GuestError
from vmm.kvm.exits import Deadline
from vmm.probe.host import Host

__all__ = ["CIPHERS", "KERNEL_VECTORS", "Neighbour", "Step", "encrypting", "in_child"]

# What a neighbour does again and again.
Step = Callable[[], object]

# Drivers of the kernel's crypto API that use the vector registers, oldest names first: arch/arm64/crypto/aes-glue.c;
# arch/x86/crypto/aesni-intel_glue.c.
CIPHERS = {
    "arm64": ("ctr-aes-ce", "ctr-aes-neon", "ctr-aes-neonbs", "cts-cbc-aes-ce", "cts-cbc-aes-neon"),
    "x86": ("ctr-aes-aesni", "cbc-aes-aesni", "ctr-aes-aesni-avx", "ctr-aes-vaes-avx2", "ctr-aes-vaes-avx512"),
}.get(ARCHITECTURE, ())
_KEY, _IV, _DATA = bytes(16), bytes(16), bytes(8 << 10)


def _cipher() -> socket.socket | None:
    """Return an AF_ALG socket of the first of the ciphers that this kernel has."""
    if not hasattr(socket, "AF_ALG"):  # a Python built without
        return None
    for name in CIPHERS:
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


def _kernel_vectors(host: Host) -> tuple[bool, str]:
    found = _cipher()
    if found is None:
        return False, f"none of {', '.join(CIPHERS)} can be bound to a socket of AF_ALG"
    with found:
        return True, "there is one"


KERNEL_VECTORS = Need("a cipher of the kernel that uses the vector registers", _kernel_vectors)


def encrypting() -> Step:
    """Return a step that has the kernel encrypt, with the CPU's vector registers, on the CPU that takes it."""
    cipher: Any = _cipher()
    cipher.setsockopt(socket.SOL_ALG, socket.ALG_SET_KEY, _KEY)
    operation, _ = cipher.accept()

    def step() -> None:
        operation.sendmsg_afalg([_DATA], op=socket.ALG_OP_ENCRYPT, iv=_IV)
        operation.recv(len(_DATA))

    return step


class Neighbour:
    """A process that takes the step of ``begin()`` without end, on one CPU; ``operations`` says how often.

    ``begin`` is called in the process. Where a step returns something true it is the last one: ``failure`` is it.
    """

    def __init__(self, cpu: int, begin: Callable[[], Step]) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                if lib.vmm_die_with_parent(parent) == 0:
                    self._work(cpu, begin)
            finally:
                os._exit(1)

    def _work(self, cpu: int, begin: Callable[[], Step]) -> None:
        os.sched_setaffinity(0, {cpu})
        step = begin()
        while not (failure := step()):
            self._shared[:8] = (self.operations + 1).to_bytes(8, "little")
        text = str(failure).encode()[: mmap.PAGESIZE - 8]
        self._shared[8 : 8 + len(text)] = text

    @property
    def operations(self) -> int:
        """How many steps it has taken."""
        return int.from_bytes(self._shared[:8], "little")

    @property
    def failure(self) -> str:
        """What its last step returned; empty as long as it goes on."""
        return self._shared[8:].rstrip(b"\0").decode(errors="replace")

    def wait(self, seconds: float) -> None:
        """Wait until it has taken another step; RuntimeError if it does not in so many ``seconds``."""
        done, until = self.operations, time.monotonic() + seconds
        while not self.has_worked_since(done):
            if time.monotonic() > until:
                raise RuntimeError(f"the neighbour has done nothing for {seconds:g} seconds: does it run at all?")
            time.sleep(0.001)

    def has_worked_since(self, done: int) -> bool:
        """Whether ``operations`` is past ``done``, or a step has failed; RuntimeError if the process has died."""
        if self._pid and os.waitpid(self._pid, os.WNOHANG)[0]:
            self._pid = 0
        if not self._pid and not self.failure:
            raise RuntimeError("the neighbour on the vCPU's CPU has died")
        return self.operations > done or bool(self.failure)

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
