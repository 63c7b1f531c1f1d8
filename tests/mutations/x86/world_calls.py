# SPDX-License-Identifier: Apache-2.0
"""Lies about calls that change a vCPU's state beside its setters."""

from __future__ import annotations

from tests.mutations.lies import Proceed, after, answer, assign, before, once, toggle
from tests.mutations.registry import lies
from tests.mutations.world import world_shows
from vmm.kvm.ioctl import Call, Interposer
from vmm.state.x86.world.lapic import LAPIC
from vmm.state.x86.world.modes import SREGS_1


def _is_taken(index: int, value: int) -> Interposer:
    """KVM_SET_MSRS says that it set what it has to refuse."""

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        ours = call.name == "KVM_SET_MSRS" and (call.argument.entries[0].index, call.argument.entries[0].data)
        return 1 if ours == (index, value) else result

    return interposer


def _is_read(index: int) -> Interposer:
    """KVM_GET_MSRS reads what there is not."""

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        return 1 if call.name == "KVM_GET_MSRS" and call.argument.entries[0].index == index else result

    return interposer


def _changes_the_page() -> Interposer:
    """A refused write of an MSR leaves another TPR."""
    written, shows = False, world_shows(LAPIC, "TPR")

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal written
        written |= call.name == "KVM_SET_MSRS"
        return shows(call, proceed) if written else proceed()

    return interposer


lies(
    "world.events-called",
    another_interrupt_is_queued=lambda: before("KVM_INTERRUPT", toggle("irq", 4)),
    the_bitmap_has_another=lambda: world_shows(SREGS_1, "interrupt_bitmap[1]"),
    no_nmi_is_sent=lambda: answer("KVM_NMI", 0),
    an_nmi_is_injected_at_once=lambda: once("KVM_NMI", after("KVM_GET_VCPU_EVENTS", assign("nmi.injected", 1))),
)
lies(
    "world.lapic-x2-msrs",
    an_x2apic_has_a_destination_format=lambda: _is_read(0x80E),
    the_identifier_can_be_written=lambda: _is_taken(0x802, 0x25),
    a_high_half_is_taken=lambda: _is_taken(0x838, 1 << 32),
    a_reserved_bit_of_icr_is_taken=lambda: _is_taken(0x830, 1 << 13),
    the_page_changes=lambda: _changes_the_page(),
)
