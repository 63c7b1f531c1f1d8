# SPDX-License-Identifier: Apache-2.0
"""What the fuzzer kept is read again: without atheris, and in a moment. And the judge that it asks can fail."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import targets
from tests.fuzz.minimise import edges, smallest
from tests.fuzz.targets import RECORDED, TARGETS, Excessive, Target, judge
from tests.patience import TIME_SCALE
from vmm.state.stream import decode

_FILES = {name: sorted((RECORDED / name).iterdir()) for name in TARGETS}
_ALL = [pytest.param(name, path, id=f"{name}-{path.name}") for name, paths in _FILES.items() for path in paths]


@pytest.mark.parametrize(("name", "path"), _ALL)
def test_a_recorded_input_ends_in_a_value_or_a_sentence_soon_and_in_little_memory(name: str, path: Path) -> None:
    judge(TARGETS[name], path.read_bytes(), TIME_SCALE)


@pytest.mark.parametrize("name", TARGETS)
def test_some_recorded_inputs_are_taken_and_some_are_refused(name: str) -> None:
    assert {TARGETS[name].read(path.read_bytes()) for path in _FILES[name]} == {True, False}


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_recorded_is_small(name: str) -> None:
    assert 0 < sum(path.stat().st_size for path in _FILES[name]) <= 128 << 10


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_taken_and_their_changes_end_well(name: str) -> None:
    target, source = TARGETS[name], random.Random(1)
    for data in target.seeds():
        judge(target, data, TIME_SCALE)
        for _ in range(5):
            judge(target, target.change(source, data, lambda part: part[:-1] + b"\xff"), TIME_SCALE)


# --- readers with a fault -------------------------------------------------------------------------


def _target(read: Callable[[bytes], bool]) -> Target:
    return Target(lambda: [], read, lambda source, data, leaf: data)


def test_a_reader_that_raises_what_it_must_not_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_shaped", lambda where, value, kind, what: value)
    with pytest.raises((TypeError, AttributeError, ValueError, KeyError)):
        for path in _FILES["stream"]:
            judge(TARGETS["stream"], path.read_bytes(), TIME_SCALE)


def test_a_reader_that_takes_too_long_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(data: bytes) -> bool:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        return True

    monkeypatch.setattr(targets, "SECONDS", 0.05)
    with pytest.raises(Excessive, match=r"s of processor time for 1 bytes"):
        judge(_target(slow), b"x")


def test_a_reader_that_takes_too_much_memory_is_noticed() -> None:
    # More than this process ever had: less would be seen only once that is known.
    size = targets.most() + targets.MEMORY + targets.NOISE

    def greedy(data: bytes) -> bool:
        return bool(len(bytearray(b"x") * size))

    with pytest.raises(Excessive, match="MiB of memory for 1 bytes"):
        judge(_target(greedy), b"x")


# --- what is kept ---------------------------------------------------------------------------------


def test_only_inputs_that_reach_more_than_others_are_kept() -> None:
    target = TARGETS["probe"]
    valid = min(target.seeds(), key=len)
    kept = smallest(target, [b"{}", b"{} ", valid, valid + b" ", b"["], 1 << 20)
    assert valid in kept and b"[" in kept
    assert not {b"{} ", valid + b" "} & set(kept)
    assert valid not in smallest(target, [b"{}", valid], len(valid) - 1)


def test_steps_outside_of_the_package_do_not_count() -> None:
    def read(data: bytes) -> bool:
        return data.startswith(b"x")

    assert edges(_target(read), b"x") == set()
    assert edges(TARGETS["probe"], b"{}") != set()
