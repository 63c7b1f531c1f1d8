# SPDX-License-Identifier: Apache-2.0
"""A guest's memory is in a process once: from a stream into a guest, and two streams side by side."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.patience import LIMIT
from tests.state.state_samples import tiny_state
from tests.state.stream_cases import TINY, written
from vmm.arch import module
from vmm.kvm.system import Kvm
from vmm.state.capture import capture
from vmm.state.compare import memory_differences
from vmm.state.errors import StreamError
from vmm.state.stream.container import Writer
from vmm.state.stream.decode import open_state, read_state
from vmm.state.stream.encode import CONFIG, config_body, header_body, part_body
from vmm.state.stream.memory import CHUNK, MEMORY, MemoryEncoder
from vmm.state.stream.pages import page_differences
from vmm.state.stream.staging import Staging
from vmm.state.value import PAGE, Extent, MemoryState, VmState

_MIB = 1 << 20
_GUEST = 512 * _MIB


class _Memory:
    """A region of a guest, without the guest."""

    def __init__(self, region: MemoryState) -> None:
        self.gpa, self.data = region.gpa, bytearray(region.size)

    def write(self, gpa: int, data: memoryview) -> None:
        self.data[gpa - self.gpa : gpa - self.gpa + len(data)] = data

    def current(self) -> memoryview:
        return memoryview(self.data)


def _with_memory(*regions: MemoryState) -> VmState:
    return replace(tiny_state(), memory=regions)


def _region(gpa: int, size: int, **pages: int) -> MemoryState:
    """A region of ``size`` pages: each page number with the byte that fills it."""
    numbers = sorted((int(name[1:]), value) for name, value in pages.items())
    extents = (Extent(gpa + number * PAGE, bytes([value]) * PAGE) for number, value in numbers)
    return MemoryState.merged(gpa, size * PAGE, extents)


def _staged(state: VmState) -> tuple[Staging, VmState]:
    staging = Staging()
    return staging, read_state(io.BytesIO(written(state)), staging=staging)


_MORE = 2 * CHUNK // PAGE + 3
_REGIONS = (
    _region(0, _MORE, p0=1, p1=2, p255=3, p256=4, p257=5, **{f"p{_MORE - 1}": 6}),
    _region(1 << 30, 2, p1=7),
    _region(1 << 31, 1),
)


def test_staged_memory_is_what_the_stream_holds() -> None:
    _, state = _staged(_with_memory(*_REGIONS))
    assert memory_differences(state.memory, _REGIONS) == []


def test_moved_memory_is_in_the_guest_and_nowhere_else() -> None:
    staging, state = _staged(_with_memory(*_REGIONS))
    there: list[Any] = [_Memory(region) for region in _REGIONS]
    staging.move_to(reversed(there))
    assert tuple(MemoryState.of(memory.gpa, memory.current()) for memory in there) == _REGIONS
    assert not any(any(extent.data) for region in state.memory for extent in region.extents)
    assert staging.wrong(there) == ""


@pytest.mark.parametrize("page", [0, 2, 255, 300, _MORE - 2, _MORE - 1])
def test_a_page_that_is_another_after_the_move_is_noticed(page: int) -> None:
    staging, _ = _staged(_with_memory(*_REGIONS))
    there: list[Any] = [_Memory(region) for region in _REGIONS]
    staging.move_to(there)
    there[0].data[page * PAGE + 9] ^= 1
    chunk = page * PAGE // CHUNK * CHUNK
    assert staging.wrong(there).endswith(f"bytes at {chunk:#x} are others")


def test_a_stream_damaged_behind_its_memory_gives_no_state() -> None:
    damaged = bytearray(TINY)
    damaged[-1] ^= 1
    with pytest.raises(StreamError, match="does not have its digest"):
        read_state(io.BytesIO(bytes(damaged)), staging=Staging())
    _, pieces = open_state(io.BytesIO(bytes(damaged)))
    assert len(next(pieces).data) == PAGE
    with pytest.raises(StreamError, match="does not have its digest"):
        next(pieces)


# --- two streams ----------------------------------------------------------------------------------


def _streamed(first: VmState, second: VmState) -> list[str]:
    (ours, pieces), (theirs, others) = (open_state(io.BytesIO(written(state))) for state in (first, second))
    return sorted(map(str, page_differences(ours.memory, pieces, theirs.memory, others)))


def _regions() -> st.SearchStrategy[tuple[MemoryState, ...]]:
    pages = st.dictionaries(st.integers(0, 5).map("p{}".format), st.integers(0, 2), max_size=6)
    regions = [st.builds(lambda found, gpa=gpa: _region(gpa, 6, **found), pages) for gpa in (0, 0x8000, 1 << 20)]
    return st.permutations(regions).flatmap(lambda some: st.tuples(*some))


@given(_regions(), _regions())
@example((_region(0, 6, p1=1),), (_region(0, 6, p1=0),))
@example((_region(0, 6, p1=0),), (_region(0, 6),))
@example((_region(0, 6, p1=1),), (_region(0, 5, p1=2),))
@example((_region(0, 6, p1=1), _region(0x8000, 6)), (_region(0x8000, 6, p2=1),))
def test_streams_differ_as_the_states_do(first: tuple[MemoryState, ...], second: tuple[MemoryState, ...]) -> None:
    whole = sorted(map(str, memory_differences(first, second)))
    assert _streamed(_with_memory(*first), _with_memory(*second)) == [row for row in whole if "pages differ" in row]


def test_a_difference_is_named_by_its_first_byte() -> None:
    first, second = _region(0, 6, p1=1, p4=1), _region(0, 6, p1=1, p4=2, p5=1)
    row = "memory region at 0x0: 2 pages differ, the first byte at 0x4000: 01, 02"
    assert _streamed(_with_memory(first), _with_memory(second)) == [row]


# --- how much memory it takes ---------------------------------------------------------------------


def _write_large(path: Path, small: VmState, fill: bytes) -> None:
    """Write a guest's state again, with 512 MiB of memory that is zero nowhere beyond the guest's own."""
    state = replace(small, memory=(MemoryState(0, _GUEST),))
    with path.open("wb") as file:
        writer = Writer(file, state.arch, header_body(state))
        writer.section(CONFIG, 0, config_body(state))
        for name in state.vcpus[0].parts:
            writer.section(name, 0, part_body(state.arch, name, state.vcpus[0].parts))
        encoder = MemoryEncoder()
        for body in encoder.bodies(small.memory[0]):
            writer.section(MEMORY, 0, *body)
        for gpa in range(small.memory[0].size, _GUEST, CHUNK):
            writer.section(MEMORY, 0, *encoder.body(gpa, fill * (CHUNK // len(fill))))
        writer.end()


# What a process had before its exec counts as its own, and pytest has much: a small one in between starts it.
_MEASURE = """
import os, sys
nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=nowhere), 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)
"""


def _peak(*arguments: str | Path) -> tuple[int, int]:
    """Run vmm and return its status and the most memory in bytes that it ever had."""
    command = [sys.executable, "-c", _MEASURE, sys.executable, "-m", "vmm", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
    status, peak = map(int, done.stdout.split())
    return status, peak


@pytest.fixture
def large(kvm: Kvm, tmp_path: Path) -> Path:
    """The file of a guest of 512 MiB that is done in a moment."""
    with module("guest").Guest(kvm, "hello") as guest:
        guest.prepare("ticks", 10)
        guest.resume(ticks=5)
        _write_large(tmp_path / "large.vm", capture(guest), b"not zero")
    return tmp_path / "large.vm"


@pytest.mark.kvm
def test_a_restore_takes_the_memory_of_the_guest_and_64_mib(large: Path) -> None:
    status, peak = _peak("restore", large, "--memory", "1G")
    assert status == 0
    assert _GUEST <= peak <= _GUEST + 64 * _MIB, f"{peak >> 20} MiB"


@pytest.mark.kvm
def test_a_diff_does_not_take_the_memory_of_the_guests(large: Path) -> None:
    other = large.with_name("other.vm")
    other.write_bytes(large.read_bytes())
    status, peak = _peak("diff", large, other, "--memory", "1G")
    assert status == 0
    assert peak <= 128 * _MIB, f"{peak >> 20} MiB"
