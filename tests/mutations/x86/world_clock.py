# SPDX-License-Identifier: Apache-2.0
"""Lies about kvmclock."""

from __future__ import annotations

import errno

from tests.mutations.lies import accept, after, answer, assign, before, drift, once, refuse, toggle
from tests.mutations.registry import lies
from tests.mutations.world import struct_fields, world_lies
from vmm.state.x86.world.clock import CLOCK

GET, SET = "KVM_GET_CLOCK", "KVM_SET_CLOCK"

world_lies(__name__, CLOCK, struct_fields(CLOCK), ("refused",))
lies(
    "world.clock-kept",
    the_clock_is_not_set=lambda: answer(SET, 0),
    the_clock_is_set_to_another=lambda: before(SET, toggle("clock", 1 << 34)),
    the_clock_is_shown_as_another=lambda: after(GET, toggle("clock", 1 << 40)),
    the_time_is_ignored=lambda: before(SET, assign("flags", 0)),
)
lies(
    "world.clock-stopped",
    without_kvmclock_it_is_taken=lambda: accept("KVM_KVMCLOCK_CTRL"),
    without_kvmclock_it_is_enxio=lambda: drift("KVM_KVMCLOCK_CTRL", errno.ENXIO),
    with_kvmclock_it_is_refused=lambda: refuse("KVM_KVMCLOCK_CTRL", errno.EINVAL),
    the_guest_is_not_told=lambda: once("KVM_SET_MSRS", answer("KVM_KVMCLOCK_CTRL", 0)),
)
