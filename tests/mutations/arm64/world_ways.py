# SPDX-License-Identifier: Apache-2.0
"""Lies about ways through KVM: after a run a register is another one."""

from __future__ import annotations

from functools import partial

from tests.mutations.lies import COMPLETE, RUN
from tests.mutations.registry import register
from tests.mutations.world import world_spoils
from vmm.kvm.ioctl import Interposer
from vmm.state.arm64.world.core import CORE, VECTORS
from vmm.state.arm64.world.run import EVENTS
from vmm.state.arm64.world.sysregs import SYSREGS
from vmm.state.world.table import Table

_SPOILED = ((CORE, "X11"), (CORE, "SPSR_EL1"), (VECTORS, "Z9"), (VECTORS, "P2"), (SYSREGS, "TPIDR_EL1"),
            (SYSREGS, "CNTV_CVAL_EL0"), (EVENTS, "exception.serror_pending"))  # fmt: skip


def _make(table: Table, field: str, call: str) -> Interposer:
    return world_spoils(table, field, call)


def _add(clause: str, table: Table, field: str, call: str) -> None:
    make = partial(_make, table, field, call)

    def factory() -> Interposer:
        return make()

    register((clause,), f"{field.lower().rpartition('.')[2]}_is_another_after_it", factory)


for _way in ("exits", "kicked", "asleep", "preempted", "cpus", "turns", "refused"):
    for _table, _field in _SPOILED:
        _add(f"world.way-{_way}", _table, _field, COMPLETE if _way == "refused" else RUN)
