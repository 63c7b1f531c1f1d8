# SPDX-License-Identifier: Apache-2.0
"""Memory whose writers bypass the caches and the dirty log: a migration refuses it, or reads it all again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.migration.test_migration import Pair
from tests.patience import LIMIT
from vmm.arch import module
from vmm.guest.base import BaseGuest
from vmm.kvm.coherence import Coherence, Policy, line_size
from vmm.kvm.dirty_log import open_log
from vmm.kvm.system import Kvm
from vmm.migration.convergence import Limits
from vmm.migration.source import Options
from vmm.state.capture import capture

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not line_size(), reason="this CPU has no instruction that flushes a cache line"),
]
_STEPS, _SEED = 20000, 7


def _device_memory(kvm: Kvm) -> BaseGuest:
    """A guest whose memory a device is said to write."""
    guest: BaseGuest = module("chain").make_guest(kvm, module("chain").LEVELS[0], _STEPS, _SEED)
    guest.memory.coherence = Coherence.NON_COHERENT
    return guest


def _options(policy: Policy) -> Options:
    return Options(limits=Limits(downtime=0.5), patience=LIMIT, non_coherent=policy)


def test_non_coherent_memory_is_not_moved_under_the_policy_refuse(tmp_path: Path) -> None:
    pair = Pair(make=_device_memory, source=_options(Policy.REFUSE), reached=False).run(tmp_path)
    assert pair.report["outcome"] == "kept" and pair.there is None and pair.here is not None
    assert "slot 0" in pair.report["reason"] and "non-coherent" in pair.report["reason"]


def test_non_coherent_memory_is_moved_whole_and_with_a_note_under_the_policy_flush(tmp_path: Path) -> None:
    coherent = Pair(source=_options(Policy.REFUSE), make=_coherent).run(tmp_path)
    (tmp_path / "again").mkdir()
    pair = Pair(make=_device_memory, source=_options(Policy.FLUSH)).run(tmp_path / "again")
    assert pair.report["outcome"] == coherent.report["outcome"] == "moved"
    assert pair.there == coherent.there
    assert any("slot 0" in note and "sent whole after the stop" in note for note in pair.report["notes"])
    assert not coherent.report["notes"]
    # Every page goes over the line after the stop as well: those with data and those of zeros.
    assert pair.report["dirty_bytes"][-1] == 4 << 20 > coherent.report["dirty_bytes"][-1]


def _coherent(kvm: Kvm) -> BaseGuest:
    guest: BaseGuest = module("chain").make_guest(kvm, module("chain").LEVELS[0], _STEPS, _SEED)
    return guest


def test_a_capture_flushes_exactly_the_memory_that_needs_it(kvm: Kvm) -> None:
    with _device_memory(kvm) as guest:
        before = guest.memory.flushed_lines
        capture(guest)
        assert guest.memory.flushed_lines - before == guest.memory.size // line_size()
    with _coherent(kvm) as guest:
        capture(guest)
        assert guest.memory.flushed_lines == 0


def test_no_page_is_left_out_when_all_are_marked(kvm: Kvm) -> None:
    with _coherent(kvm) as guest:
        log = open_log(guest.vm, [guest.vcpu])
        log.start()
        log.forget(0, 0, 1024)
        assert log.count() == 0
        log.mark_all(0)
        assert log.count() == guest.memory.size
        log.stop()
