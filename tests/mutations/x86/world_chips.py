# SPDX-License-Identifier: Apache-2.0
"""Lies about every field of the chips that a VM has in the kernel."""

from __future__ import annotations

from tests.mutations.lies import Change, after, before
from tests.mutations.registry import lies
from tests.mutations.world import struct_fields, world_lies
from vmm._kvm import ffi
from vmm.kvm.ioctl import Call
from vmm.state.x86.world.chips import PIT

GET, SET = "KVM_GET_IRQCHIP", "KVM_SET_IRQCHIP"
_CHIPS = {"pic-master": 0, "pic-slave": 1, "ioapic": 2}

world_lies(__name__, PIT, struct_fields(PIT), ("fresh", "kept"))


def _byte(chip: str, offset: int) -> Change:
    """Change a byte of one chip; it begins behind its number and the padding."""

    def change(call: Call) -> None:
        if call.argument.chip_id == _CHIPS[chip]:
            ffi.buffer(call.argument)[8 + offset] = bytes([ffi.buffer(call.argument)[8 + offset][0] ^ 4])

    return change


for _chip in _CHIPS:
    for _at in (1, 3, 5, 14) if _chip != "ioapic" else (1, 8, 12, 16, 24, 24 + 8 * 23 + 7):
        lies(
            f"world.{_chip}-fresh",
            **{f"byte_{_at}_is_another": lambda chip=_chip, at=_at: after(GET, _byte(chip, at))},
        )
        lies(
            f"world.{_chip}-kept",
            **{f"byte_{_at}_is_written_as_another": lambda chip=_chip, at=_at: before(SET, _byte(chip, at))},
        )
