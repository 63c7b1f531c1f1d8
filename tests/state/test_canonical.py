# SPDX-License-Identifier: Apache-2.0
"""Canonical CBOR: one value has one encoding, and a stranger's bytes meet the scan before they meet cbor2."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.state.stream import canonical

_numbers = st.integers(0, (1 << 64) - 1)
_plain = st.recursive(
    _numbers | st.binary(max_size=30) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner) | st.dictionaries(_numbers, inner)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x5b" + b"\xff" * 8, "string that extends 18446744073709551615 bytes beyond the end"),
        (b"\x9b" + b"\xff" * 8, "container of 18446744073709551615 items in 0 bytes"),
        (b"\x01\x01", "with 1 bytes beyond its value"),
        (b"\x81" * 9 + b"\0", "nested deeper than 8"),
        (b"\xa2\x00\x00\x61a\x00", "not all numbers or all text"),
        (b"\x19\x00", "ends inside"),
    ],
)
def test_the_scan_stops_what_the_decoder_must_not_see(
    data: bytes, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cbor2, "loads", None)
    with pytest.raises(canonical.NotCanonical, match=match):
        canonical.decode(data)


@settings(max_examples=300)
@given(_plain)
def test_a_plain_value_comes_back_equal(value: object) -> None:
    try:
        assert canonical.decode(canonical.encode(value)) == value
    except canonical.NotCanonical as error:
        assert "nested" in str(error)


@settings(max_examples=500)
@given(st.binary(max_size=60))
def test_only_one_encoding_of_a_value_is_accepted(data: bytes) -> None:
    try:
        value = canonical.decode(data)
    except canonical.NotCanonical:
        return
    assert canonical.encode(value) == data


def test_the_order_of_keys_is_that_of_both_rfcs() -> None:
    keys = [0, 23, 24, 255, 256, 65536, (1 << 64) - 1]
    heads = [cbor2.dumps(key) for key in keys]
    assert heads == sorted(heads) == sorted(heads, key=lambda head: (len(head), head))
    names = ["", "b", "aa", "x" * 23, "a" * 24, "a" * 300]
    heads = [cbor2.dumps(name) for name in names]
    assert heads == sorted(heads) == sorted(heads, key=lambda head: (len(head), head))
    for ordered in (keys, names):
        assert canonical.encode(dict.fromkeys(reversed(ordered), 0)) == canonical.encode(dict.fromkeys(ordered, 0))
        assert list(canonical.decode(canonical.encode(dict.fromkeys(reversed(ordered), 0)))) == ordered
