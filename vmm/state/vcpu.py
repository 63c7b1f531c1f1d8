# SPDX-License-Identifier: Apache-2.0
"""From a vCPU to its state and back: the pieces' calls in their order, all in one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TypeVar
from weakref import WeakKeyDictionary

from vmm.arch import ARCHITECTURE
from vmm.kvm.ioctl import Batch, KvmError, Refused
from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import here, pieces
from vmm.state.errors import StateRefused
from vmm.state.piece import Piece, Reading, Row, Stale, raw
from vmm.state.policy import Policy
from vmm.state.value import Part, VcpuState

__all__ = ["capture_vcpu", "read_piece", "read_pieces", "restore_vcpu", "steps", "write_piece"]

T = TypeVar("T")


def steps() -> tuple[Piece, ...]:
    """Return the pieces of the running architecture, in the order of a restore."""
    return here().PIECES


# --- capture --------------------------------------------------------------------------------------


class _Capture:
    """The calls that capture one vCPU, made once and used as long as its set-up is the same."""

    def __init__(self, vcpu: Vcpu, pieces: Iterable[Piece]) -> None:
        self.chosen = dict(vcpu.chosen)
        self._readings: list[tuple[Piece, Reading, int]] = []  # with the number of its first call
        rows: list[Row] = []
        for piece in pieces:
            reading = piece.read(vcpu)
            if reading is not None:
                self._readings.append((piece, reading, len(rows)))
                rows += reading.rows
        self._batch = Batch(rows)
        calls = self._batch.calls
        self._takes = [(piece.name, reading.take, calls + first) for piece, reading, first in self._readings]

    def read(self, vcpu: Vcpu) -> dict[str, Part]:
        """Return the parts in the order of the capture."""
        absent, at = set(), self._batch.run(vcpu.fd)
        while at < len(self._batch):
            piece, reading, first = _owner(self._readings, at)
            piece.unreadable(vcpu, at - first, self._batch.calls[at].result)
            absent.add(piece.name)
            at = self._batch.run(vcpu.fd, first + len(reading.rows))
        return {name: take(calls) for name, take, calls in self._takes if name not in absent}


_CAPTURES: WeakKeyDictionary[Vcpu, _Capture] = WeakKeyDictionary()
# Pieces that were read by themselves.
_ONE_BY_ONE: WeakKeyDictionary[Vcpu, dict[Piece, _Capture]] = WeakKeyDictionary()


def capture_vcpu(vcpu: Vcpu) -> VcpuState:
    """Return a vCPU's state. A pending exit has to be completed before (BaseGuest.complete)."""
    known = here()
    try:
        parts = _read(vcpu)
    except Stale:
        _CAPTURES.pop(vcpu, None)
        try:
            parts = _read(vcpu)
        except Stale as again:
            raise again.error from again
    known.check_complete(parts)
    return VcpuState(
        {piece.name: parts[piece.name] for piece in known.PIECES if piece.name in parts}, vcpu.identifier
    )


def _read(vcpu: Vcpu) -> dict[str, Part]:
    capture = _CAPTURES.get(vcpu)
    if capture is None or capture.chosen != vcpu.chosen:
        capture = _CAPTURES[vcpu] = _Capture(vcpu, _in_capture_order())
    return capture.read(vcpu)


def read_piece(vcpu: Vcpu, piece: Piece) -> Part | None:
    """Return one piece of a vCPU's state as it is now; None if this vCPU has no such state. Raises KvmError."""
    known = _ONE_BY_ONE.setdefault(vcpu, {})
    capture = known.get(piece)
    if capture is None or capture.chosen != vcpu.chosen:
        capture = known[piece] = _Capture(vcpu, (piece,))
    try:
        return capture.read(vcpu).get(piece.name)
    except Stale:
        del known[piece]
        try:
            return _Capture(vcpu, (piece,)).read(vcpu).get(piece.name)
        except Stale as again:
            raise again.error from again


def read_pieces(vcpu: Vcpu, wanted: Iterable[Piece]) -> dict[str, Part]:
    """Return pieces of a vCPU's state in this order, as read_piece does, in one batch; none that it has not."""
    return _Capture(vcpu, wanted).read(vcpu)


@cache
def _in_capture_order() -> tuple[Piece, ...]:
    known = here()
    return tuple(pieces(ARCHITECTURE)[name] for name in known.CAPTURE_ORDER)


# --- restore --------------------------------------------------------------------------------------


def restore_vcpu(
    vcpu: Vcpu, state: VcpuState, policy: Policy | None = None, order: Iterable[str] | None = None
) -> None:
    """Write a vCPU's parts, in the order of the steps or, those that it names, in another one.

    Raises StateRefused with the name of the part or register that this KVM refuses; what was written stays.
    """
    by_name = pieces(ARCHITECTURE)
    if unknown := state.parts.keys() - by_name.keys():
        raise StateRefused(f"the state has parts unknown to this version: {', '.join(sorted(unknown))}")
    names = by_name if order is None else order
    restore = _Restore([by_name[name] for name in names if name in state.parts], state)
    restore.write(vcpu, policy or Policy())


def write_piece(vcpu: Vcpu, piece: Piece, part: Part) -> None:
    """Write one piece of a vCPU's state as it is.

    Raises KvmError, or Refused if KVM took fewer of its items than there are; what it took stays.
    """
    rows = piece.write(part)
    batch = Batch(rows)
    at = batch.run(vcpu.fd)
    if at < len(rows):
        result = batch.calls[at].result
        if result < 0:
            raise KvmError(piece.set, -result)
        raise Refused(f"{piece.set} took {result} of {rows[at][2]}")
    if piece.chosen:
        vcpu.chosen[piece.name] = raw(piece.name, part)


class _Restore:
    """The calls that write a vCPU's parts. A piece that has none of its own is compared where it stands."""

    def __init__(self, pieces: Iterable[Piece], state: VcpuState) -> None:
        self._state = state
        self._writings: list[tuple[Piece, list[Row], int]] = []  # with the number of its first call
        self._compared: list[tuple[Piece, int]] = []
        self._chosen: list[tuple[Piece, int]] = []  # with the number of the call after its last
        rows: list[Row] = []
        for piece in pieces:
            calls = piece.write(state.parts[piece.name])
            self._writings.append((piece, calls, len(rows)))
            if not calls:
                self._compared.append((piece, len(rows)))
            rows += calls
            if piece.chosen:
                self._chosen.append((piece, len(rows)))
        self._batch = Batch(rows)
        self._made = 0

    def write(self, vcpu: Vcpu, policy: Policy) -> None:
        """Make the calls; StateRefused for what the policy does not tolerate."""
        try:
            for piece, at in self._compared:
                self._run(vcpu, at, policy)
                _compare(piece, vcpu, self._state.parts[piece.name], policy)
            self._run(vcpu, len(self._batch), policy)
        finally:
            for piece, end in self._chosen:
                if self._made >= end:
                    vcpu.chosen[piece.name] = raw(piece.name, self._state.parts[piece.name])

    def _run(self, vcpu: Vcpu, stop: int, policy: Policy) -> None:
        """Make the calls up to ``stop``, which is where a piece begins."""
        refusals: list[tuple[str, str]] = []
        end = stop
        while (at := self._batch.run(vcpu.fd, self._made, end)) < stop:
            self._made = at
            if at < end:  # that call was refused
                piece, calls, first = _owner(self._writings, at)
                with _asking(piece):
                    refusals += piece.refused(vcpu, self._state, at - first, self._batch.calls[at].result)
                self._made, end = at + 1, first + len(calls)
            if self._made == end:  # the piece is written, or as much of it as KVM takes
                policy.refuse_all(refusals)
                refusals, end = [], stop
        self._made = stop
        policy.refuse_all(refusals)


def _compare(piece: Piece, vcpu: Vcpu, part: Part, policy: Policy) -> None:
    with _asking(piece):
        lost, gained = piece.missing(vcpu, part)
    policy.refuse_all(lost)
    policy.missing(gained)


@contextmanager
def _asking(piece: Piece) -> Iterator[None]:
    """Make a refusal of this piece of what KVM refuses when it is asked about it."""
    try:
        yield
    except KvmError as error:
        raise StateRefused(f"{piece.name}: {error}") from error


def _owner(calls: Sequence[tuple[Piece, T, int]], at: int) -> tuple[Piece, T, int]:
    """Return the piece that a call belongs to."""
    return next(one for one in reversed(calls) if one[2] <= at)
