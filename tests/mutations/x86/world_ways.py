# SPDX-License-Identifier: Apache-2.0
"""Lies about ways through KVM that leave a vCPU as it is: a field is lost, RIP is another, the vCPU does not run."""

from __future__ import annotations

import errno
from functools import partial
from typing import Any

from tests.mutations.lies import (
    COMPLETE,
    RUN,
    Proceed,
    after,
    assign,
    before,
    called,
    nth,
    once,
    refuse,
    succeed_with,
    toggle,
)
from tests.mutations.registry import lies
from tests.mutations.world import way_lies
from tests.mutations.x86.lies import A_FIELD
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer

_TICKING = ("exits", "turns", "other-cpu", "sync-regs")
_STOPPED = ("kicked", "neighbour")

for _way in _TICKING + _STOPPED:
    way_lies(__name__, f"world.way-{_way}", partial(once, RUN), A_FIELD)
way_lies(__name__, "world.way-none", partial(once, COMPLETE, refused=True), A_FIELD)

# The second is the first with values of the rows.
lies("world.way-none", rdi_is_lost_beside_others=lambda: before("KVM_SET_REGS", assign("rdi", 1), nth(2)))

lies(
    *(f"world.way-{way}" for way in _TICKING),
    rip_is_not_behind_the_instruction=lambda: once(RUN, after("KVM_GET_REGS", toggle("rip", 2))),
    the_guest_leaves_in_another_way=lambda: succeed_with(RUN, lambda call, result: lib.VMM_RUN_EXIT),
    the_guest_never_leaves=lambda: succeed_with(RUN, lambda call, result: lib.VMM_RUN_DEADLINE),
    the_guest_cannot_run=lambda: refuse(RUN, errno.EIO),
)

lies(
    *(f"world.way-{way}" for way in _STOPPED),
    rip_is_elsewhere=lambda: once(RUN, after("KVM_GET_REGS", toggle("rip", 0x100))),
    the_guest_leaves_by_itself=lambda: succeed_with(RUN, lambda call, result: lib.VMM_RUN_EXIT),
)


def _gives(part: str, field: str) -> Interposer:
    """KVM_RUN, which completes an exit in the end, leaves another value of a field in kvm_run."""
    run: Any = None

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal run
        result = proceed()
        if called(call) == RUN:
            run = call.argument.run
        elif called(call) == COMPLETE and run is not None:
            given = getattr(ffi.cast("struct kvm_sync_regs *", ffi.addressof(run.s)), part)
            setattr(given, field, getattr(given, field) ^ 4)
        return result

    return interposer


def _takes_nothing() -> Interposer:
    """KVM_RUN does not look at what is in kvm_run."""
    return before(RUN, lambda call: setattr(call.argument.run, "kvm_dirty_regs", 0))


lies(
    "world.way-sync-regs",
    kvm_run_gives_another_rbx=lambda: _gives("regs", "rbx"),
    kvm_run_gives_another_cr2=lambda: _gives("sregs", "cr2"),
    kvm_run_takes_nothing=lambda: _takes_nothing(),
)
