# SPDX-License-Identifier: Apache-2.0
"""The answers of the payload ``lists`` as values."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.test_ept import pytestmark
from vmm.conformance.x86.lists import Answer, answers

__all__ = ["pytestmark"]

_ANSWERS = st.lists(st.builds(Answer, st.integers(0, (1 << 64) - 1), st.integers(-1, 31)))


@given(_ANSWERS)
def test_answers_are_read_as_the_payload_writes_them(expected: list[Answer]) -> None:
    data = b"".join(struct.pack("<QII", one.value, one.vector >= 0, max(one.vector, 0)) for one in expected)
    assert answers(data) == expected


def test_an_answer_says_its_value_and_its_exception() -> None:
    assert [str(Answer(0x620)), str(Answer(0x620, 13))] == ["0x620", "0x620 and exception 13"]
