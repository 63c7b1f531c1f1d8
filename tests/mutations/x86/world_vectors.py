# SPDX-License-Identifier: Apache-2.0
"""Lies about every field of FPU, XSAVE and XCRS."""

from __future__ import annotations

from tests.mutations.world import struct_fields, world_lies
from vmm.state.x86.world.area import area_fields
from vmm.state.x86.world.vectors import FPU, XCRS, XSAVE
from vmm.x86.xsave import LEGACY_SIZE

_AREA = [name for name, _, _ in area_fields(LEGACY_SIZE)]

world_lies(__name__, FPU, struct_fields(FPU), ("fresh", "kept"))
world_lies(__name__, XSAVE, _AREA, ("fresh", "kept", "refused", "moved"))
world_lies(__name__, XCRS, struct_fields(XCRS), ("fresh", "kept", "refused", "moved"))
