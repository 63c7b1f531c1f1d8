# SPDX-License-Identifier: Apache-2.0
"""Lies about kvmclock."""

from __future__ import annotations

from tests.mutations.lies import after, answer, assign, before, toggle
from tests.mutations.registry import lies
from tests.mutations.world import struct_fields, world_lies
from vmm.state.x86.world.clock import CLOCK

GET, SET = "KVM_GET_CLOCK", "KVM_SET_CLOCK"

world_lies(__name__, CLOCK, struct_fields(CLOCK), ("refused",))
lies(
    "world.clock-fresh",
    a_flag_has_no_meaning=lambda: after(GET, toggle("flags", 1 << 5)),
    the_padding_is_not_0=lambda: after(GET, toggle("pad0", 1)),
)
lies(
    "world.clock-kept",
    the_clock_is_not_set=lambda: answer(SET, 0),
    the_clock_is_set_to_another=lambda: before(SET, toggle("clock", 1 << 34)),
    the_clock_is_shown_as_another=lambda: after(GET, toggle("clock", 1 << 40)),
    the_time_is_ignored=lambda: before(SET, assign("flags", 0)),
)
