# SPDX-License-Identifier: Apache-2.0
"""Lies about every field of EVENTS."""

from __future__ import annotations

from tests.mutations.world import struct_fields, world_lies
from vmm.state.x86.world.events import EVENTS, EVENTS_ALL, SMM

for table in (EVENTS, EVENTS_ALL):
    world_lies(__name__, table, struct_fields(table), ("fresh", "kept", "refused", "moved"))
world_lies(__name__, SMM, struct_fields(SMM), ("kept",))
