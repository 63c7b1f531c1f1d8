# SPDX-License-Identifier: Apache-2.0
"""The side that gets the guest: one process for one guest, from HELLO to the guest's end.

What comes in is checked before a kernel sees any of it, and limited in size. The guest does not run before
HANDOVER has been read; once it has been discarded, it never does.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vmm._kvm import ffi, lib
from vmm.arch import ARCHITECTURE
from vmm.guest.base import BaseGuest
from vmm.guest.payload import PayloadError, load, names
from vmm.kvm.ioctl import KvmError
from vmm.kvm.memory import MemoryUnavailable
from vmm.kvm.system import Kvm, KvmUnavailable
from vmm.migration.errors import LineLost, MigrationError, PeerAborted, ProtocolError
from vmm.migration.handover import RECEIVER, Act, At, Event, Machine
from vmm.migration.incarnation import Incarnation
from vmm.migration.link import MARGIN, Link
from vmm.migration.messages import TOKEN_SIZE, Final, Hello, Ready, Resolve, Welcome, pack_state, unpack_state
from vmm.migration.pages import Key
from vmm.migration.precopy import MemoryReceiver
from vmm.migration.resolve import NEVER_RAN
from vmm.migration.runner import Journal, Lease, Outcome, Runner
from vmm.migration.wire import Channel, Kind
from vmm.state.capture import capture, finish, identity, prepare
from vmm.state.errors import StateRefused
from vmm.state.policy import Policy
from vmm.state.value import VmState

__all__ = ["Options", "Target"]

_FAILURES = (MigrationError, StateRefused, PayloadError, KvmError, KvmUnavailable, MemoryUnavailable, OSError)
# How long a source has to say that it knows, when the guest has ended.
_FAREWELL = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What is taken. ``check`` returns why a guest of those facts (vmm probe) cannot come, nothing if it can.

    ``memory`` is the largest guest in bytes; ``reread`` compares all memory once more before the handover;
    ``patience`` are the seconds that it waits at most for a source whose line was lost at the handover;
    ``populate`` has the host give all of the guest's memory before it is copied, and not page by page;
    ``finished`` gets the guest and how it ended.
    """

    memory: int = 4 << 30
    limit: float = 3600.0
    patience: int = 300
    reread: bool = False
    populate: bool = False
    policy: Policy = field(default_factory=Policy)
    check: Callable[[Hello], list[str]] = lambda hello: []
    finished: Callable[[BaseGuest, Outcome], None] = lambda guest, outcome: None
    lease: str | None = None
    journal: str | None = None
    idle_on_halt: bool = False


class Target:
    """Receives one guest over a channel whose HELLO has been read."""

    def __init__(
        self, channel: Channel, hello: Hello, link: Link, options: Options, say: Callable[[str], None]
    ) -> None:
        self._channel: Channel | None = channel
        self._hello, self._link, self._options, self._say = hello, link, options, say
        self._machine = Machine(RECEIVER, At.FILLING)
        self._journal = Journal(options.journal)
        self._token = secrets.token_bytes(TOKEN_SIZE)
        self._patience = min(hello.patience, options.patience)
        self._timeout = channel.line.timeout
        self._kvm: Kvm | None = None
        self._guest: BaseGuest | None = None
        self._memory: MemoryReceiver | None = None
        self._runner: Runner | None = None
        self._reason = ""
        self._deadline = 0.0

    def serve(self) -> int:
        """Receive the guest, run it to its end, and return 0 or 1 as it ended, NEVER_RAN or DIED."""
        try:
            self._receive()
            self._deadline = time.monotonic() + self._patience + MARGIN
            while self._machine.at is At.READY:
                self._drive(self._next(self._deadline))
            if self._machine.at is At.DISCARDED:
                return NEVER_RAN
            return self._run()
        except BaseException as error:
            # Somebody stopped this process, or it has a fault: a guest that has not started never will.
            self._fail(f"vmm receive was stopped ({type(error).__name__})")
            raise
        finally:
            self._close()

    # --- until the guest is here ------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            state = self._fill()
        except PeerAborted as error:
            self._give_up(Event.ABORTED, f"the source gave up: {error}")
        except LineLost as error:
            self._give_up(Event.LINE_LOST, str(error))
        except _FAILURES as error:
            self._fail(str(error))
        else:
            self._ready = Ready(self._token, pack_state(state)).pack()
            self._link.ready(self._hello.identifier, self._token, self._patience)
            self._journal.write("ready")
            self._drive(Event.VERIFIED)

    def _fill(self) -> VmState:
        """Take the guest and return its state as it is here."""
        channel, hello = self._channel, self._hello
        assert channel
        self._admit(hello)
        welcome = Welcome(hello.codec, self._patience, Incarnation.own(), self._link.keeper)
        channel.send(Kind.WELCOME, welcome.pack())
        shell = unpack_state(channel.receive(Kind.CONFIG).body, "CONFIG")
        self._same_guest(shell, "CONFIG")
        guest = self._prepare(shell)
        channel.send(Kind.PREPARED)
        memory = self._memory = MemoryReceiver(channel, guest.vm.memories, Key(hello.key), codec=hello.codec)
        final = self._fill_memory(channel, memory)
        memory.compare(final.digests, reread=self._options.reread)
        state = unpack_state(final.state, "FINAL")
        self._same_guest(state, "FINAL")
        finish(guest, state, self._options.policy)
        return capture(guest, memory=False)

    def _prepare(self, shell: VmState) -> BaseGuest:
        """Make the VM, and all else that need not wait until the guest is paused."""
        options = self._options
        self._kvm = Kvm()
        self._rehearse(self._kvm, shell)
        guest = self._guest = prepare(self._kvm, shell)
        if options.populate:
            self._populate(guest)
        lease = Lease(options.lease)
        self._runner = Runner(
            guest, limit=options.limit, lease=lease, journal=self._journal, idle_on_halt=options.idle_on_halt
        )
        return guest

    def _admit(self, hello: Hello) -> None:
        """Refuse what cannot run here, before there is a VM."""
        if hello.arch != ARCHITECTURE:
            raise MigrationError(f"this is a guest for {hello.arch}, and the host is {ARCHITECTURE}")
        size = sum(size for _, size in hello.regions)
        if size > self._options.memory:
            raise MigrationError(
                f"the guest has {size >> 20} MiB of memory, and vmm receive takes {self._options.memory >> 20} MiB: "
                "raise --memory there"
            )
        if hello.payload.name not in names():
            raise MigrationError(
                f"the receiver has no payload {hello.payload.name}: its payloads are {', '.join(names())}"
            )
        if identity(load(hello.payload.name)) != hello.payload:
            raise MigrationError(
                f"the payload {hello.payload.name} is another build over there: use the same release on both sides"
            )
        if blockers := self._options.check(hello):
            raise MigrationError("; ".join(blockers))

    def _rehearse(self, kvm: Kvm, shell: VmState) -> None:
        """Restore the registers to a VM that is thrown away: what this KVM refuses is known before any copying."""
        with prepare(kvm, shell) as guest:
            finish(guest, shell, Policy(self._options.policy.tolerate))
            capture(guest, memory=False)

    @staticmethod
    def _populate(guest: BaseGuest) -> None:
        for memory in guest.vm.memories:
            result = lib.vmm_populate(ffi.cast("void *", memory.address), memory.size)
            if result < 0:
                raise MemoryUnavailable(
                    f"{memory.size >> 20} MiB of guest memory are not to be had here: {os.strerror(-result)}"
                )

    def _same_guest(self, state: VmState, what: str) -> None:
        regions = tuple((region.gpa, region.size) for region in state.memory)
        if (state.arch, state.payload, regions) != (self._hello.arch, self._hello.payload, self._hello.regions):
            raise ProtocolError(f"the state in {what} is of another guest than HELLO announced")

    @staticmethod
    def _fill_memory(channel: Channel, memory: MemoryReceiver) -> Final:
        while True:
            message = channel.receive(Kind.MEMORY, Kind.ROUND, Kind.FINAL)
            if message.kind is Kind.MEMORY:
                memory.take(message.body)
            elif message.kind is Kind.ROUND:
                memory.settle()
                channel.send(Kind.ROUND_DONE)
            else:
                return Final.unpack(message.body)

    # --- once it is here --------------------------------------------------------------------------

    def _next(self, deadline: float) -> Event:
        """Wait for what happens next: a message, a new line, the guest's end, or the time being up."""
        if not self._channel and not self._link.again:
            self._reason = "the line ended before HANDOVER came, and there is no other one"
            return Event.GAVE_UP
        if not (self._channel and self._channel.line.readable(0)):
            poll = select.poll()
            poll.register(self._link.fileno(), select.POLLIN)
            if self._channel:
                poll.register(self._channel.line.fileno(), select.POLLIN)
            if self._machine.at is At.RUNNING and self._runner:
                poll.register(self._runner.ended, select.POLLIN)
            ready = [descriptor for descriptor, _ in poll.poll(max(0.0, (deadline - time.monotonic()) * 1000))]
            if not ready:
                return Event.GAVE_UP
            if self._link.fileno() in ready:
                return self._new_line()
            if not (self._channel and self._channel.line.fileno() in ready):
                return Event.GAVE_UP  # the guest has ended
        return self._heard(Kind.HANDOVER, Kind.SETTLED)

    def _new_line(self) -> Event:
        """Somebody asks about the guest: from now on on this line. Or the keeper wants its place."""
        taken = self._link.take_line(self._timeout)
        if taken is True:
            if self._machine.at is At.READY:
                self._reason = "its source was silent, and another guest needed the place"
            return Event.GAVE_UP
        self._drop_line()
        if taken is False:
            return Event.LINE_LOST
        self._channel = taken
        return self._heard(Kind.RESOLVE)

    def _heard(self, *kinds: Kind) -> Event:
        assert self._channel
        try:
            message = self._channel.receive(*kinds)
            if message.kind is Kind.RESOLVE:
                told = Resolve.unpack(message.body)
                self._check_token(told.token)
                return Event.RESOLVE
            self._check_token(message.body)
        except PeerAborted as error:
            self._reason = f"the source gave up: {error}"
            return Event.ABORTED
        except MigrationError:
            self._drop_line()
            return Event.LINE_LOST
        if message.kind is Kind.SETTLED:
            return Event.SETTLED
        return Event.HANDOVER if self._may_start() else Event.FAILED

    def _check_token(self, token: bytes) -> None:
        if not hmac.compare_digest(token, self._token):
            raise ProtocolError("a message that names another token")

    def _may_start(self) -> bool:
        if self._machine.at is not At.READY:
            return True
        assert self._runner
        try:
            self._runner.reserve()
        except MigrationError as error:
            self._reason = str(error)
            return False
        return True

    def _run(self) -> int:
        """Answer questions while the guest runs; say how it ended."""
        assert self._runner and self._guest
        outcome = None
        while outcome is None:
            if self._machine.at is At.RUNNING and (self._channel or self._link.again):
                self._drive(self._next(time.monotonic() + self._options.limit + MARGIN))
                outcome = self._runner.wait(0)
            else:
                outcome = self._runner.wait()
        self._link.ended()
        self._options.finished(self._guest, outcome)
        farewell = time.monotonic() + _FAREWELL
        while self._machine.at is At.RUNNING and self._channel and time.monotonic() < farewell:
            if self._channel.line.readable(max(0.0, farewell - time.monotonic())):
                self._drive(self._heard(Kind.HANDOVER, Kind.SETTLED))
        return 0 if outcome.well else 1

    # --- acts -------------------------------------------------------------------------------------

    def _drive(self, event: Event) -> None:
        if event is Event.GAVE_UP and not self._reason:
            self._reason = "HANDOVER did not come in time"
        for act in self._machine.on(event):
            self._do(act)

    def _do(self, act: Act) -> None:
        if act is Act.START:
            assert self._runner
            self._link.started()
            self._runner.go()
        elif act is Act.DISCARD:
            self._discard()
        elif act is Act.SETTLE:
            self._link.settled(self._hello.identifier)
            self._link.outlive()
        elif act is Act.AWAIT:
            self._link.alone()
        else:
            self._send(Kind(act.value))

    def _send(self, kind: Kind) -> None:
        if not self._channel:
            return
        body = self._ready if kind is Kind.READY else b""
        if kind in (Kind.ABORT, Kind.DISCARDED):
            body = self._reason.encode()[:1024]
        try:
            self._channel.send(kind, body)
        except LineLost:
            self._drop_line()

    def _discard(self) -> None:
        self._journal.write("discard", reason=self._reason)
        self._say(f"the guest never ran here: {self._reason}")
        self._close_guest()

    def _fail(self, reason: str) -> None:
        self._give_up(Event.FAILED, reason)

    def _give_up(self, event: Event, reason: str) -> None:
        self._reason = reason
        for act in self._machine.on(event):
            self._do(act)

    def _drop_line(self) -> None:
        if self._channel:
            self._channel.line.close()
            self._channel = None

    def _close_guest(self) -> None:
        if self._memory:
            self._memory.close()
            self._memory = None
        if self._runner:
            self._runner.close()
            self._runner = None
        if self._guest:
            # An exception under way may hold views of the memory; the process ends in a moment then.
            with contextlib.suppress(BufferError):
                self._guest.close()
            self._guest = None

    def _close(self) -> None:
        self._close_guest()
        self._drop_line()
        if self._kvm:
            self._kvm.close()
