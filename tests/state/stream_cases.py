# SPDX-License-Identifier: Apache-2.0
"""What the tests of the stream share: a small stream, edited and sealed again, and what reading it gives."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from tests.state.sealed import Sealed
from tests.state.state_samples import tiny_state
from vmm.state.errors import StreamError
from vmm.state.stream.decode import read_state
from vmm.state.stream.encode import write_state
from vmm.state.value import VmState

__all__ = ["TINY", "read", "refused", "sealed", "written"]


def written(state: VmState, **options: object) -> bytes:
    """The stream of a state."""
    file = io.BytesIO()
    write_state(file, state, **options)  # type: ignore[arg-type]
    return file.getvalue()


def read(data: bytes, **options: object) -> VmState:
    """The state of a stream."""
    return read_state(io.BytesIO(data), **options)  # type: ignore[arg-type]


TINY = written(tiny_state())


def refused(data: bytes, match: str, **options: object) -> None:
    """Reading the stream ends in a StreamError whose sentence matches."""
    with pytest.raises(StreamError, match=match):
        read(data, **options)


def sealed(edit: Callable[[Sealed], object], data: bytes = TINY) -> bytes:
    """A valid stream, edited, with digests that are right."""
    stream = Sealed.open(data)
    edit(stream)
    return stream.seal()
