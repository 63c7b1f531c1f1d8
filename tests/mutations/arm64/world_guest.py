# SPDX-License-Identifier: Apache-2.0
"""Lies about what a guest reads and writes, and about what CPU_ON resets."""

from __future__ import annotations

from tests.mutations.arm64.lies import guest_left
from tests.mutations.lies import RUN, Shared
from tests.mutations.registry import lies
from tests.mutations.world import world_spoils
from vmm.state.arm64.world.core import CORE, VECTORS
from vmm.state.arm64.world.sysregs import SYSREGS

_FAR = 11  # its place among the payload's registers


def _spoil(shared: Shared) -> None:
    shared.poke("values", 8 * _FAR)


lies(
    "world.guest-reads",
    the_guest_reads_another_far_el1=lambda: guest_left("get", _spoil, payload="sysregs"),
)

lies(
    "world.guest-writes",
    what_the_guest_wrote_to_far_el1_is_lost=lambda: world_spoils(SYSREGS, "FAR_EL1", RUN),
    what_the_guest_wrote_to_tpidr_el0_is_lost=lambda: world_spoils(SYSREGS, "TPIDR_EL0", RUN),
)

lies(
    "world.way-psci",
    x9_is_not_reset=lambda: world_spoils(CORE, "X9", "KVM_SET_ONE_REG", 3),
    z4_is_not_reset=lambda: world_spoils(VECTORS, "Z4", "KVM_SET_ONE_REG", 3),
    tcr_el1_is_not_reset=lambda: world_spoils(SYSREGS, "TCR_EL1", "KVM_SET_ONE_REG", 3),
)
