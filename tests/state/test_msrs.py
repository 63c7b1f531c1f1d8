# SPDX-License-Identifier: Apache-2.0
"""In which order a restore writes MSRs: what resets others comes before them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.arch import ARCHITECTURE
from vmm.state.architecture import pieces
from vmm.state.piece import RegisterSet
from vmm.state.value import Packed

pytestmark = pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"MSRs are x86's; this is {ARCHITECTURE}")
PERF_CAPABILITIES = 0x345
_VALUES = st.dictionaries(
    st.integers(0, 0xFFFF_FFFF) | st.just(PERF_CAPABILITIES),
    # Values that look like the row of PERF_CAPABILITIES where they begin or end.
    st.integers(0, (1 << 64) - 1) | st.just(PERF_CAPABILITIES) | st.just(PERF_CAPABILITIES << 32),
    max_size=300,
)


def _written(values: dict[int, int], *, packed: bool) -> list[tuple[int, int]]:
    """What KVM_SET_MSRS is given for these, call by call."""
    piece = pieces("x86")["MSRS"]
    assert isinstance(piece, RegisterSet)
    part = {index: value.to_bytes(8, "little") for index, value in values.items()}
    rows = b"".join(Packed.ROW.pack(index, 0, value) for index, value in values.items())
    calls = piece.write(Packed(rows) if packed else part)
    return [(entry.index, entry.data) for _, argument, count in calls for entry in argument.entries[0:count]]


@given(values=_VALUES, packed=st.booleans())
def test_every_msr_is_written_once_with_its_value_and_perf_capabilities_first(
    values: dict[int, int], packed: bool
) -> None:
    written = _written(values, packed=packed)
    assert sorted(written) == sorted(values.items())
    if PERF_CAPABILITIES in values:
        assert written[0][0] == PERF_CAPABILITIES


@given(values=_VALUES)
def test_the_others_stay_in_their_order(values: dict[int, int]) -> None:
    others = [pair for pair in values.items() if pair[0] != PERF_CAPABILITIES]
    assert [pair for pair in _written(values, packed=True) if pair[0] != PERF_CAPABILITIES] == others
