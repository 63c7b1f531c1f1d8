# SPDX-License-Identifier: Apache-2.0
"""A process's own registers as ptrace has them."""

from __future__ import annotations

import struct

import pytest

from vmm.arm64.own import register_set
from vmm.arm64.vector import VectorState


@pytest.mark.parametrize("quadwords", [1, 2, 3, 16])
def test_a_register_set_has_each_register_where_the_kernel_looks_for_it(quadwords: int) -> None:
    state = VectorState.random(16 * quadwords, 5)
    found = register_set(state)
    size, most, length, longest, flags, reserved = struct.unpack_from("<IIHHHH", found)
    assert (size, most, length, longest, flags, reserved) == (len(found), len(found), 16 * quadwords, length, 1, 0)
    vectors, predicates = 16, 16 + 32 * 16 * quadwords
    ffr = predicates + 16 * 2 * quadwords
    control = (ffr + 2 * quadwords + 15) // 16 * 16
    assert found[vectors + 9 * length : vectors + 10 * length] == state.z[9]
    assert found[predicates + 15 * length // 8 : ffr] == state.p[15]
    assert found[ffr : ffr + length // 8] == state.ffr
    assert struct.unpack_from("<II", found, control) == (state.fpsr, state.fpcr)
    assert len(found) == (control + 8 + 15) // 16 * 16
