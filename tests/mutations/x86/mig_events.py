# SPDX-License-Identifier: Apache-2.0
"""Lies about events: what is lost when it is written, not shown when it is read, or not taken by the guest."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import reduce
from typing import Any

from tests.mutations.lies import RUN, accept, after, after_entry, assign, before, drift, nth, once, refuse
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import struct_now
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer

GET, SET, SET_REGS, SET_SREGS = "KVM_GET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS", "KVM_SET_REGS", "KVM_SET_SREGS"
_SHADOW, _NMIS = lib.KVM_VCPUEVENT_VALID_SHADOW, lib.KVM_VCPUEVENT_VALID_NMI_PENDING
_FLAGS = _SHADOW | _NMIS
_TRIPLE_FAULT = lib.KVM_VCPUEVENT_VALID_TRIPLE_FAULT


def _events_now(**fields: int) -> Callable[[Call], None]:
    """Really change some fields of a vCPU's events; two underscores lead into a part."""

    def change(events: Any) -> None:
        for path, value in fields.items():
            *outer, last = path.split("__")
            owner: Any = reduce(getattr, outer, events)
            setattr(owner, last, value)
        events.flags |= _FLAGS

    return lambda call: struct_now(
        call.fd, lib.KVM_GET_VCPU_EVENTS, lib.KVM_SET_VCPU_EVENTS, "kvm_vcpu_events", change
    )


def _lost(path: str) -> Interposer:
    """Whatever is written to a field becomes 0."""
    return before(SET, assign(path, 0))


def _hidden(path: str) -> Interposer:
    """A field reads as 0."""
    return after(GET, assign(path, 0))


def _in_the_guest(**fields: int) -> Interposer:
    """What was restored, and reads as it should, is something else when the guest runs."""
    return before(RUN, _events_now(**fields))


def _registers_now(
    kind: str, get: int, set_: int, field: str, change: Callable[[int], int]
) -> Callable[[Call], None]:
    def spoil(registers: Any) -> None:
        setattr(registers, field, change(getattr(registers, field)))

    return lambda call: struct_now(call.fd, get, set_, kind, spoil)


def _later(call: Call) -> None:
    """Move RIP behind where it is."""
    _registers_now("kvm_regs", lib.KVM_GET_REGS, lib.KVM_SET_REGS, "rip", lambda rip: rip + 12)(call)


lies(
    "mig.nmi",
    a_pending_nmi_is_lost_when_it_is_written=lambda: _lost("nmi.pending"),
    an_injected_nmi_is_lost_when_it_is_written=lambda: _lost("nmi.injected"),
    a_pending_nmi_is_not_shown=lambda: _hidden("nmi.pending"),
    an_injected_nmi_is_not_shown=lambda: _hidden("nmi.injected"),
    a_restored_nmi_is_never_taken=lambda: _in_the_guest(nmi__pending=0, nmi__injected=0),
    another_exception_is_taken=lambda: _in_the_guest(
        nmi__pending=0, nmi__injected=0, exception__injected=1, exception__nr=6
    ),
    the_nmi_comes_an_instruction_late=lambda: before(RUN, _later),
    events_are_refused=lambda: refuse(SET, 22),
)

lies(
    "mig.nmi-masked",
    the_mask_is_lost_when_it_is_written=lambda: _lost("nmi.masked"),
    the_nmi_is_lost_when_it_is_written=lambda: _lost("nmi.pending"),
    the_mask_is_not_shown=lambda: _hidden("nmi.masked"),
    the_nmi_is_not_shown=lambda: _hidden("nmi.pending"),
    the_nmi_does_not_wait=lambda: _in_the_guest(nmi__masked=0),
    the_nmi_never_comes=lambda: _in_the_guest(nmi__pending=0),
    another_exception_comes_after_the_iret=lambda: after_entry(
        "unmask", lambda guest: guest.set("vector", 6), payload="state"
    ),
    the_nmi_comes_before_the_iret=lambda: after_entry(
        "unmask", lambda guest: guest.set("rip", guest.payload.symbol("unmask")), payload="state"
    ),
)

lies(
    "mig.interrupt-shadow",
    the_shadow_is_lost_when_it_is_written=lambda: _lost("interrupt.shadow"),
    the_shadow_is_not_shown=lambda: _hidden("interrupt.shadow"),
    the_shadow_is_not_honoured=lambda: _in_the_guest(interrupt__shadow=0),
    the_nmi_is_lost_when_it_is_written=lambda: _lost("nmi.pending"),
    the_nmi_never_comes=lambda: _in_the_guest(nmi__pending=0),
    the_shadow_lasts=lambda: _in_the_guest(nmi__masked=1),
)

lies(
    "mig.interrupt-injected",
    the_interrupt_is_lost_when_it_is_written=lambda: _lost("interrupt.injected"),
    the_vector_is_lost_when_it_is_written=lambda: _lost("interrupt.nr"),
    the_interrupt_is_not_shown=lambda: _hidden("interrupt.injected"),
    the_vector_is_not_shown=lambda: _hidden("interrupt.nr"),
    the_interrupt_is_never_taken=lambda: _in_the_guest(interrupt__injected=0),
    another_vector_is_taken=lambda: _in_the_guest(interrupt__nr=30),
    the_interrupt_comes_an_instruction_late=lambda: before(RUN, _later),
)

lies(
    "mig.exception-error-code",
    the_exception_is_lost_when_it_is_written=lambda: _lost("exception.injected"),
    the_vector_is_lost_when_it_is_written=lambda: _lost("exception.nr"),
    the_error_code_is_lost_when_it_is_written=lambda: _lost("exception.error_code"),
    the_exception_is_not_shown=lambda: _hidden("exception.injected"),
    that_it_has_an_error_code_is_not_shown=lambda: _hidden("exception.has_error_code"),
    the_error_code_is_not_shown=lambda: _hidden("exception.error_code"),
    the_exception_is_never_taken=lambda: _in_the_guest(exception__injected=0),
    another_exception_is_taken=lambda: _in_the_guest(exception__nr=12),
    the_handler_gets_another_error_code=lambda: _in_the_guest(exception__error_code=0),
    the_exception_comes_an_instruction_late=lambda: before(RUN, _later),
)

lies(
    "mig.exception-payload",
    the_exception_is_lost_when_it_is_written=lambda: _lost("exception.pending"),
    the_error_code_is_lost_when_it_is_written=lambda: _lost("exception.error_code"),
    the_address_is_lost_when_it_is_written=lambda: _lost("exception_payload"),
    the_exception_is_not_shown=lambda: _hidden("exception.pending"),
    the_address_is_not_shown=lambda: _hidden("exception_payload"),
    that_there_is_an_address_is_not_shown=lambda: _hidden("exception_has_payload"),
    the_exception_reads_as_injected=lambda: after(GET, assign("exception.injected", 1)),
    control_registers_discard_it=lambda: once(SET, once(SET, after(SET_SREGS, _events_now(exception__pending=0)))),
    debug_registers_discard_it=lambda: once(
        SET, once(SET, after("KVM_SET_DEBUGREGS", _events_now(exception__pending=0)))
    ),
    the_run_state_discards_it=lambda: once(
        SET, once(SET, after("KVM_SET_MP_STATE", _events_now(exception__pending=0)))
    ),
    cr2_has_the_address_too_early=lambda: once(
        SET, once(SET, after("KVM_GET_SREGS", assign("cr2", 0x77772000)))
    ),
    it_is_never_taken=lambda: _in_the_guest(exception__pending=0),
    another_exception_is_taken=lambda: _in_the_guest(exception__nr=13),
    the_handler_gets_another_error_code=lambda: _in_the_guest(exception__error_code=0),
    cr2_does_not_get_the_address=lambda: _in_the_guest(exception_has_payload=0),
    it_comes_an_instruction_late=lambda: before(
        RUN,
        lambda call: struct_now(call.fd, lib.KVM_GET_VCPU_EVENTS, lib.KVM_SET_VCPU_EVENTS, "kvm_vcpu_events",
                                lambda events: _later(call)),
    ),
)  # fmt: skip

# Where the finding is known, a lie is noticed by a finding of its own.
lies(
    "mig.regs-keep-exception",
    general_registers_discard_what_is_injected=lambda: after(SET_REGS, _events_now(exception__injected=0)),
    general_registers_discard_a_pending_nmi=lambda: after(SET_REGS, _events_now(nmi__pending=0)),
    general_registers_unmask_nmis=lambda: after(SET_REGS, _events_now(nmi__masked=0)),
    a_pending_exception_is_lost_when_it_is_written=lambda: _lost("exception.pending"),
    general_registers_are_refused=lambda: once(SET, refuse(SET_REGS, 22)),
)


def _triple_fault(call: Call) -> bool:
    return bool(call.argument.flags & _TRIPLE_FAULT)


def _no_flag(call: Call) -> None:
    call.argument.flags &= ~_TRIPLE_FAULT


def _pending_now(value: int) -> Callable[[Call], None]:
    """Really have a triple fault pending, or none."""

    def change(events: Any) -> None:
        events.triple_fault.pending = value
        events.flags |= _TRIPLE_FAULT

    return lambda call: struct_now(
        call.fd, lib.KVM_GET_VCPU_EVENTS, lib.KVM_SET_VCPU_EVENTS, "kvm_vcpu_events", change
    )


lies(
    "mig.triple-fault",
    it_is_lost_when_it_is_written=lambda: _lost("triple_fault.pending"),
    it_is_not_shown=lambda: _hidden("triple_fault.pending"),
    it_is_always_shown=lambda: after(GET, assign("triple_fault.pending", 1)),
    that_it_is_valid_is_not_shown=lambda: after(GET, _no_flag),
    it_is_refused=lambda: refuse(SET, errno.EINVAL, _triple_fault),
    the_copy_refuses_it=lambda: refuse(SET, errno.EINVAL, nth(2)),
    the_copy_loses_it=lambda: before(SET, assign("triple_fault.pending", 0), nth(2)),
    it_is_never_taken=lambda: before(RUN, _pending_now(0), nth(1)),
    it_stays_pending=lambda: once(RUN, after(GET, assign("triple_fault.pending", 1))),
    it_cannot_be_taken_back=lambda: before(SET, assign("triple_fault.pending", 1)),
    it_is_taken_although_taken_back=lambda: once(RUN, before(RUN, _pending_now(1))),
    it_is_accepted_without_the_capability=lambda: accept(SET, _triple_fault),
    it_is_enotty_without_the_capability=lambda: drift(SET, errno.ENOTTY),
    it_is_valid_without_the_capability=lambda: after(
        GET, lambda call: setattr(call.argument, "flags", call.argument.flags | _TRIPLE_FAULT)
    ),
)
