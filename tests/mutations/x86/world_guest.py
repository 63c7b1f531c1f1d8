# SPDX-License-Identifier: Apache-2.0
"""Lies about what a guest finds in its registers."""

from __future__ import annotations

from tests.mutations.lies import after_entry
from tests.mutations.registry import lies
from tests.mutations.world import world_loses
from vmm.state.x86.world.lapic import LAPIC
from vmm.state.x86.world.registers import DEBUGREGS, REGS

lies(
    "world.regs-guest",
    rdi_is_lost=lambda: world_loses(REGS, "rdi"),
    r15_is_another=lambda: after_entry("registers", lambda guest: guest.poke("general", 121), payload="state"),
    the_status_flags_are_others=lambda: after_entry("registers", lambda guest: guest.poke("flags"), payload="state"),
)
lies(
    "world.debugregs-guest",
    dr2_is_lost=lambda: world_loses(DEBUGREGS, "db[2]"),
    dr6_is_another=lambda: after_entry(
        "debug", lambda guest: guest.set("values", guest.get("values", 4) ^ 1, 4), payload="state"
    ),
    dr7_is_another=lambda: after_entry(
        "debug", lambda guest: guest.set("values", guest.get("values", 5) ^ 1, 5), payload="state"
    ),
)
lies(
    "world.lapic-guest",
    ldr_is_lost=lambda: world_loses(LAPIC, "LDR"),
    isr5_is_lost=lambda: world_loses(LAPIC, "ISR5"),
    the_first_register_is_another=lambda: after_entry("peek", lambda guest: guest.poke("rows", 8), payload="state"),
)
