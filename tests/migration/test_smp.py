# SPDX-License-Identifier: Apache-2.0
"""Guests with several vCPUs and regions that move while they run, and the deadline of a migration."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from tests.migration.faults import Point, survives
from tests.migration.test_migration import Pair
from tests.patience import LIMIT
from vmm.arch import module
from vmm.guest.base import BaseGuest
from vmm.guest.layout import Regions
from vmm.guest.writer import PAYLOAD, Load, prepare
from vmm.kvm.system import Kvm
from vmm.migration.convergence import Limits
from vmm.migration.deadline import Bound, TimeIsUp
from vmm.migration.errors import LineLost
from vmm.migration.handover import At
from vmm.migration.runner import Runner
from vmm.migration.source import Options, Source
from vmm.migration.transport import Connector, parse
from vmm.migration.wire import Kind

pytestmark = pytest.mark.kvm
chain = module("chain")
_LEVEL, _STEPS, _SEED = "sse", 20000, 7
_REGIONS: Regions = ((0, 8 << 20), (4 << 30, 16 << 20))


def _pair_of_vcpus(kvm: Kvm) -> BaseGuest:
    guest: BaseGuest = chain.make_guest(kvm, _LEVEL, _STEPS, _SEED, vcpus=2, regions=_REGIONS)
    guest.vm.memories[1].view[:4096] = b"x" * 4096
    return guest


def _right() -> str:
    return " ".join(chain.reference(_LEVEL, _STEPS, seed).hex() for seed in chain.seeds(_SEED, 2))


def _writer(kvm: Kvm, seconds: int = 3, rate: int = 5000) -> BaseGuest:
    guest: BaseGuest = module("guest").Guest(kvm, PAYLOAD, vcpus=2, regions=_REGIONS)
    prepare(guest, Load(rate, 50, seconds))
    return guest


@pytest.mark.parametrize("ring", [0, 1024], ids=["bitmaps", "rings"])
def test_a_guest_with_two_vcpus_and_two_regions_ends_with_the_right_digests(ring: int, tmp_path: Path) -> None:
    pair = Pair(make=_pair_of_vcpus, ring=ring).run(tmp_path)
    assert (pair.report["outcome"], pair.report["reason"]) == ("moved", "")
    assert (pair.here, pair.there, pair.status) == (None, _right(), 0)


@pytest.mark.parametrize("ring", [0, 1024], ids=["bitmaps", "rings"])
def test_no_page_of_a_guest_that_writes_all_the_time_is_stale_or_torn(ring: int, tmp_path: Path) -> None:
    limits = Limits(downtime=0.5, rate=64 << 20)
    pair = Pair(make=_writer, ring=ring, source=Options(limits=limits, audit=True, patience=LIMIT)).run(tmp_path)
    assert pair.report["outcome"] == "moved", pair.report
    assert pair.report["rounds"] > 1
    assert pair.there and pair.there.startswith("done") and pair.status == 0


# --- faults ---------------------------------------------------------------------------------------


# With two vCPUs: what else may happen to a process, at the moments that matter.
_STRIKES = [
    Point("stop-source", Kind.FINAL, 1.0),
    Point("stop-target", Kind.HANDOVER, 0.5),
    Point("term-target", Kind.READY, 1.0),
    Point("int-source", Kind.MEMORY, 0.5),
    Point("full-source", Kind.MEMORY, 0.5),
    Point("full-target", Kind.HANDOVER, 1.0),
    Point("kill-source", Kind.HANDOVER, 1.0),
]


@pytest.mark.parametrize("point", _STRIKES, ids=str)
def test_a_fault_with_two_vcpus_never_leaves_two_guests_and_loses_none_whose_side_lives(point: Point) -> None:
    survives(point, vcpus=2)


# --- the deadline ---------------------------------------------------------------------------------


def _slowly(**options: object) -> Options:
    # 24 MiB, of which the writer fills most, at 4 MiB a second: 5 seconds and more.
    limits = Limits(downtime=0.01, rate=4 << 20)
    return Options(limits=limits, patience=LIMIT, deadline=1.0, **options)  # type: ignore[arg-type]


def test_a_migration_that_is_not_over_at_its_deadline_is_cancelled_and_the_guest_runs_on(tmp_path: Path) -> None:
    pair = Pair(make=_writer, source=_slowly()).run(tmp_path)
    assert (pair.report["outcome"], pair.there) == ("kept", None)
    assert "not over after 1.0 s" in pair.report["reason"]
    assert pair.here and pair.here.startswith("done"), "and all of its pages are right"
    assert any("its deadline" in sentence for sentence in pair.said), "the receiver was told, and dropped it at once"


def test_a_migration_that_is_forced_at_its_deadline_stops_the_guest_and_moves_it(tmp_path: Path) -> None:
    pair = Pair(make=_writer, source=_slowly(force=True)).run(tmp_path)
    assert pair.report["outcome"] == "moved", pair.report
    assert any("the guest was stopped to copy the rest" in note for note in pair.report["notes"])
    assert pair.there and pair.there.startswith("done")


@pytest.mark.parametrize("how", ["silent", "trickling"])
def test_a_receiver_that_says_nothing_of_use_does_not_hold_a_migration_beyond_its_deadline(
    how: str, kvm: Kvm, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, _writer(kvm, seconds=1) as guest:
        over = threading.Event()

        def serve() -> None:
            line, _ = server.accept()
            with line:
                while not over.wait(0.1):
                    if how == "trickling":
                        line.send(b"\0")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        runner = Runner(guest, limit=LIMIT)
        runner.go()
        began = time.monotonic()
        connector = Connector(parse(f"127.0.0.1:{server.getsockname()[1]}"), LIMIT)
        report = Source(runner, connector, Options(deadline=0.5, patience=LIMIT)).migrate()
        assert report.at is At.KEPT
        assert time.monotonic() - began < LIMIT / 2
        outcome = runner.wait(LIMIT)
        over.set()
        thread.join(LIMIT)
        assert outcome and outcome.well
        runner.close()


def test_a_bound_cuts_nothing_after_its_end() -> None:
    cuts: list[str] = []
    with Bound(0.05, lambda: cuts.append("cut"), "why"):
        pass
    time.sleep(0.2)
    assert cuts == []


def test_a_bound_that_cut_the_line_says_why() -> None:
    cut = threading.Event()
    with pytest.raises(LineLost, match="too long"), Bound(0.05, cut.set, "too long"):
        assert cut.wait(LIMIT)
        raise LineLost("closed")
    bound = Bound(0.0, lambda: None, "too long")
    with pytest.raises(TimeIsUp, match="too long"):
        bound.check()
    bound.end()
    endless = Bound(None, cut.set, "never")
    endless.check()
    assert not endless.passed


def test_another_error_inside_a_bound_is_left_alone() -> None:
    with pytest.raises(KeyError), Bound(0.0, lambda: None, "too long"):
        time.sleep(0.1)
        raise KeyError
