# SPDX-License-Identifier: Apache-2.0
"""Lies about every field of EVENTS."""

from __future__ import annotations

from tests.mutations.world import struct_fields, world_lies
from vmm.state.x86.world.events import EVENTS, EVENTS_ALL, SMM

world_lies(__name__, EVENTS, struct_fields(EVENTS), ("fresh", "kept", "refused", "moved"))
world_lies(__name__, EVENTS_ALL, struct_fields(EVENTS_ALL), ("kept", "moved"))
world_lies(__name__, SMM, struct_fields(SMM), ("kept",))
