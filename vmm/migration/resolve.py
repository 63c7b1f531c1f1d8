# SPDX-License-Identifier: Apache-2.0
"""The source in doubt: HANDOVER may have arrived, and the guest does not run here until it is known that it does not
run there."""

from __future__ import annotations

import time
from collections import deque

from vmm.migration.errors import LineLost, MigrationError, Unreachable
from vmm.migration.handover import ENDS, Act, Event, Machine
from vmm.migration.incarnation import Witness
from vmm.migration.line import ChildLine
from vmm.migration.messages import Resolve
from vmm.migration.transport import Connector
from vmm.migration.wire import Channel, Kind
from vmm.state.errors import printable

__all__ = ["DIED", "NEVER_RAN", "Doubt"]

# Exit statuses of vmm receive, for a caller that has nothing else: with exec: and pipes. From sysexits.h, where they
# are TEMPFAIL and IOERR; 0 and 1 say that the guest ran there to its end.
NEVER_RAN, DIED = 75, 74
_STATUS = {0: Event.RUNNING, 1: Event.RUNNING, NEVER_RAN: Event.NEVER_RAN, DIED: Event.DIED}
_ANSWERS = {
    Kind.RUNNING: Event.RUNNING,
    Kind.WAITING: Event.WAITING,
    Kind.DISCARDED: Event.NEVER_RAN,
    Kind.DIED: Event.DIED,
}
_ANSWER_TIMEOUT = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
# A process's sockets are closed a moment before its children hear of its end: so long refusals have to last.
_REFUSED_FOR = 2.0


class Doubt:
    """Hands over, and asks until it is known where the guest is or ``patience`` seconds have passed."""

    def __init__(
        self,
        machine: Machine,
        connector: Connector,
        channel: Channel,
        resolve: Resolve,
        witness: Witness,
        *,
        patience: float,
        trust_refusal: bool = False,
    ) -> None:
        self.reason = ""
        self._machine, self._connector, self._channel = machine, connector, channel
        self._resolve, self._witness, self._trust_refusal = resolve, witness, trust_refusal
        self._patience = patience
        self._deadline = time.monotonic() + patience
        self._first_refusal: float | None = None
        self._pause = 0.0  # before the next line is made; answers make it short again

    def settle(self) -> list[Act]:
        """Send HANDOVER, see it through, and return what is left to do with the guest."""
        events, left = deque([Event.ACCEPTED]), list[Act]()
        while self._machine.at not in ENDS:
            event = events.popleft() if events else self._listen()
            for act in self._machine.on(event):
                if act in (Act.RESUME, Act.SAVE):
                    left.append(act)
                elif follows := self._act(act):
                    events.append(follows)
        return left

    def _act(self, act: Act) -> Event | None:
        if act is Act.RECONNECT:
            return self._reconnect() if self._connector.again else self._last_words()
        body = self._resolve.pack() if act is Act.SEND_RESOLVE else self._resolve.token
        try:
            self._channel.send(Kind(act.value), body)
        except LineLost as error:
            return self._lost(error)
        return None

    def _listen(self) -> Event:
        """Wait for the receiver's answer."""
        try:
            line, left = self._channel.line, self._deadline - time.monotonic()
            if not line.readable(max(0.0, min(left, line.timeout, _ANSWER_TIMEOUT))):
                return self._lost(LineLost(f"{self._channel.line.name} did not answer"))
            message = self._channel.receive(*_ANSWERS)
        except MigrationError as error:  # lost, or damaged
            return self._lost(error)
        self._pause = 0.0
        if message.kind is Kind.DISCARDED:
            why = printable(message.body.decode("utf-8", "replace"))
            self.reason = f"the receiver has dropped it: {why or 'no reason given'}"
        elif message.kind is Kind.DIED:
            self.reason = "its keeper saw that process end"
        return _ANSWERS[message.kind]

    def _lost(self, error: MigrationError) -> Event:
        if self._connector.again:
            self._channel.line.close()
        self.reason = str(error)
        return Event.LINE_LOST

    def _reconnect(self) -> Event:
        """Make a new line, or find out that none will ever be answered."""
        while time.monotonic() < self._deadline:
            time.sleep(max(0.0, min(self._pause, self._deadline - time.monotonic())))
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            try:
                channel = Channel(self._connector.connect())
                channel.open()
            except MigrationError as error:
                if self._gone(error):
                    return Event.GONE
            else:
                self._channel = channel
                return Event.CONNECTED
        return self._gave_up()

    def _gone(self, error: MigrationError) -> bool:
        """Is it certain that the receiver's process is gone? Whoever cannot be reached may well be alive."""
        if self._witness.gone():
            self.reason = "the receiver's processes on this host were killed"
            return True
        refused = isinstance(error, Unreachable) and error.refused
        if not refused:
            self._first_refusal = None
            return False
        now = time.monotonic()
        self._first_refusal = self._first_refusal or now
        if self._trust_refusal and now - self._first_refusal >= _REFUSED_FOR:
            self.reason = f"{error}, which --trust-refusal takes as its end"
            return True
        return False

    def _last_words(self) -> Event:
        """Without another line there is the status of the child, and what is known about the process."""
        line = self._channel.line
        while time.monotonic() < self._deadline:
            if isinstance(line, ChildLine):
                status = line.exit_status(0.05)
                if status in _STATUS:
                    self.reason = f"{line.name} ended with status {status}"
                    return _STATUS[status]
            if self._witness.gone(0.05):
                # Whoever started it may have more to say than that it is gone.
                status = line.exit_status(1.0) if isinstance(line, ChildLine) else None
                self.reason = f"the receiver's processes on this host have ended (status {status})"
                return _STATUS.get(status, Event.GONE) if status is not None else Event.GONE
            if not isinstance(line, ChildLine) and not self._witness.watches:
                time.sleep(0.05)
        return self._gave_up()

    def _gave_up(self) -> Event:
        self.reason = f"it was not known within {self._patience:g} s whether the guest runs there ({self.reason})"
        return Event.GAVE_UP
