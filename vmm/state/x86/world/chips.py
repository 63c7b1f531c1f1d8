# SPDX-License-Identifier: Apache-2.0
"""The rows of what a VM has beside its vCPUs: the two PICs, the IOAPIC and the PIT, which KVM emulates.

Their calls are the VM's. KVM keeps most of it as it is given. Source: arch/x86/kvm/irq.c, kvm_vm_ioctl_set_irqchip
(irq_comm.c, x86.c before Linux 6.16); i8259.c, kvm_pic_init; ioapic.c, kvm_ioapic_reset; i8254.c, kvm_pit_reset.
"""

from __future__ import annotations

from functools import cached_property

from vmm._kvm import ffi, lib
from vmm.kvm.vcpu import Vcpu
from vmm.state.piece import ANY, Reading, Structure
from vmm.state.piece import Row as Call
from vmm.state.value import Part
from vmm.state.world.fields import Leaf, StructCodec
from vmm.state.world.row import Free, Of, Row, Untold
from vmm.state.world.table import Table

__all__ = ["CHIPS", "IOAPIC", "PIC_MASTER", "PIC_SLAVE", "PIT"]

_MASTER, _SLAVE, _IOAPIC = 0, 1, 2  # KVM_IRQCHIP_
_PINS = 24  # KVM_IOAPIC_NUM_PINS
_CHIP = 8  # where the chip begins in struct kvm_irqchip
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


class _Irqchip(Structure):
    """One of the chips that KVM_GET_IRQCHIP tells apart by their numbers."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(name, "kvm_irqchip", 520, calls="IRQCHIP")
        self.number = number

    def read(self, vcpu: Vcpu) -> Reading | None:
        """One call, which has to say which chip."""
        value = ffi.new(self.kind, {"chip_id": self.number})
        data = ffi.buffer(value)
        return Reading([(lib.KVM_GET_IRQCHIP, value, ANY)], lambda calls: data[:])

    def write(self, part: Part) -> list[Call]:
        """One call."""
        return [(lib.KVM_SET_IRQCHIP, self.value(part), ANY)]


class _ChipCodec(StructCodec):
    """The fields of one chip."""

    def __init__(self, name: str, leaves: tuple[Leaf, ...]) -> None:
        super().__init__(name, "kvm_irqchip")
        self._fields = leaves

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The numbers of this chip."""
        return self._fields


_PIC = "arch/x86/kvm/i8259.c, kvm_pic_init; irq.c, kvm_vm_ioctl_get_irqchip, kvm_vm_ioctl_set_irqchip"
_BYTE = Free(0xFF, rounds=2)


def _pic(title: str, number: int, elcr_mask: int) -> Table:
    """One of both: all its requests are masked, so that none of them is answered."""
    name = title.upper()
    return Table(
        title,
        _Irqchip(name, number),
        _ChipCodec(name, _PIC_LEAVES),
        [
            Row("imr", _PIC, fresh=0, values=Of(0xFF, 0xFF), init=None),
            Row("elcr_mask", f"{_PIC}: which lines may be level-triggered", fresh=elcr_mask,
                values=Of(elcr_mask, elcr_mask), init=None),
            Row("last_irr irr isr irq_base elcr", _PIC, fresh=0, values=_BYTE, init=None),
            Row("priority_add", _PIC, fresh=0, values=Of(5, 2), init=None),
            Row("init_state", _PIC, fresh=0, values=Of(2, 3), init=None),
            Row("*", _PIC, fresh=0, values=Of(1, 0), init=None),
        ],
    )  # fmt: skip


PIC_MASTER, PIC_SLAVE = _pic("pic-master", _MASTER, 0xF8), _pic("pic-slave", _SLAVE, 0xDE)

_MASKED = 1 << 16
_REDIRECTION = "arch/x86/kvm/ioapic.c, kvm_ioapic_reset, kvm_get_ioapic, kvm_set_ioapic"
IOAPIC = Table(
    "ioapic",
    _Irqchip("IOAPIC", _IOAPIC),
    _ChipCodec("IOAPIC", _IOAPIC_LEAVES),
    [
        Row("base_address", _REDIRECTION, fresh=0xFEC0_0000, values=Of(0xFEC1_0000, 0xFEC0_0000), init=None),
        Row("ioregsel", _REDIRECTION, fresh=0, values=_BYTE, init=None),
        Row("id", _REDIRECTION, fresh=0, values=Of(5, 0xA), init=None),
        Row("irr", f"{_REDIRECTION}: of masked pins, which deliver nothing", fresh=0, values=Of(0xA5_A4FA, 0x5A_5A04),
            init=None),
        Row("pad", _REDIRECTION, fresh=0, values=None, init=None),
        Row("redirtbl*", f"{_REDIRECTION}; edge-triggered and masked", fresh=_MASKED,
            values=Free(0xFF00_0000_0000_2FFF, _MASKED, rounds=2), init=None),
    ],
)  # fmt: skip

_PIT = "arch/x86/kvm/i8254.c, kvm_pit_reset, kvm_vm_ioctl_get_pit2, kvm_vm_ioctl_set_pit2"
_LOAD = f"{_PIT}, pit_load_count"
_OFF = 0xFF
PIT = Table(
    "pit",
    Structure("PIT", "kvm_pit_state2", 112, calls="PIT2"),
    StructCodec("PIT", "kvm_pit_state2"),
    [
        Row("channels[[]?[]].count", f"{_LOAD}: 0 is 65536", fresh=0x1_0000, values=Of(0xFEDC, 0x1_0000, 0x1234),
            init=None, masked=[(0, 0x1_0000)]),
        Row("channels[[]?[]].count_load_time", f"{_LOAD}: when the count was loaded, by the host's clock",
            fresh=Untold("the host's clock"), values=None, init=None),
        Row("channels[[]?[]].latched_count", _PIT, fresh=0, values=Free(0xFFFF, rounds=2), init=None),
        Row("channels[[]0[]].mode", f"{_PIT}: off", fresh=_OFF, values=Of(_OFF, 4), init=None),
        Row("channels[[]?[]].mode", f"{_PIT}: off", fresh=_OFF, values=Of(3, 2), init=None),
        Row("channels[[]2[]].gate", f"{_PIT}: the speaker's", fresh=0, values=Of(1, 0), init=None),
        Row("channels[[]?[]].gate", _PIT, fresh=1, values=Of(0, 1), init=None),
        Row("channels[[]?[]].status", _PIT, fresh=0, values=_BYTE, init=None),
        Row("channels[[]?[]].*_state channels[[]?[]].rw_mode", _PIT, fresh=0, values=Of(3, 1, 4), init=None),
        Row("channels[[]?[]].write_latch", _PIT, fresh=0, values=_BYTE, init=None),
        Row("channels[[]?[]].*", _PIT, fresh=0, values=Of(1, 0), init=None),
        Row("flags", f"{_PIT}; Documentation/virt/kvm/api.rst, 4.71, 4.72", fresh=0, values=Of(2, 3, 1), init=None),
        Row("reserved*", _PIT, fresh=0, values=None, init=None),
    ],
)  # fmt: skip

CHIPS = (PIC_MASTER, PIC_SLAVE, IOAPIC, PIT)
