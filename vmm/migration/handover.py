# SPDX-License-Identifier: Apache-2.0
"""Who may run the guest: two state machines without any input or output.

HANDOVER is the one step that matters. Before the source begins to write it, the guest is the source's, whatever
happens; once the receiver has read it, the guest is the receiver's. In between the source is in doubt: it does not
run the guest, and asks. What ends its doubt is what the receiver, or who outlives it, says about the guest, or
certain knowledge that the receiver's process is gone, because a guest dies with its process.

Each table gives for (state, event) the next state and what has to be done then, in order. An event without an
entry changes nothing. The caller acts after the change of state: who is killed between the two had changed it.
tests/migration/test_handover.py walks through every interleaving of messages, lost lines and deaths.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from vmm.migration.wire import Kind

__all__ = ["ENDS", "RECEIVER", "SOURCE", "Act", "At", "Event", "Machine", "answer"]


class At(Enum):
    """Where one side is."""

    # the source
    COPYING = "the guest runs here while its memory is copied"
    STOPPED = "the guest is paused here, its final state is on its way"
    DOUBT = "HANDOVER may have arrived or not"
    KEPT = "the guest stays here"
    MOVED = "the guest is over there"
    LOST = "the guest was started over there, and its process died"
    HELD = "the guest's whereabouts are unknown: it is paused here"
    # the receiver
    FILLING = "the guest is over there, its memory is arriving"
    READY = "the guest is here, restored, and not allowed to run"
    RUNNING = "the guest is here and runs, or ran to its end"
    SETTLED = "the same, and the source knows"
    DISCARDED = "there is no guest here and never will be"


# The states in which a side has nothing more to do with the other.
ENDS = frozenset({At.KEPT, At.MOVED, At.LOST, At.HELD, At.SETTLED, At.DISCARDED})


class Event(Enum):
    """What happens to one side."""

    LINE_LOST = "the line is closed, broken, silent, or said nonsense"
    FAILED = "something failed on this side"
    ABORTED = "the other side gave up"
    # the source
    STOP = "the rest of the memory is small enough"
    ACCEPTED = "READY came, and what was restored is the guest"
    CONNECTED = "there is a new line"
    RUNNING = "the receiver has started the guest"
    WAITING = "the receiver waits for HANDOVER"
    NEVER_RAN = "the receiver has discarded the guest, or died before it started it"
    DIED = "the receiver died after it had started the guest"
    GONE = "the receiver's process is gone for certain; nothing else is known"
    GAVE_UP = "time is up"
    # the receiver
    VERIFIED = "the guest is restored and is what was sent"
    HANDOVER = "HANDOVER came"
    RESOLVE = "a new line came, and the question what became of the guest"
    SETTLED = "the source knows that the guest runs here"


class Act(Enum):
    """What a side does after a change of its state."""

    PAUSE = "pause the guest and send what is left"
    RESUME = "let the guest run on"
    SAVE = "write the state to a file"
    RECONNECT = "make a new line"
    START = "note that the guest is started, then start it"
    DISCARD = "drop the guest for ever"
    SETTLE = "note that the source knows"
    AWAIT = "wait for a new line"
    SEND_ABORT = Kind.ABORT
    SEND_HANDOVER = Kind.HANDOVER
    SEND_RESOLVE = Kind.RESOLVE
    SEND_SETTLED = Kind.SETTLED
    SEND_READY = Kind.READY
    SEND_RUNNING = Kind.RUNNING
    SEND_WAITING = Kind.WAITING
    SEND_DISCARDED = Kind.DISCARDED


Table = Mapping[tuple[At, Event], tuple[At, tuple[Act, ...]]]

SOURCE: Table = {
    (At.COPYING, Event.STOP): (At.STOPPED, (Act.PAUSE,)),
    (At.COPYING, Event.FAILED): (At.KEPT, (Act.SEND_ABORT, Act.RESUME)),
    (At.COPYING, Event.ABORTED): (At.KEPT, (Act.RESUME,)),
    (At.COPYING, Event.LINE_LOST): (At.KEPT, (Act.RESUME,)),
    (At.STOPPED, Event.ACCEPTED): (At.DOUBT, (Act.SEND_HANDOVER,)),
    (At.STOPPED, Event.FAILED): (At.KEPT, (Act.SEND_ABORT, Act.RESUME)),
    (At.STOPPED, Event.ABORTED): (At.KEPT, (Act.RESUME,)),
    (At.STOPPED, Event.LINE_LOST): (At.KEPT, (Act.RESUME,)),
    (At.DOUBT, Event.RUNNING): (At.MOVED, (Act.SEND_SETTLED,)),
    (At.DOUBT, Event.LINE_LOST): (At.DOUBT, (Act.RECONNECT,)),
    (At.DOUBT, Event.CONNECTED): (At.DOUBT, (Act.SEND_RESOLVE,)),
    (At.DOUBT, Event.WAITING): (At.DOUBT, (Act.SEND_HANDOVER,)),
    (At.DOUBT, Event.NEVER_RAN): (At.KEPT, (Act.SEND_SETTLED, Act.RESUME)),
    (At.DOUBT, Event.DIED): (At.LOST, (Act.SEND_SETTLED, Act.SAVE)),
    (At.DOUBT, Event.GONE): (At.KEPT, (Act.RESUME,)),
    (At.DOUBT, Event.GAVE_UP): (At.HELD, (Act.SAVE,)),
}

RECEIVER: Table = {
    (At.FILLING, Event.VERIFIED): (At.READY, (Act.SEND_READY,)),
    (At.FILLING, Event.FAILED): (At.DISCARDED, (Act.DISCARD, Act.SEND_ABORT)),
    (At.FILLING, Event.ABORTED): (At.DISCARDED, (Act.DISCARD,)),
    (At.FILLING, Event.LINE_LOST): (At.DISCARDED, (Act.DISCARD,)),
    (At.READY, Event.HANDOVER): (At.RUNNING, (Act.START, Act.SEND_RUNNING)),
    (At.READY, Event.RESOLVE): (At.READY, (Act.SEND_WAITING,)),
    (At.READY, Event.LINE_LOST): (At.READY, (Act.AWAIT,)),
    (At.READY, Event.ABORTED): (At.DISCARDED, (Act.DISCARD,)),
    (At.READY, Event.FAILED): (At.DISCARDED, (Act.DISCARD, Act.SEND_DISCARDED)),
    (At.READY, Event.GAVE_UP): (At.DISCARDED, (Act.DISCARD, Act.SEND_DISCARDED)),
    (At.RUNNING, Event.HANDOVER): (At.RUNNING, (Act.SEND_RUNNING,)),
    (At.RUNNING, Event.RESOLVE): (At.RUNNING, (Act.SEND_RUNNING,)),
    (At.RUNNING, Event.SETTLED): (At.SETTLED, (Act.SETTLE,)),
    (At.SETTLED, Event.RESOLVE): (At.SETTLED, (Act.SEND_RUNNING,)),
    (At.DISCARDED, Event.HANDOVER): (At.DISCARDED, (Act.SEND_DISCARDED,)),
    (At.DISCARDED, Event.RESOLVE): (At.DISCARDED, (Act.SEND_DISCARDED,)),
}


class Machine:
    """One side: a table and where it is."""

    def __init__(self, table: Table, at: At) -> None:
        self._table = table
        self.at = at

    def on(self, event: Event) -> tuple[Act, ...]:
        """Take an event and return what to do now."""
        self.at, acts = self._table.get((self.at, event), (self.at, ()))
        return acts


def answer(*, started: bool, ended: bool) -> Kind:
    """Return what the keeper, who outlives the receiver's process, says about the guest of a dead process.

    The process noted ``started`` before it started the guest, and ``ended`` when the guest had come to its end.
    """
    if not started:
        return Kind.DISCARDED
    return Kind.RUNNING if ended else Kind.DIED
