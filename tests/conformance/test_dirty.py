# SPDX-License-Identifier: Apache-2.0
"""How a dirty log is judged: a lost page always counts, one that nobody wrote only if it comes again and again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.conformance.dirty import exactly
from vmm.conformance.expect import Violation
from vmm.kvm.ioctl import KvmError

_PAGES = st.sets(st.integers(0, 200), max_size=20)


def in_turn(*logs: set[int]) -> Callable[[], set[int]]:
    """An attempt that finds one log after the other, the last one from then on."""
    left = list(logs)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


@given(_PAGES)
def test_a_log_of_what_was_written_holds(written: set[int]) -> None:
    exactly("the log", in_turn(written), written)


@given(_PAGES.filter(bool), _PAGES)
def test_a_written_page_that_is_missing_once_is_a_failure(written: set[int], extra: set[int]) -> None:
    lost = max(written)
    with pytest.raises(Violation, match="written pages that are not in the log"):
        exactly("the log", in_turn((written | extra) - {lost}, written), written)


@given(_PAGES, _PAGES)
def test_pages_that_nobody_wrote_are_a_failure_if_each_attempt_finds_some(written: set[int], extra: set[int]) -> None:
    added = extra - written or {201}
    exactly("the log", in_turn(written | added, written | added, written), written)
    with pytest.raises(Violation, match="pages in the log that nobody wrote"):
        exactly("the log", in_turn(written | added), written)


def test_a_log_that_cannot_be_read_is_a_failure() -> None:
    def refused() -> set[int]:
        raise KvmError("KVM_GET_DIRTY_LOG", 2)

    with pytest.raises(Violation, match="KVM_GET_DIRTY_LOG failed with ENOENT"):
        exactly("the log", refused, ())
