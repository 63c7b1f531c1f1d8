# SPDX-License-Identifier: Apache-2.0
"""Lies about calls that change a vCPU's state beside its setters."""

from __future__ import annotations

import errno

from tests.mutations.lies import Condition, Proceed, accept, after, answer, assign, before, drift, toggle
from tests.mutations.registry import lies
from tests.mutations.world import world_shows
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.state.x86.world.lapic import LAPIC
from vmm.state.x86.world.modes import SREGS_1
from vmm.state.x86.world.registers import DEBUGREGS, REGS

INTERRUPT, DEBUG, TRANSLATE = "KVM_INTERRUPT", "KVM_SET_GUEST_DEBUG", "KVM_TRANSLATE"


def _asks(bits: int) -> Condition:
    return lambda call: bool(call.argument.control & bits)


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
    a_vector_of_256_is_taken=lambda: accept(INTERRUPT, lambda call: call.argument.irq == 256),
    a_vector_of_256_is_e2big=lambda: drift(INTERRUPT, errno.E2BIG, lambda call: call.argument.irq == 256),
    no_interrupt_is_queued=lambda: answer(INTERRUPT, 0),
    another_interrupt_is_queued=lambda: before(INTERRUPT, toggle("irq", 4), lambda call: call.argument.irq < 256),
    the_bitmap_has_another=lambda: world_shows(SREGS_1, "interrupt_bitmap[1]"),
    no_nmi_is_sent=lambda: answer("KVM_NMI", 0),
    a_second_interrupt_is_busy=lambda: drift(INTERRUPT, errno.EBUSY, lambda call: call.argument.irq < 256),
)
lies(
    "world.debugregs-debugged",
    db2_is_the_debuggers=lambda: world_shows(DEBUGREGS, "db[2]"),
    rflags_are_others=lambda: world_shows(REGS, "rflags"),
    no_exception_is_injected=lambda: answer(DEBUG, 0, _asks(lib.KVM_GUESTDBG_INJECT_DB)),
    a_second_exception_is_taken=lambda: accept(DEBUG, _asks(lib.KVM_GUESTDBG_INJECT_BP)),
    a_second_exception_is_eagain=lambda: drift(DEBUG, errno.EAGAIN, _asks(lib.KVM_GUESTDBG_INJECT_DB)),
)
lies(
    "world.sregs-translated",
    nothing_is_valid=lambda: after(TRANSLATE, assign("valid", 0)),
    everything_is_valid=lambda: after(TRANSLATE, assign("valid", 1)),
    nothing_is_writeable=lambda: after(TRANSLATE, assign("writeable", 0)),
    the_offset_is_lost=lambda: after(TRANSLATE, toggle("physical_address", 1)),
)
lies(
    "world.lapic-x2-msrs",
    an_x2apic_has_a_destination_format=lambda: _is_read(0x80E),
    the_identifier_can_be_written=lambda: _is_taken(0x802, 0x25),
    a_high_half_is_taken=lambda: _is_taken(0x838, 1 << 32),
    a_reserved_bit_of_icr_is_taken=lambda: _is_taken(0x830, 1 << 13),
    the_page_changes=lambda: _changes_the_page(),
)
