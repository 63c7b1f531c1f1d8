# SPDX-License-Identifier: Apache-2.0
"""What a failure says: values in the ABI's terms, long ones only where they differ, and where a guest faulted."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.conformance.expect import Violation, equal, refused, true
from vmm.kvm.exits import Deadline, FailEntry, Hlt, IoOut, Shutdown


def violation(observed: Any, expected: Any) -> Violation:
    with pytest.raises(Violation) as caught:
        equal("it", observed, expected)
    return caught.value


@pytest.mark.parametrize(
    ("observed", "expected", "texts"),
    [
        (0x1F, 3, ("3", "0x1f")),
        (True, False, ("no", "yes")),
        (None, 0, ("0", "nothing")),
        (IoOut(0x3F8, 1, 0x41), IoOut(0x3F8, 1, 5), ("IoOut (port 0x3f8, size 1, value 5)",
                                                     "IoOut (port 0x3f8, size 1, value 0x41)")),
        (Shutdown(), Hlt(), ("Hlt", "Shutdown")),
        (FailEntry(0x80000021, 0), Hlt(), ("Hlt", "FailEntry (reason 0x80000021, cpu 0)")),
        ([1, 2], [2], ("[2]", "[1, 2]")),
        ({"b", "a"}, set(), ("[]", "[a, b]")),
        (Shutdown, Deadline, ("Deadline", "Shutdown")),
        (b"ab", b"ac", ("6163", "6162")),
    ],
)  # fmt: skip
def test_a_value_is_shown_in_words(observed: Any, expected: Any, texts: tuple[str, str]) -> None:
    found = violation(observed, expected)
    assert (found.expected, found.observed) == texts


def test_an_object_that_a_call_returned_is_shown_by_its_kind() -> None:
    class Device:
        pass

    with pytest.raises(Violation) as caught:
        refused("a second one", 1, Device)
    assert caught.value.observed == "success (Device)"


def test_of_long_bytes_the_words_around_the_first_difference_are_shown() -> None:
    expected = bytes(range(256)) * 2
    observed = bytearray(expected)
    observed[50], observed[90] = 0xFF, 0xFF
    found = violation(bytes(observed), expected)
    assert found.expected == "2c2d2e2f 30313233 34353637 38393a3b (bytes 44 to 59 of 512)"
    assert found.observed == "2c2d2e2f 3031ff33 34353637 38393a3b (2 differ, the first is byte 50)"


@given(st.binary(min_size=17, max_size=80), st.data())
def test_what_is_shown_of_long_bytes_has_the_first_difference(expected: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(expected) - 1))
    observed = bytearray(expected)
    observed[at] ^= 1
    found = violation(bytes(observed), expected)
    start = int(re.search(r"bytes (\d+) to", found.expected)[1])  # type: ignore[index]
    shown = bytes.fromhex(found.observed.split(" (")[0])
    assert shown == bytes(observed)[start : start + 16] and start <= at < start + 16
    assert found.observed.endswith(f"(1 differs, the first is byte {at})")


def test_of_long_lists_their_difference_is_shown() -> None:
    names = [f"R{number}" for number in range(50)]
    found = violation([*names[:7], *names[8:], "S1"], names)
    assert (found.expected, found.observed) == ("50 items", "50, without [R7], with [S1] beyond them")
    found = violation([*names[:7], names[8], names[7], *names[9:]], names)
    assert (found.expected, found.observed) == ("R7 as item 7 of 50", "R8 there")
    found = violation([*names, "R3"], names)
    assert found.observed == "51, the same ones more or less often"
    assert violation(names, []).observed == f"50, with [{', '.join(names[:8])}, and 42 more] beyond them"


def test_a_long_list_that_is_no_pair_is_cut() -> None:
    with pytest.raises(Violation) as caught:
        true("it", False, list(range(30)), "fewer")
    assert caught.value.observed == "[0, 1, 2, 3, 4, 5, 6, 7, and 22 more]"
