# SPDX-License-Identifier: Apache-2.0
"""The rows of what a VM has beside its vCPUs: the two PICs, the IOAPIC and the PIT, which KVM emulates.

Their calls are the VM's. KVM keeps most of it as it is given. Source: arch/x86/kvm/irq.c, kvm_vm_ioctl_set_irqchip
(irq_comm.c, x86.c before Linux 6.16); i8259.c, kvm_pic_init; ioapic.c, kvm_ioapic_reset; i8254.c, kvm_pit_reset.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from vmm._kvm import ffi, lib
from vmm.kvm.vcpu import Vcpu
from vmm.state.piece import ANY, Piece, Reading, raw
from vmm.state.piece import Row as Call
from vmm.state.shape import Shape
from vmm.state.value import Part
from vmm.state.world.fields import Leaf, StructCodec, leaves
from vmm.state.world.row import Free, Of, Row, Untold
from vmm.state.world.table import Table

__all__ = ["CHIPS", "IRQCHIPS"]

# KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE and _IOAPIC are the places here; each is read and written as so many bytes.
IRQCHIPS = ("master", "slave", "ioapic")
_IRQCHIP, _PIT = 520, 112
_CHIP = 8  # where the chip begins in struct kvm_irqchip
_PINS = 24  # KVM_IOAPIC_NUM_PINS
# struct kvm_pic_state: bytes. struct kvm_ioapic_state.
_PIC_FIELDS = (
    "last_irr", "irr", "imr", "isr", "priority_add", "irq_base", "read_reg_select", "poll", "special_mask",
    "init_state", "auto_eoi", "rotate_on_auto_eoi", "special_fully_nested_mode", "init4", "elcr", "elcr_mask",
)  # fmt: skip
_PIC_LEAVES = tuple((name, _CHIP + at, 1) for at, name in enumerate(_PIC_FIELDS))
_IOAPIC_LEAVES = (
    ("base_address", _CHIP, 8), ("ioregsel", _CHIP + 8, 4), ("id", _CHIP + 12, 4), ("irr", _CHIP + 16, 4),
    ("pad", _CHIP + 20, 4), *((f"redirtbl[{pin}]", _CHIP + 24 + 8 * pin, 8) for pin in range(_PINS)),
)  # fmt: skip


class _Chips(Piece):
    """The two PICs, the IOAPIC and the PIT, one after the other."""

    def __init__(self) -> None:
        shape = Shape.exactly(len(IRQCHIPS) * _IRQCHIP + _PIT)
        super().__init__("CHIPS", ("KVM_GET_IRQCHIP", "KVM_SET_IRQCHIP"), shape)

    def read(self, vcpu: Vcpu) -> Reading | None:
        """A call a chip, which has to say which it is of the three that KVM_GET_IRQCHIP knows."""
        chips = [ffi.new("struct kvm_irqchip *", {"chip_id": at}) for at in range(len(IRQCHIPS))]
        pit = ffi.new("struct kvm_pit_state2 *")
        data = [ffi.buffer(value) for value in (*chips, pit)]
        rows = [*((lib.KVM_GET_IRQCHIP, chip, ANY) for chip in chips), (lib.KVM_GET_PIT2, pit, ANY)]
        return Reading(rows, lambda calls: b"".join(one[:] for one in data))

    def write(self, part: Part) -> list[Call]:
        """A call a chip."""
        data, end = raw(self.name, part), len(IRQCHIPS) * _IRQCHIP
        rows: list[Call] = []
        for at in range(0, end, _IRQCHIP):
            value = ffi.new("struct kvm_irqchip *")
            ffi.memmove(value, data[at : at + _IRQCHIP], _IRQCHIP)
            rows.append((lib.KVM_SET_IRQCHIP, value, ANY))
        pit = ffi.new("struct kvm_pit_state2 *")
        ffi.memmove(pit, data[end:], _PIT)
        return [*rows, (lib.KVM_SET_PIT2, pit, ANY)]


def _leaves() -> Iterator[Leaf]:
    for at, (name, fields) in enumerate(zip(IRQCHIPS, (_PIC_LEAVES, _PIC_LEAVES, _IOAPIC_LEAVES), strict=True)):
        yield from ((f"{name}.{field}", at * _IRQCHIP + offset, size) for field, offset, size in fields)
    yield from leaves(ffi.typeof("struct kvm_pit_state2"), "pit", len(IRQCHIPS) * _IRQCHIP)


class _Codec(StructCodec):
    """All chips' fields."""

    def __init__(self) -> None:
        super().__init__("CHIPS", "kvm_irqchip")

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The numbers of all chips."""
        return tuple(_leaves())


_PIC = "arch/x86/kvm/i8259.c, kvm_pic_init; irq.c, kvm_vm_ioctl_get_irqchip, kvm_vm_ioctl_set_irqchip"
_BYTE = Free(0xFF, rounds=2)
_MASKED = 1 << 16
_REDIRECTION = "arch/x86/kvm/ioapic.c, kvm_ioapic_reset, kvm_get_ioapic, kvm_set_ioapic"
_PIT_STATE = "arch/x86/kvm/i8254.c, kvm_pit_reset, kvm_vm_ioctl_get_pit2, kvm_vm_ioctl_set_pit2"
_LOAD = f"{_PIT_STATE}, pit_load_count"
_OFF = 0xFF


def _of_pics(*names: str) -> str:
    return " ".join(f"{chip}.{name}" for chip in IRQCHIPS[:2] for name in names)


# Every request of a PIC is masked, so that none of them is answered.
CHIPS = Table(
    "chips",
    _Chips(),
    _Codec(),
    [
        Row(_of_pics("imr"), _PIC, fresh=0, values=Of(0xFF, 0xFF), init=None),
        Row("master.elcr_mask", f"{_PIC}: which lines may be level-triggered", fresh=0xF8, values=Of(0xF8, 0xF8),
            init=None),
        Row("slave.elcr_mask", f"{_PIC}: which lines may be level-triggered", fresh=0xDE, values=Of(0xDE, 0xDE),
            init=None),
        Row(_of_pics("last_irr", "irr", "isr", "irq_base", "elcr"), _PIC, fresh=0, values=_BYTE, init=None),
        Row(_of_pics("priority_add"), _PIC, fresh=0, values=Of(5, 2), init=None),
        Row(_of_pics("init_state"), _PIC, fresh=0, values=Of(2, 3), init=None),
        Row("master.* slave.*", _PIC, fresh=0, values=Of(1, 0), init=None),
        Row("ioapic.base_address", _REDIRECTION, fresh=0xFEC0_0000, values=Of(0xFEC1_0000, 0xFEC0_0000), init=None),
        Row("ioapic.ioregsel", _REDIRECTION, fresh=0, values=_BYTE, init=None),
        Row("ioapic.id", _REDIRECTION, fresh=0, values=Of(5, 0xA), init=None),
        Row("ioapic.irr", f"{_REDIRECTION}: of masked pins, which deliver nothing", fresh=0,
            values=Of(0xA5_A4FA, 0x5A_5A04), init=None),
        Row("ioapic.pad", _REDIRECTION, fresh=0, values=None, init=None),
        Row("ioapic.redirtbl*", f"{_REDIRECTION}; edge-triggered and masked", fresh=_MASKED,
            values=Free(0xFF00_0000_0000_2FFF, _MASKED, rounds=2), init=None),
        Row("pit.channels[[]?[]].count", f"{_LOAD}: 0 is 65536", fresh=0x1_0000, values=Of(0xFEDC, 0x1_0000, 0x1234),
            init=None),
        Row("pit.channels[[]?[]].count_load_time", f"{_LOAD}: when the count was loaded, by the host's clock",
            fresh=Untold("the host's clock"), values=None, init=None),
        Row("pit.channels[[]?[]].latched_count", _PIT_STATE, fresh=0, values=Free(0xFFFF, rounds=2), init=None),
        Row("pit.channels[[]0[]].mode", f"{_PIT_STATE}: off", fresh=_OFF, values=Of(_OFF, 4), init=None),
        Row("pit.channels[[]?[]].mode", f"{_PIT_STATE}: off", fresh=_OFF, values=Of(3, 2), init=None),
        Row("pit.channels[[]2[]].gate", f"{_PIT_STATE}: the speaker's", fresh=0, values=Of(1, 0), init=None),
        Row("pit.channels[[]?[]].gate", _PIT_STATE, fresh=1, values=Of(0, 1), init=None),
        Row("pit.channels[[]?[]].status pit.channels[[]?[]].write_latch", _PIT_STATE, fresh=0, values=_BYTE,
            init=None),
        Row("pit.channels[[]?[]].*_state pit.channels[[]?[]].rw_mode", _PIT_STATE, fresh=0, values=Of(3, 1, 4),
            init=None),
        Row("pit.channels[[]?[]].*", _PIT_STATE, fresh=0, values=Of(1, 0), init=None),
        Row("pit.flags", f"{_PIT_STATE}; Documentation/virt/kvm/api.rst, 4.71, 4.72", fresh=0, values=Of(2, 3, 1),
            init=None),
        Row("pit.reserved*", _PIT_STATE, fresh=0, values=None, init=None),
    ],
)  # fmt: skip
