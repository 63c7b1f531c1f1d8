# SPDX-License-Identifier: Apache-2.0
"""Lies about what stops, resets or ends a vCPU: a field of each piece is another behind it, or it does not come."""

from __future__ import annotations

from functools import partial

from tests.mutations.lies import RUN, after, answer, assign, nth, once, succeed_with, toggle
from tests.mutations.registry import lies
from tests.mutations.world import way_lies
from tests.mutations.x86.lies import A_FIELD
from vmm._kvm import lib
from vmm.kvm.ioctl import Interposer

MSI, REGS, SREGS, STATE = "KVM_SIGNAL_MSI", "KVM_GET_REGS", "KVM_GET_SREGS2", "KVM_GET_MP_STATE"
EVENTS = "KVM_GET_VCPU_EVENTS"


def _behind_sipi(lie: Interposer) -> Interposer:
    """What is sent first is INIT."""
    return once(MSI, once(MSI, lie))


for _way in ("halt", "triple-fault", "shutdown", "failed-entry", "failed-emulation"):
    way_lies(__name__, f"world.way-{_way}", partial(once, RUN), A_FIELD)
for _way in ("init", "init-in-run"):
    way_lies(__name__, f"world.way-{_way}", partial(once, MSI), A_FIELD)
for _way in ("sipi", "sipi-in-run"):
    way_lies(__name__, f"world.way-{_way}", _behind_sipi, A_FIELD)

lies(
    "world.way-halt",
    a_vcpu_in_hlt_is_runnable=lambda: after(STATE, assign("mp_state", lib.KVM_MP_STATE_RUNNABLE)),
    hlt_leaves=lambda: succeed_with(RUN, lambda call, result: lib.VMM_RUN_EXIT),
)

lies(
    "world.way-init",
    init_is_lost=lambda: answer(MSI, 0),
    init_is_not_shown_as_latched=lambda: after(EVENTS, assign("smi.latched_init", 0)),
    init_leaves_cr3=lambda: once(MSI, after(SREGS, assign("cr3", 0x7018), nth(2))),
    init_leaves_r15=lambda: once(MSI, after(REGS, assign("r15", 0x1234), nth(2))),
    init_is_taken_at_once=lambda: once(MSI, after(REGS, assign("rip", 0xFFF0), nth(1))),
    init_does_not_wait_for_sipi=lambda: after(STATE, assign("mp_state", lib.KVM_MP_STATE_RUNNABLE)),
)

lies(
    "world.way-init-in-run",
    init_is_lost=lambda: answer(MSI, 0),
    init_leaves_r15=lambda: once(MSI, after(REGS, assign("r15", 0x1234))),
    init_does_not_wait_for_sipi=lambda: after(STATE, assign("mp_state", lib.KVM_MP_STATE_RUNNABLE)),
)

lies(
    "world.way-sipi",
    "world.way-sipi-in-run",
    init_is_lost=lambda: answer(MSI, 0, nth(1)),
    sipi_is_lost=lambda: answer(MSI, 0, nth(2)),
)

lies(
    "world.way-sipi",
    cs_has_another_base=lambda: once(STATE, after(SREGS, toggle("cs.base", 0x1000)), when=nth(2)),
    cs_has_another_selector=lambda: once(STATE, after(SREGS, toggle("cs.selector", 0x100)), when=nth(2)),
    rip_is_not_0=lambda: once(STATE, after(REGS, assign("rip", 0xFFF0)), when=nth(2)),
    the_vcpu_goes_on_waiting=lambda: after(STATE, assign("mp_state", lib.KVM_MP_STATE_INIT_RECEIVED)),
)

lies(
    "world.way-triple-fault",
    a_pending_triple_fault_is_not_shown=lambda: after(EVENTS, assign("triple_fault.pending", 0)),
    it_stays_pending=lambda: once(RUN, after(EVENTS, assign("triple_fault.pending", 1))),
)

lies(
    "world.way-triple-fault",
    "world.way-shutdown",
    "world.way-failed-emulation",
    the_vcpu_ticks=lambda: succeed_with(RUN, lambda call, result: lib.VMM_RUN_BUDGET),
)

lies(
    "world.way-triple-fault",
    "world.way-shutdown",
    "world.way-failed-entry",
    "world.way-failed-emulation",
    rip_moves=lambda: once(RUN, after(REGS, toggle("rip", 2))),
)
