# SPDX-License-Identifier: Apache-2.0
"""Lies about every field of the chips that a VM has in the kernel."""

from __future__ import annotations

from tests.mutations.lies import Change, after, before, toggle
from tests.mutations.registry import lies
from vmm._kvm import ffi
from vmm.kvm.ioctl import Call
from vmm.state.x86.world.chips import IRQCHIPS

GET, SET, GET_PIT, SET_PIT = "KVM_GET_IRQCHIP", "KVM_SET_IRQCHIP", "KVM_GET_PIT2", "KVM_SET_PIT2"
# Of a PIC: irr, isr, irq_base and elcr; of the IOAPIC: base, ioregsel, id, irr, the first pin and the last.
_BYTES = {"master": (1, 3, 5, 14), "slave": (1, 3, 5, 14), "ioapic": (1, 8, 12, 16, 24, 24 + 8 * 23 + 7)}


def _byte(chip: str, offset: int) -> Change:
    """Change a byte of one chip; it begins behind its number and the padding."""

    def change(call: Call) -> None:
        if call.argument.chip_id == IRQCHIPS.index(chip):
            data = memoryview(ffi.buffer(call.argument)).cast("B")
            data[8 + offset] ^= 4

    return change


def _channel(number: int, field: str, bits: int) -> Change:
    def change(call: Call) -> None:
        channel = call.argument.channels[number]
        setattr(channel, field, getattr(channel, field) ^ bits)

    return change


for _chip, _places in _BYTES.items():
    for _at in _places:
        lies(
            "world.chips-fresh",
            **{f"byte_{_at}_of_{_chip}_is_another": lambda chip=_chip, at=_at: after(GET, _byte(chip, at))},
        )
        lies(
            "world.chips-kept",
            **{f"byte_{_at}_of_{_chip}_is_not_kept": lambda chip=_chip, at=_at: before(SET, _byte(chip, at))},
        )
lies(
    "world.chips-fresh",
    the_speakers_gate_is_open=lambda: after(GET_PIT, _channel(2, "gate", 1)),
    a_count_is_another=lambda: after(GET_PIT, _channel(0, "count", 4)),
    the_flags_are_not_0=lambda: after(GET_PIT, toggle("flags", 1)),
)
lies(
    "world.chips-kept",
    a_count_is_not_kept=lambda: before(SET_PIT, _channel(1, "count", 4)),
    a_mode_is_not_kept=lambda: before(SET_PIT, _channel(2, "mode", 1)),
    a_latch_is_not_kept=lambda: before(SET_PIT, _channel(0, "write_latch", 1)),
    the_flags_are_not_kept=lambda: before(SET_PIT, toggle("flags", 2)),
)
