# SPDX-License-Identifier: Apache-2.0
"""The target ``stream``: a state in a file, as `vmm inspect`, `restore`, `diff` and `compat --guest` read it."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from functools import cache

import cbor2

from tests.data import probes
from tests.fuzz.trees import Leaf, changed
from tests.state.sealed import Sealed
from tests.state.state_samples import arm64_state, tiny_state, x86_state
from tests.state.stream_mutations import mutate
from vmm.cli import inspect
from vmm.compat.report import compare
from vmm.compat.saved import load_guest
from vmm.compat.text import report_lines
from vmm.state.compare import differences
from vmm.state.errors import StreamError, printable
from vmm.state.explain import explain
from vmm.state.parts import check_parts
from vmm.state.stream.container import Limits
from vmm.state.stream.decode import open_state, read_state
from vmm.state.stream.encode import Explain, write_state
from vmm.state.stream.pages import page_differences
from vmm.state.stream.staging import Staging
from vmm.state.validate import normalise, validate
from vmm.state.value import VmState

__all__ = ["change", "read", "seeds"]

_LIMITS = Limits(memory=16 << 20)


def seeds() -> Iterator[bytes]:
    """Yield valid streams of both architectures, with and without fields."""
    yield _written(tiny_state(), None)
    for state in (x86_state(), x86_state(tiles=False), arm64_state(1, 2), arm64_state()):
        for chosen in (None, explain):
            yield _written(state, chosen)


def _written(state: VmState, chosen: Explain | None) -> bytes:
    file = io.BytesIO()
    write_state(file, state, chosen)
    return file.getvalue()


def read(data: bytes) -> bool:
    """Read a stream in every way; tell whether one of them took it."""
    taken = False
    for attempt in (_inspect, _restore, _diff, _compat):
        try:
            attempt(data)
            taken = True
        except StreamError as error:
            assert str(error).isprintable(), "a stranger's text is not fit for a terminal"
    return taken


def _inspect(data: bytes) -> None:
    found = inspect.describe(io.BytesIO(data))
    assert all(line.isprintable() for line in inspect.lines(found, False))


def _restore(data: bytes) -> None:
    state, _ = normalise(read_state(io.BytesIO(data), explain, _LIMITS, staging=Staging()))
    validate(state)


@cache
def _references() -> dict[str, bytes]:
    return {"x86": _written(x86_state(), None), "arm64": _written(arm64_state(1, 2), None)}


def _diff(data: bytes) -> None:
    for second in (data, _references()["x86"], _references()["arm64"]):
        (ours, pages), (theirs, others) = (open_state(io.BytesIO(one), limits=_LIMITS) for one in (data, second))
        check_parts(ours)
        found = differences(ours, theirs) + page_differences(ours.memory, pages, theirs.memory, others)
        assert all(printable(str(row)).isprintable() for row in found)


def _compat(data: bytes) -> None:
    descriptor = os.memfd_create("guest")
    try:
        os.write(descriptor, data)
        guest = load_guest(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    for name in ("amx-7.2", "sve-7.2"):
        list(report_lines(compare(guest, probes.offer(name), started=True)))


def change(source: random.Random, data: bytes, leaf: Leaf) -> bytes:
    """Return a stream with some changes, mostly under digests that are right."""
    if source.random() < 0.5:
        return mutate(source, data)[1]
    stream = Sealed.open(data)
    for _ in range(source.choice((1, 1, 2, 3))):
        piece = source.choice(stream.pieces) if stream.pieces and source.random() < 0.9 else None
        if piece is not None and piece.kind == "MEMORY":
            piece.body = leaf(piece.body)
            continue
        body = piece.body if piece else stream.header
        body = cbor2.dumps(changed(source, cbor2.loads(body), leaf), canonical=True)
        if piece:
            piece.body = body
        else:
            stream.header = body
    return stream.seal()
