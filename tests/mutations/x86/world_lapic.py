# SPDX-License-Identifier: Apache-2.0
"""Lies about every register of the local APIC."""

from __future__ import annotations

from tests.mutations.world import struct_fields, world_lies
from vmm.state.x86.world.lapic import LAPIC, LAPIC_X2

world_lies(__name__, LAPIC, struct_fields(LAPIC), ("fresh", "kept", "moved"))
world_lies(__name__, LAPIC_X2, struct_fields(LAPIC_X2), ("kept", "refused", "moved"))
