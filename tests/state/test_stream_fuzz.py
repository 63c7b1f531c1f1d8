# SPDX-License-Identifier: Apache-2.0
"""Changed streams end in a clean refusal or a whole state; and the runner that says so can fail."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patience import HANGS
from tests.state import fuzz_stream
from tests.state.fuzz_stream import corpus, judge, run
from tests.state.stream_mutations import mutate
from vmm.state.stream import container as stream
from vmm.state.stream import decode
from vmm.state.stream import memory as memory_section
from vmm.state.stream.encode import write_state
from vmm.state.value import MemoryState

ROOT = Path(__file__).parents[2]
STREAMS = corpus()


def test_changed_streams_end_in_a_refusal_or_a_state() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.state.fuzz_stream", "1500", "--seed", "1"],
        capture_output=True, text=True, timeout=HANGS, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("damaged", "invalid", "equal", "valid"):
        assert f"'{kind}': " in done.stdout, f"no stream ended as {kind}: nothing reached that far"


@settings(max_examples=150)
@given(st.integers(0, len(STREAMS) - 1), st.randoms(use_true_random=False))
def test_any_changed_stream_ends_in_a_refusal_or_a_state(chosen: int, source: random.Random) -> None:
    original, state = STREAMS[chosen]
    names, data = mutate(source, original)
    assert judge(data, state).kind != "failed", names


def test_an_unchanged_stream_gives_an_equal_state() -> None:
    for data, state in STREAMS:
        assert judge(data, state).kind == "equal"


# --- readers with a fault -------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _read_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_stream, "corpus", lambda: STREAMS)


def _failures(number: int = 400) -> str:
    return "\n".join(run(number, 3).failures)


def test_the_runner_finds_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(self: object, section: object, data: memoryview, length: int) -> bytes:
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=length)

    monkeypatch.setattr(memory_section.MemoryDecoder, "_decompress", raises)
    assert "ZstdError" in _failures()


def test_the_runner_finds_a_missing_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_shaped", lambda where, value, kind, what: value)
    assert "TypeError: " in _failures()


def test_the_runner_finds_a_state_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def loses(file: object, state: object, *_: object) -> None:
        smaller = MemoryState(0, 4096)
        real(file, type(state)(state.arch, state.vcpus, (smaller,), state.machine))  # type: ignore[attr-defined,call-arg,arg-type]

    real = write_state
    monkeypatch.setattr(fuzz_stream, "write_state", loses)
    assert "does not come back" in _failures()


def test_the_runner_finds_excessive_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(self: stream.Reader, size: int, where: str) -> bytes:
        if size > 1 << 20:
            del (bytearray(b"x") * (100 << 20))[:]
        return real(self, size, where)

    real = stream.Reader._read
    monkeypatch.setattr(stream.Reader, "_read", greedy)
    assert "MiB of memory" in _failures()


def test_the_runner_finds_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(self: object, section: object, data: memoryview, length: int) -> bytes:
        while True:
            pass

    monkeypatch.setattr(memory_section.MemoryDecoder, "_decompress", hangs)
    monkeypatch.setattr(fuzz_stream, "_SECONDS", 0.2)
    assert "more than 0.2 seconds" in _failures(5)
