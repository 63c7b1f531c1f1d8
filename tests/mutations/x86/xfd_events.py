# SPDX-License-Identifier: Apache-2.0
"""Lies about an #NM by XFD as the host sees it: IA32_XFD_ERR behind it, the pending exception and its payload."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import RUN, Change, Shared, after, after_entry, answer, before, once, refuse, toggle
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import change_msr, of_msr, set_msr_now, sets
from tests.mutations.x86.lies import host_reads, in_tile_guest
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

GET_EVENTS, SET_EVENTS = "KVM_GET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS"
ARMED, NM, UD = 1 << 18, 7, 6


def _pending(call: Call) -> bool:
    return bool(call.argument.exception.pending)


def _read_pending(change: Change) -> Interposer:
    """Spoil what the host reads of a pending exception."""
    return after(GET_EVENTS, lambda call: _pending(call) and change(call))


def _set_pending(change: Change) -> Interposer:
    """Spoil a pending exception that is set."""
    return before(SET_EVENTS, change, _pending)


def _handler(entry: str, change: Callable[[Shared], object]) -> Interposer:
    return after_entry(entry, change, payload="amx_os")


def _behind_a_run(msr: int, value: int) -> Interposer:
    return once(RUN, host_reads(msr, lambda _: value))


lies(
    "xfd.err-read-by-host",
    a_fresh_guest_has_an_error=lambda: host_reads(Msr.XFD_ERR, lambda value: value | ARMED),
    the_host_reads_no_error_behind_an_nm=lambda: _behind_a_run(Msr.XFD_ERR, 0),
    the_host_reads_xfd_as_disarmed_behind_an_nm=lambda: _behind_a_run(Msr.XFD, 0),
    the_host_may_not_set_the_error=lambda: answer("KVM_SET_MSRS", 0, of_msr(Msr.XFD_ERR)),
    what_the_host_sets_is_lost=lambda: before("KVM_SET_MSRS", change_msr(Msr.XFD_ERR, lambda value: 0)),
    the_host_cannot_take_the_error_back=lambda: answer("KVM_SET_MSRS", 1, sets(Msr.XFD_ERR, 0)),
    the_guest_cannot_clear_it_for_the_host=lambda: once(
        RUN, once("KVM_SET_MSRS", host_reads(Msr.XFD_ERR, lambda value: ARMED))
    ),
    the_handler_reads_the_error_as_it_was=lambda: in_tile_guest("demand", lambda guest: guest.set("values", ARMED)),
)

PAYLOAD = "xfd.nm-payload"

lies(
    PAYLOAD,
    an_exception_with_a_payload_is_refused=lambda: refuse(SET_EVENTS, errno.EINVAL),
    a_pending_nm_is_read_as_another=lambda: _read_pending(toggle("exception.nr", 1)),
    a_pending_nm_is_read_as_injected=lambda: _read_pending(toggle("exception.injected", 1)),
    a_pending_nm_is_not_kept=lambda: _set_pending(toggle("exception.pending", 1)),
    the_payload_is_not_kept=lambda: _set_pending(toggle("exception_has_payload", 1)),
    a_bit_of_the_payload_is_lost=lambda: _set_pending(toggle("exception_payload", ARMED)),
    another_exception_is_delivered=lambda: _set_pending(toggle("exception.nr", NM ^ UD)),
    the_payload_goes_to_cr2=lambda: _handler("_start", lambda guest: guest.set("cr2", ARMED)),
    the_exception_is_delivered_late=lambda: _handler("_start", lambda guest: guest.set("rip", guest.get("rip") + 2)),
    the_payload_goes_to_the_error_register=lambda: after(RUN, lambda call: set_msr_now(call.fd, Msr.XFD_ERR, ARMED)),
    the_payload_stays_after_delivery=lambda: once(
        RUN, after(GET_EVENTS, lambda call: setattr(call.argument, "exception_has_payload", 1))
    ),
    the_delivered_exception_is_ud=lambda: _handler("_start", lambda guest: guest.set("vector", UD)),
)

MOVES = "xfd.nm-pending-moves"


def _when_pending(lie: Interposer) -> Interposer:
    """A lie that begins when an exception was seen pending."""
    begun = False

    def interposer(call: Call, proceed: Callable[[], int]) -> int:
        nonlocal begun
        result = lie(call, proceed) if begun else proceed()
        begun = begun or (call.name == GET_EVENTS and _pending(call))
        return result

    return interposer


def _restored(change: Change) -> Interposer:
    """Spoil the state that is restored, not the one that is set up."""
    return _when_pending(before(SET_EVENTS, change))


def _other_payload(bits: int) -> Change:
    """There is a payload, and it is another."""

    def change(call: Call) -> None:
        call.argument.exception_has_payload = 1
        call.argument.exception_payload ^= bits
        call.argument.flags |= lib.KVM_VCPUEVENT_VALID_PAYLOAD

    return change


lies(
    MOVES,
    the_pending_exception_is_another=lambda: _when_pending(_read_pending(toggle("exception.nr", 1))),
    the_error_is_read_after_the_exception=lambda: _when_pending(host_reads(Msr.XFD_ERR, lambda value: 0)),
    the_payload_is_not_the_error=lambda: _when_pending(_read_pending(_other_payload(1))),
    the_payload_does_not_come_over=lambda: _restored(_other_payload(1 << 5)),
    the_exception_does_not_come_over=lambda: _restored(toggle("exception.pending", 1)),
    another_exception_comes_over=lambda: _restored(toggle("exception.nr", NM ^ UD)),
    the_error_does_not_come_over=lambda: _when_pending(before("KVM_SET_MSRS", change_msr(Msr.XFD_ERR, lambda v: 0))),
    a_pending_exception_cannot_be_restored=lambda: _when_pending(refuse(SET_EVENTS, errno.EINVAL)),
)
