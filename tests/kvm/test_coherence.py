# SPDX-License-Identifier: Apache-2.0
"""Non-coherent guest memory: what is flushed and what is not, and what a migration may move."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm._kvm import ffi, lib
from vmm.kvm import coherence
from vmm.kvm.coherence import Coherence, NonCoherentMemory, Policy, merge, plan
from vmm.kvm.memory import PAGE_SIZE, GuestMemory, MemoryUnavailable
from vmm.kvm.system import Kvm
from vmm.kvm.vm import VirtualMachine
from vmm.state.capture import capture_memory, restore_memory

SIZE = 16 * PAGE_SIZE
LINE = coherence.line_size()


# Merging

RANGES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 300)), max_size=20)


def _bytes(ranges: list[tuple[int, int]]) -> set[int]:
    return {at for offset, length in ranges for at in range(offset, offset + length)}


@given(RANGES, st.sampled_from([1, 16, 64, 4096]))
def test_merged_ranges_cover_every_wanted_byte_and_no_unwanted_line(ranges: list[tuple[int, int]], unit: int) -> None:
    merged = merge(ranges, unit)
    wanted = _bytes(ranges)
    assert wanted <= _bytes(merged)
    assert {at // unit for at in _bytes(merged)} == {at // unit for at in wanted}


@given(RANGES, st.sampled_from([1, 64]))
def test_merged_ranges_are_in_order_and_do_not_touch(ranges: list[tuple[int, int]], unit: int) -> None:
    merged = merge(ranges, unit)
    assert all(length > 0 and offset % unit == 0 and length % unit == 0 for offset, length in merged)
    assert all(sum(first) < second[0] for first, second in pairwise(merged))


# Which memory is flushed


class Recorder:
    """Stands in for the bindings and notes every range that is flushed, by address."""

    def __init__(self) -> None:
        self.flushed: list[tuple[int, int]] = []
        self.calls = 0

    def vmm_flush(self, base: Any, ranges: Any, count: int) -> int:
        self.calls += 1
        start = int(ffi.cast("uintptr_t", base))
        self.flushed += [(start + ranges[2 * n], ranges[2 * n + 1]) for n in range(count)]
        return int(lib.vmm_flush(base, ranges, count))

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(coherence, "lib", recorder)
    return recorder


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[VirtualMachine]:
    with kvm.create_vm() as vm:
        yield vm


@pytest.fixture
def plain(vm: VirtualMachine) -> GuestMemory:
    return vm.add_memory(SIZE)


@pytest.fixture
def shared_with_a_device(vm: VirtualMachine) -> GuestMemory:
    return vm.add_memory(SIZE, 1 << 30, coherence="non-coherent")


def use(memory: GuestMemory) -> None:
    """Everything that reads or writes guest memory, once."""
    memory.write(memory.gpa + 100, b"abc")
    assert memory.read(memory.gpa + 100, 3) == b"abc"
    assert dict(memory.pages([2, 0]))[0][100:103] == b"abc"
    memory.flush([3])
    memory.flush()


@pytest.mark.kvm
def test_coherent_memory_is_never_flushed(plain: GuestMemory, recorder: Recorder) -> None:
    use(plain)
    assert recorder.calls == 0 and plain.flushed_lines == 0


@pytest.mark.kvm
def test_each_access_to_non_coherent_memory_flushes_exactly_what_it_touches(
    plain: GuestMemory, shared_with_a_device: GuestMemory, recorder: Recorder
) -> None:
    use(plain)
    use(shared_with_a_device)
    base, page = shared_with_a_device.address, PAGE_SIZE
    assert recorder.flushed == [
        (base + 100 // LINE * LINE, LINE),  # the write
        (base + 100 // LINE * LINE, LINE),  # the read
        (base, page), (base + 2 * page, page),  # two pages in one call, in order
        (base + 3 * page, page),
        (base, SIZE),
    ]  # fmt: skip
    assert recorder.calls == 5
    assert shared_with_a_device.flushed_lines == 2 + (3 * page + SIZE) // LINE
    assert plain.flushed_lines == 0


@pytest.mark.kvm
def test_neighbouring_pages_are_flushed_together(shared_with_a_device: GuestMemory, recorder: Recorder) -> None:
    numbers = [7, 5, 6, 1, 2]
    assert [number for number, _ in shared_with_a_device.pages(numbers)] == numbers
    base = shared_with_a_device.address
    assert recorder.flushed == [(base + PAGE_SIZE, 2 * PAGE_SIZE), (base + 5 * PAGE_SIZE, 3 * PAGE_SIZE)]
    assert recorder.calls == 1


@pytest.mark.kvm
def test_capture_and_restore_each_flush_non_coherent_memory_once(
    vm: VirtualMachine, plain: GuestMemory, shared_with_a_device: GuestMemory, recorder: Recorder
) -> None:
    plain.view[5] = shared_with_a_device.view[6] = 1
    guest: Any = SimpleNamespace(vm=vm, memory=shared_with_a_device)
    first, second = capture_memory(guest)
    assert (first.extents[0].data[5], second.extents[0].data[6]) == (1, 1)
    assert recorder.flushed == [(shared_with_a_device.address, SIZE)] and recorder.calls == 1
    restore_memory(guest, [second])
    assert recorder.flushed[1:] == [(shared_with_a_device.address, PAGE_SIZE)]
    assert plain.flushed_lines == 0


@pytest.mark.kvm
def test_the_flush_comes_before_a_read_and_after_a_write(
    shared_with_a_device: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A device that writes behind the caches: its data shows once the lines are flushed.
    memory, seen = shared_with_a_device, []

    def flush(base: int, ranges: list[tuple[int, int]]) -> int:
        seen.append(bytes(memory.view[:1]))
        memory.view[0] ^= 0x80
        return 1

    monkeypatch.setattr(coherence, "flush", flush)
    assert memory.read(memory.gpa, 1) == b"\x80"
    memory.write(memory.gpa, b"\x11")
    assert seen == [b"\0", b"\x11"]
    assert next(memory.pages([0]))[1][:1] == b"\x11"


@pytest.mark.kvm
@pytest.mark.parametrize("numbers", [[SIZE // PAGE_SIZE], [0, -1]])
def test_a_page_outside_the_memory_is_refused(
    shared_with_a_device: GuestMemory, recorder: Recorder, numbers: list[int]
) -> None:
    with pytest.raises(IndexError, match="outside the guest memory"):
        shared_with_a_device.flush(numbers)
    with pytest.raises(IndexError, match="outside the guest memory"):
        list(shared_with_a_device.pages(numbers))
    assert recorder.calls == 0


@pytest.mark.kvm
def test_an_unknown_coherence_is_refused(vm: VirtualMachine) -> None:
    with pytest.raises(ValueError, match="'sometimes' is none of coherent, non-coherent"):
        vm.add_memory(SIZE, coherence="sometimes")


@pytest.mark.kvm
def test_non_coherent_memory_is_refused_where_nothing_can_flush(
    vm: VirtualMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coherence, "line_size", lambda: 0)
    with pytest.raises(MemoryUnavailable, match="no instruction"):
        vm.add_memory(SIZE, coherence="non-coherent")
    assert vm.memories == []


def test_a_flush_keeps_the_contents_and_counts_its_lines() -> None:
    if not LINE:
        pytest.skip("this CPU flushes no cache line for user programs")
    data = bytearray(os.urandom(4 * PAGE_SIZE))
    before = bytes(data)
    address = int(ffi.cast("uintptr_t", ffi.from_buffer("uint8_t[]", data)))
    start = address + -address % LINE
    assert (
        coherence.flush(start, [(0, PAGE_SIZE), (PAGE_SIZE + LINE, 1), (PAGE_SIZE - 1, 1)]) == PAGE_SIZE // LINE + 1
    )
    assert bytes(data) == before
    assert coherence.flush(start, []) == 0


def test_a_cpu_without_a_flush_instruction_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without(Recorder):
        def vmm_flush(self, base: Any, ranges: Any, count: int) -> int:
            return -errno.EOPNOTSUPP

        def vmm_flush_line(self) -> int:
            return 0

        def vmm_flush_name(self) -> Any:
            return ffi.NULL

    monkeypatch.setattr(coherence, "lib", Without())
    assert (coherence.line_size(), coherence.instruction()) == (0, "")
    with pytest.raises(OSError, match="no instruction that flushes") as caught:
        coherence.flush(0x1000, [(0, 1)])
    assert caught.value.errno == errno.EOPNOTSUPP


# What a migration may move


@dataclass
class Region:
    """As much of guest memory as a plan looks at."""

    slot: int
    gpa: int
    size: int
    coherence: Coherence


RAM = Region(0, 0, 4 << 20, Coherence.COHERENT)
APERTURE = Region(1, 0xE0000000, 256 << 10, Coherence.NON_COHERENT)


@pytest.mark.parametrize("policy", list(Policy))
def test_coherent_memory_is_moved_without_a_flush_under_every_policy(policy: Policy) -> None:
    decided = plan([RAM], policy)
    assert (decided.policy, decided.flushed, decided.lines()) == (policy, (), [])


def test_the_policy_refuse_refuses_non_coherent_memory() -> None:
    with pytest.raises(NonCoherentMemory) as caught:
        plan([RAM, APERTURE], Policy.REFUSE)
    sentence = str(caught.value)
    assert "slot 1 (256 KiB at 0xe0000000)" in sentence and "slot 0" not in sentence
    assert "policy refuse" in sentence and "policy flush" in sentence


def test_the_policy_flush_announces_what_is_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coherence, "line_size", lambda: 64)
    monkeypatch.setattr(coherence, "instruction", lambda: "CLFLUSHOPT")
    decided = plan([RAM, APERTURE], Policy.FLUSH)
    assert decided.flushed == (APERTURE,)
    (line,) = decided.lines()
    assert line.startswith("slot 1 (256 KiB at 0xe0000000) is read through CLFLUSHOPT and sent whole after the stop")


def test_memory_that_cannot_be_flushed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coherence, "line_size", lambda: 0)
    with pytest.raises(NonCoherentMemory, match=r"slot 1 .* no instruction"):
        plan([APERTURE], Policy.FLUSH)
    assert plan([RAM], Policy.FLUSH).flushed == ()
