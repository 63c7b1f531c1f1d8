# SPDX-License-Identifier: Apache-2.0
"""Lies about CR0.CD."""

from __future__ import annotations

from tests.mutations.lies import Shared, after_entry
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.lies import MEMTYPE, SLOW, during, timed
from vmm.kvm.ioctl import Interposer
from vmm.x86.memory_types import MemoryType

_CD = 1 << 30


def _loads_take(factor: float) -> Interposer:
    """Under CR0.CD loads take ``factor`` times as long."""
    return during("KVM_SET_SREGS", lambda call: bool(call.argument.cr0 & _CD), timed("loads", factor, MemoryType.WB))


@mutation("cr0cd.no-effect-intel")
def cache_disable_slows_the_guest_down() -> Interposer:
    return _loads_take(SLOW)


def _clear_cd(shared: Shared) -> None:
    shared.set("values", shared.get("values") & ~_CD)


lies(
    "cr0cd.no-effect-intel",
    "cr0cd.amd-honoured",
    cache_disable_reads_as_0=lambda: after_entry("read_cr0", _clear_cd, payload=MEMTYPE),
)

lies("cr0cd.amd-honoured", cache_disable_changes_nothing=lambda: _loads_take(1 / SLOW))
