# SPDX-License-Identifier: Apache-2.0
"""The side that has the guest: copies it while it runs, hands it over, and finds out what became of it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmm.arch import ARCHITECTURE
from vmm.kvm import coherence
from vmm.kvm.coherence import NonCoherentMemory
from vmm.kvm.dirty_log import open_log
from vmm.kvm.memory import MemoryUnavailable
from vmm.migration.convergence import Convergence, Decision, Limits
from vmm.migration.deadline import Bound
from vmm.migration.errors import LineLost, MigrationError, PeerAborted
from vmm.migration.handover import SOURCE, Act, At, Event, Machine
from vmm.migration.incarnation import Witness
from vmm.migration.messages import ID_SIZE, Codec, Final, Hello, Ready, Resolve, Welcome, pack_state, unpack_state
from vmm.migration.pages import KEY_SIZE, Key
from vmm.migration.precopy import MemorySender, Traffic
from vmm.migration.resolve import Doubt
from vmm.migration.runner import Journal, Runner
from vmm.migration.transport import Connector
from vmm.migration.wire import Channel, Kind
from vmm.state.capture import capture, identity
from vmm.state.compare import differences
from vmm.state.errors import StateRefused
from vmm.state.policy import Policy
from vmm.state.stream.files import save
from vmm.state.validate import normalise
from vmm.state.value import VmState

__all__ = ["Options", "Progress", "Report", "Source"]


@dataclass(frozen=True, slots=True)
class Options:
    """How to migrate. ``patience`` are the seconds to ask what became of a guest whose line was lost at the
    handover; ``longest_pause`` those that the guest may be paused before it at most (None: as long as it takes);
    ``deadline`` those from the begin to the handover at most (None: no bound), after which the guest stays here, or
    with ``force`` is stopped for what is left to be copied, however long that takes;
    ``non_coherent`` says whether memory whose writers bypass the caches is moved; ``hold`` is the file
    for the state of a guest whose fate is unknown."""

    limits: Limits = field(default_factory=Limits)
    compress: bool = False
    audit: bool = False
    patience: float = 60.0
    longest_pause: float | None = None
    deadline: float | None = None
    force: bool = False
    trust_refusal: bool = False
    hold: str | None = None
    policy: Policy = field(default_factory=Policy)
    non_coherent: coherence.Policy = coherence.Policy.REFUSE
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a migration is: the round, bytes sent in all, bytes of the round, bytes per second, share throttled."""

    round: int
    sent: int
    of_round: int
    bandwidth: float
    throttle: float


@dataclass(slots=True)
class Report:
    """How it went. ``at`` is KEPT, MOVED, LOST or HELD, ``reason`` says why not MOVED; seconds."""

    at: At
    reason: str = ""
    traffic: Traffic = field(default_factory=Traffic)
    downtime: float | None = None
    total: float = 0.0
    throttle: float = 0.0
    file: str | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values; times in seconds, sizes in bytes."""
        traffic = self.traffic
        return {
            "outcome": self.at.name.lower(), "reason": self.reason, "rounds": traffic.rounds, "bytes": traffic.sent,
            "pages": traffic.pages, "zero_pages": traffic.zeros, "dirty_bytes": traffic.dirty,
            "copy_seconds": traffic.seconds, "downtime_seconds": self.downtime, "total_seconds": self.total,
            "throttle": self.throttle, "file": self.file, "notes": self.notes,
        }  # fmt: skip


_SAVE_AGAIN = 5.0  # seconds
# Seconds after its deadline in which a migration may still say itself that it gives up, before its line is cut.
_GRACE = 0.5


class _GuestEnded(Exception):
    """The guest came to its end here; nothing is left to migrate."""


class _Forced(Exception):
    """The deadline has passed, and the guest is to be stopped all the same."""


class Source:
    """One migration of the guest of ``runner``, which may run or not; afterwards it runs on if it was KEPT."""

    def __init__(
        self,
        runner: Runner,
        connector: Connector,
        options: Options | None = None,
        *,
        journal: Journal | None = None,
        progress: Callable[[Progress], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.runner, self.options = runner, options or Options()
        self.report = Report(At.COPYING)
        self._guest = runner.guest
        self._connector = connector
        self._journal = journal or Journal()
        self._progress = progress or (lambda _: None)
        self._warn = warn or (lambda _: None)
        self._insists = True  # a guest in doubt is kept here until its state is in a file
        self._identifier = os.urandom(ID_SIZE)
        self._machine = Machine(SOURCE, At.COPYING)
        self._convergence = Convergence(self.options.limits)
        self._log = open_log(self._guest.vm, [processor.vcpu for processor in self._guest.processors])
        self._logging = False
        self._channel: Channel | None = None
        self._sender: MemorySender | None = None
        self._witness: Witness | None = None
        self._patience = self.options.patience

    def migrate(self) -> Report:
        """Migrate the guest and return how it went: afterwards the guest is where the report says."""
        began = time.monotonic()
        limit = self.options.deadline
        why = f"the migration was not over after {limit} s, its deadline"
        self._deadline = Bound(limit, self._cut, why, _GRACE)
        try:
            self._hand_over()
        except _GuestEnded:
            self._give_up(Event.FAILED, "the guest came to its end before it was handed over")
        except PeerAborted as error:
            self._give_up(Event.ABORTED, f"the receiver gave up: {error}")
        except LineLost as error:
            self._give_up(Event.LINE_LOST, self._deadline.why if self._deadline.cut else self._last_word(error))
        except (MigrationError, StateRefused, MemoryUnavailable, NonCoherentMemory, OSError) as error:
            self._give_up(Event.FAILED, str(error))
        except BaseException:
            # Ctrl-C, or a fault of ours: the other side hears of it, and a guest in doubt is not lost.
            if self._channel and self._machine.at in (At.COPYING, At.STOPPED):
                self._channel.abort("vmm send was interrupted")
            self._insists = False
            self._give_up(Event.GAVE_UP, "vmm send was interrupted")
            self.report.at = self._machine.at
            raise
        finally:
            self._let_go()
        self.report.at, self.report.total = self._machine.at, time.monotonic() - began
        self._journal.write("outcome", at=self._machine.at.name, reason=self.report.reason)
        return self.report

    def _hand_over(self) -> None:
        sender = self._introduce()
        self._copy(sender)
        assert self._channel and self._witness
        began = time.monotonic()
        self._machine.on(Event.STOP)
        self.runner.pause()
        self._guest_is_here()
        with self._pause_bound():
            ready = self._finish(sender)
        self._deadline.end()
        if not self.options.force:
            self._deadline.check()
        doubt = Doubt(
            self._machine, self._connector, self._channel, Resolve(self._identifier, ready.token), self._witness,
            patience=self._patience, trust_refusal=self.options.trust_refusal,
        )  # fmt: skip
        self._journal.write("handover")
        left = doubt.settle()
        self.report.downtime = time.monotonic() - began
        if self._machine.at is not At.MOVED:
            self.report.reason = doubt.reason
        for act in left:
            self._do(act)

    def _pause_bound(self) -> Bound:
        assert self._channel
        limit = self.options.longest_pause
        return Bound(
            limit, self._channel.line.cut, f"the guest was paused for {limit} s, the longest pause that is allowed"
        )

    def _cut(self) -> None:
        """The deadline is over, and nobody looks: the line is what is waited for."""
        if self._channel and not self.options.force:
            self._channel.line.cut()

    # --- before the handover ----------------------------------------------------------------------

    def _introduce(self) -> MemorySender:
        self.report.notes += coherence.plan(self._guest.vm.memories, self.options.non_coherent).lines()
        channel = self._channel = Channel(self._connector.connect())
        channel.open()
        key = Key(os.urandom(KEY_SIZE))
        hello = Hello(
            self._identifier, ARCHITECTURE, identity(self._guest.payload),
            tuple((memory.gpa, memory.size) for memory in self._guest.vm.memories),
            key.seed, Codec.ZSTD if self.options.compress else Codec.RAW, self.options.facts,
            int(self.options.patience),
        )  # fmt: skip
        channel.send(Kind.HELLO, hello.pack())
        welcome = Welcome.unpack(channel.receive(Kind.WELCOME).body)
        self._witness = Witness(welcome.process, welcome.keeper)
        self._patience = min(self.options.patience, welcome.patience)
        self._journal.write("welcome", process=welcome.process.text)
        channel.send(Kind.CONFIG, pack_state(self._shell()))
        channel.receive(Kind.PREPARED)
        sender = self._sender = MemorySender(
            channel, self._log, key, codec=welcome.codec, rate=self.options.limits.rate, check=self._check
        )
        self.report.traffic = sender.traffic
        return sender

    def _shell(self) -> VmState:
        """Capture what a VM like this one is made from; the guest is paused for that."""
        self.runner.pause()
        self._guest_is_here()
        try:
            return capture(self._guest, memory=False)
        finally:
            self.runner.go()

    def _copy(self, sender: MemorySender) -> None:
        """Send the memory while the guest runs, until little enough is left."""
        self.runner.ring_full = self._log.make_room
        self._logging = True
        self._log.start()
        decision = Decision.COPY
        while decision is Decision.COPY:
            try:
                sent, seconds = sender.round()
                self._check_deadline()
            except _Forced:
                self.report.notes.append(f"{self._deadline.why}: the guest was stopped to copy the rest")
                break
            self._guest_is_here()
            self._log.collect()
            left = self._log.count()
            decision = self._convergence.decide(sender.traffic.rounds, left, sent, seconds)
            self.runner.throttle = self.report.throttle = self._convergence.throttle
            self._journal.write("round", number=sender.traffic.rounds, sent=sent, left=left)
        if decision is Decision.ABORT:
            limits = self.options.limits
            raise MigrationError(
                f"the guest writes faster than can be sent: after {sender.traffic.rounds} rounds it would "
                f"be paused for {self._convergence.estimate(left) * 1000:.0f} ms, and "
                f"{limits.downtime * 1000:.0f} ms are allowed: allow more downtime, more rounds, or another --stall"
            )
        sender.digests()  # now, so that only what still changes has to be read while the guest is paused

    def _finish(self, sender: MemorySender) -> Ready:
        """Send what is left of the stopped guest; returns when the receiver has it all, and has it right."""
        assert self._channel
        self._log.collect()
        if self.options.audit:
            sender.audit()
        sender.last_round()
        state, notes = normalise(capture(self._guest, memory=False))
        self.report.notes += notes
        self._channel.send(Kind.FINAL, Final(pack_state(state), sender.digests()).pack())
        ready = Ready.unpack(self._channel.receive(Kind.READY).body)
        self.options.policy.refuse_all(
            (difference.name, f"{difference.where} here and there: {difference.values}")
            for difference in differences(state, unpack_state(ready.state, "READY"))
        )
        return ready

    def _guest_is_here(self) -> None:
        if self.runner.outcome is not None:
            raise _GuestEnded

    def _check_deadline(self) -> None:
        if not self.options.force:
            self._deadline.check()
        elif self._machine.at is At.COPYING and self._deadline.passed:
            raise _Forced

    def _check(self) -> None:
        """Between chunks: has the guest ended, or the receiver given up?"""
        assert self._channel
        if self._machine.at is At.COPYING:
            self._guest_is_here()
        self._check_deadline()
        if self._channel.line.readable(0):
            self._channel.receive()  # nothing is due: this is ABORT, or the line's end
        traffic = self.report.traffic
        self._progress(
            Progress(
                traffic.rounds, traffic.sent, traffic.dirty[-1], self._convergence.bandwidth, self.report.throttle
            )
        )

    # --- afterwards -------------------------------------------------------------------------------

    def _last_word(self, error: LineLost) -> str:
        """Return why the line was lost: the receiver may have said it before it closed the line."""
        try:
            if self._channel and self._channel.line.readable(0):
                self._channel.receive()
        except PeerAborted as said:
            return f"the receiver gave up: {said}"
        except MigrationError:
            pass
        return str(error)

    def _give_up(self, event: Event, reason: str) -> None:
        self.report.reason = reason
        for act in self._machine.on(Event.GAVE_UP if self._machine.at is At.DOUBT else event):
            self._do(act)

    def _do(self, act: Act) -> None:
        if act is Act.SEND_ABORT and self._channel:
            self._channel.abort(self.report.reason)
        elif act is Act.RESUME:
            self._stop_logging()
            self.runner.throttle = 0.0
            self.runner.go()
        elif act is Act.SAVE:
            self._save()

    def _save(self) -> None:
        """Write the only copy of the guest to the first place that takes it; stay until one does, or a signal."""
        state = capture(self._guest)
        name = f"vmm-{self._identifier.hex()[:12]}.state"
        places = [*filter(None, [self.options.hold]), name, os.path.join(tempfile.gettempdir(), name)]
        told = False
        while not self._save_to(places, state):
            if not self._insists:
                return
            if not told:
                told = True
                self._warn(f"the guest stays in process {os.getpid()} until its state can be written: make room")
            time.sleep(_SAVE_AGAIN)

    def _save_to(self, places: list[str], state: VmState) -> bool:
        for path in places:
            try:
                save(path, state)
            except OSError as error:
                self._warn(f"the guest's state could not be written to {path}: {error.strerror}")
            else:
                self.report.file = str(Path(path).resolve())
                return True
        return False

    def _stop_logging(self) -> None:
        if self._logging:
            self.runner.pause()
            self._logging, self.runner.ring_full = False, None
            self._log.stop()

    def _let_go(self) -> None:
        self._deadline.end()
        if self._sender:
            self._sender.close()
        if self._channel:
            self._channel.line.close()
        if self._witness:
            self._witness.close()
