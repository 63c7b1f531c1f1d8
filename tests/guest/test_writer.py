# SPDX-License-Identifier: Apache-2.0
"""The writer payload: every page holds what it has to, at the pace that was asked for; one that does not is found."""

from __future__ import annotations

import struct
import threading
import time

import pytest

from tests.patience import LIMIT
from vmm.arch import module
from vmm.guest.base import BaseGuest
from vmm.guest.layout import OWN_START, Regions
from vmm.guest.payload import PayloadError
from vmm.guest.writer import PAGE, PAYLOAD, Load, prepare, word
from vmm.kvm.exits import Budget, Deadline, Stopped
from vmm.kvm.system import Kvm
from vmm.state.capture import capture, restore

pytestmark = pytest.mark.kvm
_HIGH = 4 << 30
_TWO: Regions = ((0, 4 << 20), (_HIGH, 2 << 20))
_FAST = Load(200_000, 50, 1)


def _writer(kvm: Kvm, load: Load, *, regions: Regions = ((0, 8 << 20),), vcpus: int = 1) -> BaseGuest:
    guest: BaseGuest = module("guest").Guest(kvm, PAYLOAD, regions=regions, vcpus=vcpus)
    prepare(guest, load)
    return guest


def _wrong_pages(guest: BaseGuest) -> list[int]:
    """Return the pages that do not hold what the vCPUs' progress says, as the host sees it."""
    wrong = []
    for processor in guest.processors:
        start, pages, written, *_, split, gap = (processor.mailbox.read("params", index) for index in range(8))
        generation, done = processor.mailbox.read("values", 0), processor.mailbox.read("values", 1)
        for number in range(pages):
            address = start + number * PAGE + (gap if number >= split else 0)
            expected = 1 if number >= written else generation - (number >= done)
            content = struct.pack("<Q", word(expected, address)) * (PAGE // 8)
            memory = next(one for one in guest.vm.memories if one.gpa <= address < one.gpa + one.size)
            if memory.read(address, PAGE) != content:
                wrong.append(address)
    return wrong


@pytest.mark.parametrize("vcpus", [1, 2, 3])
@pytest.mark.parametrize("regions", [((0, 8 << 20),), _TWO], ids=["one", "two"])
def test_all_pages_are_right_to_the_guest_and_to_the_host(kvm: Kvm, regions: Regions, vcpus: int) -> None:
    with _writer(kvm, _FAST, regions=regions, vcpus=vcpus) as guest:
        assert guest.resume(LIMIT, ticks=5) == Budget(5)
        assert _wrong_pages(guest) == []
        assert guest.finish(guest.resume(LIMIT)) == guest.DONE
        assert _wrong_pages(guest) == []
        looked_at = [processor.mailbox.read("values", 3) for processor in guest.processors]
        assert sum(looked_at) * PAGE > sum(size for _, size in regions) - (3 << 20), "nearly all of the memory"


@pytest.mark.parametrize("place", [OWN_START, (8 << 20) - 8, 5 << 20])
def test_a_page_that_is_not_as_it_was_left_is_found(kvm: Kvm, place: int) -> None:
    with _writer(kvm, _FAST) as guest:
        guest.resume(LIMIT, ticks=5)
        state = capture(guest)
        assert guest.finish(guest.resume(LIMIT)) == guest.DONE
    with restore(kvm, state) as twin:
        twin.memory.write(place, bytes(8))
        exit = twin.resume(LIMIT)
        assert twin.event(exit) == 3, "DIFFERENT"
        assert twin.mailbox.read("difference") == place
        assert twin.mailbox.read("values", 5) == 0


def test_a_page_of_an_earlier_generation_is_found(kvm: Kvm) -> None:
    with _writer(kvm, _FAST) as guest:
        guest.resume(LIMIT, ticks=1)
        stale = guest.memory.read(OWN_START, PAGE)
        generation = guest.mailbox.read("values", 0)
        while guest.mailbox.read("values", 0) < generation + 2:
            guest.resume(LIMIT, ticks=1)
        guest.memory.write(OWN_START, stale)
        exit = guest.resume(LIMIT)
        assert guest.event(exit) == 3 and guest.mailbox.read("difference") == OWN_START


def test_a_writer_is_not_faster_than_its_pace(kvm: Kvm) -> None:
    with _writer(kvm, Load(1000, 50, 1), vcpus=2) as guest:
        guest.resume(LIMIT, ticks=1)
        began = time.monotonic()
        assert guest.finish(guest.resume(LIMIT)) == guest.DONE
        assert time.monotonic() - began > 0.8, "what takes a second by its pace takes milliseconds without"


def test_a_writer_that_waits_for_its_pace_is_stopped_at_once(kvm: Kvm) -> None:
    with _writer(kvm, Load(1, 50, 1000), vcpus=2) as guest:
        assert isinstance(guest.resume(0.2), Deadline)
        threading.Timer(0.1, guest.kick).start()
        began = time.monotonic()
        while not isinstance(guest.resume(LIMIT), Stopped):
            pass
        assert time.monotonic() - began < LIMIT / 2
        assert len(capture(guest).vcpus) == 2


@pytest.mark.parametrize("numbers", [(0, 25, 1), (1, 0, 1), (1, 101, 1), (1 << 40, 1, 1), (1, 1, -1)])
def test_a_load_that_no_guest_can_be_is_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(PayloadError, match="pages per second"):
        Load(*numbers)


@pytest.mark.parametrize("vcpus", [1, 2, 7])
@pytest.mark.parametrize("rate", [1, 10, 2560, 256_000])
def test_the_pace_of_all_vcpus_together_is_the_rate(rate: int, vcpus: int) -> None:
    pages, microseconds, bursts = Load(rate, 50, 60).paced(vcpus)
    assert vcpus * pages / microseconds * 1e6 == pytest.approx(rate, rel=0.01)
    assert bursts * microseconds / 1e6 == pytest.approx(60, rel=0.3)


def test_too_little_memory_for_the_vcpus_is_refused(kvm: Kvm) -> None:
    guest = module("guest").Guest(kvm, PAYLOAD, memory_size=OWN_START)
    with guest, pytest.raises(PayloadError, match="too few"):
        prepare(guest, _FAST)
