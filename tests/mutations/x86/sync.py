# SPDX-License-Identifier: Apache-2.0
"""Lies about registers in struct kvm_run."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tests.mutations.lies import (
    COMPLETE,
    RUN,
    Proceed,
    accept,
    after,
    after_entry,
    called,
    drift,
    nth,
    toggle,
)
from tests.mutations.registry import lies, mutation
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer

VALID, DIRTY = "kvm_valid_regs", "kvm_dirty_regs"
REGS, SREGS, EVENTS = (int(getattr(lib, f"KVM_SYNC_X86_{name}")) for name in ("REGS", "SREGS", "EVENTS"))


def _part(call: Call) -> Any:
    """The registers in the kvm_run of a run."""
    return ffi.cast("struct kvm_sync_regs *", ffi.addressof(call.argument.run.s))


def _field(field: str, bits: int) -> Callable[[Call], bool]:
    return lambda call: bool(getattr(call.argument.run, field) & bits)


def _given(change: Callable[[Any], object]) -> Interposer:
    """KVM_RUN gives other registers."""
    return after(RUN, lambda call: change(_part(call)))


def _toggled(part: str, field: str, bits: int) -> Interposer:
    def change(registers: Any) -> None:
        owner = getattr(registers, part)
        setattr(owner, field, getattr(owner, field) ^ bits)

    return _given(change)


def _without(field: str, bits: int) -> Interposer:
    """KVM_RUN does not look at some bits of kvm_valid_regs or kvm_dirty_regs."""

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) != RUN:
            return proceed()
        run = call.argument.run
        kept = getattr(run, field)
        setattr(run, field, kept & ~bits)
        result = proceed()
        if field == VALID:
            setattr(run, field, kept)
        return result

    return interposer


def _with(field: str, bits: int) -> Interposer:
    """KVM_RUN takes some bits of kvm_valid_regs or kvm_dirty_regs for set."""

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) != RUN:
            return proceed()
        run = call.argument.run
        kept = getattr(run, field)
        setattr(run, field, kept | bits)
        result = proceed()
        if field == VALID:
            setattr(run, field, kept)
        return result

    return interposer


def _reports(index: int, value: int) -> Interposer:
    """The guest reports another value."""
    return after_entry("report", lambda guest: guest.set("values", value, index), payload="sync")


lies(
    "sync.unknown-bits-refused",
    an_unknown_valid_bit_is_ignored=lambda: accept(RUN, _field(VALID, 1 << 40)),
    an_unknown_dirty_bit_is_ignored=lambda: accept(RUN, _field(DIRTY, 1 << 63)),
    an_unknown_valid_bit_is_enotsup=lambda: drift(RUN, errno.EOPNOTSUPP, _field(VALID, 1 << 3)),
    an_unknown_dirty_bit_is_eperm=lambda: drift(RUN, errno.EPERM, _field(DIRTY, 1 << 3)),
)


def _runs_anyway(field: str) -> Interposer:
    """A refused KVM_RUN has run the guest."""

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) != RUN or not getattr(call.argument.run, field) >> 50 & 1:
            return proceed()
        run = call.argument.run
        kept = getattr(run, field)
        setattr(run, field, 0)
        proceed()
        setattr(run, field, kept)
        return proceed()

    return interposer


lies(
    "sync.unknown-bits-refused",
    a_refused_valid_bit_runs_the_guest=lambda: _runs_anyway(VALID),
    a_refused_dirty_bit_runs_the_guest=lambda: _runs_anyway(DIRTY),
)

lies(
    "sync.given-is-what-get-says",
    another_rbx_is_given=lambda: _toggled("regs", "rbx", 1),
    another_rip_is_given=lambda: _toggled("regs", "rip", 1),
    another_cr4_is_given=lambda: _toggled("sregs", "cr4", 1 << 3),
    another_efer_is_given=lambda: _toggled("sregs", "efer", 1),
    another_selector_is_given=lambda: _given(lambda part: setattr(part.sregs.cs, "selector", 0x99)),
    the_mask_of_nmis_is_not_given=lambda: _given(lambda part: setattr(part.events.nmi, "masked", 0)),
    other_flags_of_events_are_given=lambda: _toggled("events", "flags", 1 << 4),
    no_regs_are_given=lambda: _without(VALID, REGS),
    no_sregs_are_given=lambda: _without(VALID, SREGS),
    no_events_are_given=lambda: _without(VALID, EVENTS),
    kvm_valid_regs_is_cleared=lambda: after(RUN, lambda call: setattr(call.argument.run, VALID, 0)),
)


@mutation("sync.given-is-what-get-says")
def nothing_is_given_after_eintr() -> Interposer:
    """What completes an exit is given no kvm_run, so the one of the run before is kept."""
    runs: list[Any] = []

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) == RUN:
            runs.append(call.argument.run)
        if called(call) != COMPLETE or not runs:
            return proceed()
        kept = bytes(ffi.buffer(ffi.addressof(runs[-1].s)))
        result = proceed()
        ffi.memmove(ffi.addressof(runs[-1].s), kept, len(kept))
        return result

    return interposer


lies(
    "sync.only-what-is-asked",
    regs_are_always_given=lambda: _with(VALID, REGS),
    sregs_are_always_given=lambda: _with(VALID, SREGS),
    events_are_always_given=lambda: _with(VALID, EVENTS),
    regs_are_never_given=lambda: _without(VALID, REGS),
    sregs_are_never_given=lambda: _without(VALID, SREGS),
    events_are_never_given=lambda: _without(VALID, EVENTS),
    a_byte_behind_the_groups_is_written=lambda: after(
        RUN, lambda call: setattr(call.argument.run.s, "padding", b"\0" * 2048), nth(1)
    ),
)


def _not_cleared() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) != RUN:
            return proceed()
        kept = call.argument.run.kvm_dirty_regs
        result = proceed()
        call.argument.run.kvm_dirty_regs = kept
        return result

    return interposer


lies(
    "sync.dirty-taken",
    dirty_regs_are_not_taken=lambda: _without(DIRTY, REGS),
    dirty_sregs_are_not_taken=lambda: _without(DIRTY, SREGS),
    the_guest_gets_another_r15=lambda: after_entry("report", lambda guest: guest.set("values", 0, 1), payload="sync"),
    kvm_get_regs_does_not_know_of_them=lambda: after(
        "KVM_GET_REGS", lambda call: setattr(call.argument, "rbx", 0), lambda call: call.argument.rbx == 0
    ),
)

lies(
    "sync.dirty-taken",
    "sync.dirty-events-taken",
    kvm_dirty_regs_is_not_cleared=lambda: _not_cleared(),
)

lies(
    "sync.dirty-events-taken",
    dirty_events_are_not_taken=lambda: _without(DIRTY, EVENTS),
    the_exception_has_another_vector=lambda: after_entry(
        "report", lambda guest: guest.set("vector", 6), payload="sync"
    ),
    the_exception_has_no_error_code=lambda: after_entry(
        "report", lambda guest: guest.set("error", 0), payload="sync"
    ),
    the_exception_comes_after_an_instruction=lambda: after_entry(
        "report", lambda guest: guest.set("rip", guest.get("rip") + 8), payload="sync"
    ),
)

lies(
    "sync.not-dirty-ignored",
    regs_are_always_taken=lambda: _with(DIRTY, REGS),
    rbx_is_another=lambda: _reports(0, 1),
    r15_is_another=lambda: _reports(1, 2),
    rip_is_another=lambda: _reports(3, 1),
    gs_is_another=lambda: _reports(2, 1),
)


def _later(field: str) -> Interposer:
    """KVM_GET_SREGS shows another field from its third call on, which is the first after the run."""
    turns = iter(range(1, 1 << 30))
    return after("KVM_GET_SREGS", toggle(field, 1 << 3), lambda call: next(turns) > 2)


lies(
    "sync.not-dirty-ignored",
    gs_is_taken_after_the_exit=lambda: _later("gs.base"),
    cr4_is_taken_after_the_exit=lambda: _later("cr4"),
)


lies(
    "sync.invalid-refused",
    sregs_that_are_not_valid_are_ignored=lambda: accept(RUN, _field(DIRTY, SREGS)),
    events_that_are_not_valid_are_ignored=lambda: accept(RUN, _field(DIRTY, EVENTS)),
    sregs_that_are_not_valid_are_eperm=lambda: drift(RUN, errno.EPERM, _field(DIRTY, SREGS)),
    the_refused_bit_is_cleared=lambda: _cleared(),
    the_guest_runs_all_the_same=lambda: _without(DIRTY, SREGS | EVENTS),
)


def _cleared() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if called(call) == RUN and result < 0:
            call.argument.run.kvm_dirty_regs = 0
        return result

    return interposer
