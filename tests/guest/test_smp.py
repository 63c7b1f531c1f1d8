# SPDX-License-Identifier: Apache-2.0
"""Guests with several vCPUs and several memory regions: run together, stopped together, saved and restored."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.patience import LIMIT, eventually
from vmm.arch import ARCHITECTURE, module
from vmm.guest.base import BaseGuest, GuestError
from vmm.guest.layout import OWN_START, Own, end_of_own, own, split
from vmm.guest.payload import PayloadError, load
from vmm.kvm.exits import Budget, Deadline, Stopped
from vmm.kvm.system import Kvm
from vmm.state.capture import capture, restore
from vmm.state.compare import compare
from vmm.state.roundtrip import from_stream, to_stream

pytestmark = pytest.mark.kvm
chain = module("chain")
_STEPS, _SEED = 200, 5
_HIGH = 4 << 30


def _expected(level: str, vcpus: int) -> list[bytes]:
    return [chain.reference(level, _STEPS, seed) for seed in chain.seeds(_SEED, vcpus)]


def _chain(kvm: Kvm, vcpus: int, **options: object) -> BaseGuest:
    guest: BaseGuest = chain.make_guest(kvm, chain.best(kvm), _STEPS, _SEED, vcpus=vcpus, **options)
    return guest


@pytest.fixture
def pair(kvm: Kvm) -> Iterator[BaseGuest]:
    """A guest with two vCPUs that have no end."""
    with chain.make_guest(kvm, chain.best(kvm), 1 << 62, _SEED, vcpus=2) as guest:
        yield guest


@pytest.mark.parametrize("vcpus", [2, 3])
def test_each_vcpu_comes_to_the_digest_of_its_own_seed(kvm: Kvm, vcpus: int) -> None:
    with _chain(kvm, vcpus) as guest:
        assert guest.finish(guest.resume(LIMIT)) == guest.DONE
        assert chain.digests(guest) == _expected(chain.best(kvm), vcpus)
        assert len(set(chain.digests(guest))) == vcpus
        assert guest.event(guest.resume(LIMIT)) == guest.DONE, "who has ended does not run again"


def test_every_vcpu_makes_the_ticks_that_were_asked_for(kvm: Kvm) -> None:
    with _chain(kvm, 3) as guest:
        assert guest.resume(LIMIT, ticks=17) == Budget(17)
        assert [chain.progress(processor) for processor in guest.processors] == [17] * 3


@pytest.mark.parametrize("level", ["least", "best"])
def test_several_vcpus_and_regions_survive_a_save_and_a_restore(kvm: Kvm, level: str) -> None:
    name = chain.available(kvm)[0] if level == "least" else chain.best(kvm)
    regions = ((0, 4 << 20), (_HIGH, 8 << 20))
    with chain.make_guest(kvm, name, _STEPS, _SEED, vcpus=2, regions=regions) as guest:
        guest.vm.memories[1].write(_HIGH + 0x5000, b"far away")
        assert isinstance(guest.resume(LIMIT, ticks=90), Budget)
        data = to_stream(capture(guest))
    state = from_stream(data)
    assert [vcpu.identifier for vcpu in state.vcpus] == [0, 1]
    assert [(region.gpa, region.size) for region in state.memory] == list(regions)
    with restore(kvm, state) as twin:
        assert compare(state, capture(twin)) == []
        assert twin.vm.memories[1].read(_HIGH + 0x5000, 8) == b"far away"
        twin.finish(twin.resume(LIMIT))
        assert chain.digests(twin) == _expected(name, 2)


def test_a_guest_with_one_vcpu_has_nothing_of_several(kvm: Kvm) -> None:
    with _chain(kvm, 1) as guest, _chain(kvm, 2) as other:
        first, second = capture(guest), capture(other)
        assert guest.own == [] and len(first.vcpus) == 1
        beyond = [extent for extent in first.memory[0].extents if extent.gpa >= OWN_START]
        assert beyond == [], "what other vCPUs have is not there"
        assert any(extent.gpa >= OWN_START for extent in second.memory[0].extents)


def test_a_kick_stops_all_vcpus_and_none_runs_on(pair: BaseGuest) -> None:
    exits: list[object] = []
    thread = threading.Thread(target=lambda: exits.append(pair.resume(LIMIT)), daemon=True)
    thread.start()
    assert eventually(lambda: all(chain.progress(processor) > 100 for processor in pair.processors))
    pair.kick()
    thread.join(LIMIT)
    assert exits == [Stopped()]
    before = [chain.progress(processor) for processor in pair.processors]
    time.sleep(0.05)
    assert [chain.progress(processor) for processor in pair.processors] == before


def test_a_kick_between_two_runs_stops_the_next_one_only(pair: BaseGuest) -> None:
    pair.kick()
    assert pair.resume(LIMIT) == Stopped()
    assert pair.resume(LIMIT, ticks=50) == Budget(50), "what is left of a kick stops nobody"
    assert isinstance(pair.resume(0.05), Deadline)


def test_state_is_not_read_while_a_vcpu_runs(pair: BaseGuest) -> None:
    thread = threading.Thread(target=lambda: pair.resume(LIMIT), daemon=True)
    thread.start()
    assert eventually(lambda: chain.progress(pair) > 10)
    with pytest.raises(RuntimeError, match="while one of its vCPUs runs"):
        capture(pair)
    pair.kick()
    thread.join(LIMIT)
    assert len(capture(pair, memory=False).vcpus) == 2


def test_an_interrupted_run_leaves_no_vcpu_running(pair: BaseGuest) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    pair.prepare("spin", privilege=pair.USER)  # without ticks: a signal that comes with one is not noticed at once
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for processor in (None, pair.processors[0]):
            if processor:
                processor.ended = Stopped()  # its thread waits for the other vCPU then
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Interrupted):
                pair.resume(LIMIT)
            assert len(capture(pair, memory=False).vcpus) == 2, "which refuses to read a guest that runs"
            pair.processors[0].ended = None
            assert isinstance(pair.resume(0.05), Deadline)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_two_vcpus_that_leave_together_are_told_one_after_the_other(kvm: Kvm) -> None:
    with _chain(kvm, 3) as guest:
        for index in (1, 2):
            guest.prepare_vcpu(index, 0x3FF000)  # zeros there
        left = []
        for _ in range(2):
            guest.resume(LIMIT)
            left.append(guest.left)
            if not guest.waiting:
                break
        assert left and all(one in guest.processors[1:] for one in left)


def test_a_vcpu_that_ended_early_waits_for_the_other_and_ends_again_after_a_restore(kvm: Kvm) -> None:
    level = chain.best(kvm)
    with _chain(kvm, 2) as guest:
        guest.processors[1].mailbox.write("params", 20, 0)  # fewer steps than the other one has
        short = chain.reference(level, 20, chain.seeds(_SEED, 2)[1])
        assert isinstance(guest.resume(LIMIT, ticks=50), Budget)
        assert guest.processors[1].ended
        state = capture(guest)
    with restore(kvm, state) as twin:
        twin.finish(twin.resume(LIMIT))
        assert chain.digests(twin) == [chain.reference(level, _STEPS, _SEED), short]


def test_the_exit_of_one_vcpu_stops_the_others_and_says_whose_it_is(kvm: Kvm) -> None:
    with chain.make_guest(kvm, chain.available(kvm)[0], 1 << 62, _SEED, vcpus=2) as guest:
        guest.prepare_vcpu(1, 0x3FF000)  # zeros there
        exit = guest.resume(LIMIT)
        assert guest.event(exit) != guest.DONE and not isinstance(exit, Deadline | Stopped)
        assert guest.left is guest.processors[1]
        with pytest.raises(GuestError):
            guest.finish(exit)


@pytest.mark.skipif(ARCHITECTURE != "x86", reason="APIC ids are of x86")
def test_each_vcpu_has_its_own_apic_id(kvm: Kvm) -> None:
    from vmm.x86.cpuid import get_cpuid

    with _chain(kvm, 3) as guest:
        assert [get_cpuid(one.vcpu).get(1).ebx >> 24 for one in guest.processors] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"vcpus": 1 << 20}, "at most .* vCPUs here"),
        ({"vcpus": 60}, "chain with 60 vCPUs needs .* give it more"),
        ({"regions": ((0x1000, 4 << 20),)}, "begins at 0"),
        ({"regions": ((0, 4 << 20), (_HIGH - (1 << 20), 4 << 20))}, "where devices are"),
        ({"memory_size": 1 << 44}, "may end at"),
    ],
)
def test_a_guest_that_cannot_be_is_refused_in_a_sentence(kvm: Kvm, options: dict[str, object], reason: str) -> None:
    with pytest.raises(PayloadError, match=reason):
        _chain(kvm, options.pop("vcpus", 1), **options)  # type: ignore[arg-type]


def test_a_payload_for_one_vcpu_is_refused_with_two(kvm: Kvm) -> None:
    with pytest.raises(PayloadError, match="is for one vCPU"):
        module("guest").Guest(kvm, "hello", vcpus=2)


def test_what_vcpus_have_for_themselves_does_not_overlap() -> None:
    payload = load("chain")
    assert payload.smp and payload.data is not None
    pages = 7
    places = [own(payload, index, pages) for index in (1, 2, 3)]
    size = payload.end - payload.data
    ends = [place.data + size for place in places]
    assert all(isinstance(place, Own) and place.data == place.tables + pages * 4096 for place in places)
    assert all(end <= following.tables for end, following in zip(ends, places[1:], strict=False))
    assert ends[-1] <= end_of_own(payload, 4, pages) and end_of_own(payload, 1, pages) == payload.end


def test_memory_that_reaches_the_hole_continues_behind_it() -> None:
    hole = (3 << 30, _HIGH)
    assert split(3 << 30, hole) == ((0, 3 << 30),)
    assert split(8 << 30, hole) == ((0, 3 << 30), (_HIGH, 5 << 30))
