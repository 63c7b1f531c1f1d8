# SPDX-License-Identifier: Apache-2.0
"""Lies about the calls of a vCPU beside those of its state."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tests.mutations.lies import RUN, Proceed, accept, after, drift, nth, once, refuse, toggle
from tests.mutations.registry import lies
from vmm.kvm.ioctl import Call, Interposer

TRANSLATE, INTERRUPT, DEBUG = "KVM_TRANSLATE", "KVM_INTERRUPT", "KVM_SET_GUEST_DEBUG"
CLOCK, TPR, VAPIC = "KVM_KVMCLOCK_CTRL", "KVM_TPR_ACCESS_REPORTING", "KVM_SET_VAPIC_ADDR"
EVENTS, REGS, OWN = "KVM_GET_VCPU_EVENTS", "KVM_GET_REGS", "KVM_GET_DEBUGREGS"

lies(
    "call.translate",
    it_is_refused=lambda: refuse(TRANSLATE, errno.EINVAL),
    what_is_mapped_is_not_valid=lambda: once(TRANSLATE, after(TRANSLATE, toggle("valid", 1))),
    what_is_not_mapped_is_valid=lambda: after(TRANSLATE, toggle("valid", 1), when=nth(4)),
    another_physical_address=lambda: after(TRANSLATE, toggle("physical_address", 0x1000), when=nth(2)),
    what_is_not_mapped_has_an_address=lambda: after(TRANSLATE, toggle("physical_address", 1), when=nth(4)),
    the_linear_address_is_changed=lambda: after(TRANSLATE, toggle("linear_address", 1)),
    without_paging_an_address_is_not_itself=lambda: after(TRANSLATE, toggle("physical_address", 1), when=nth(5)),
)
lies(
    "call.interrupt-rules",
    vector_256_is_taken=lambda: accept(INTERRUPT, when=nth(1)),
    the_last_vector_is_taken=lambda: accept(INTERRUPT, when=nth(2)),
    vector_255_is_refused=lambda: refuse(INTERRUPT, errno.EINVAL, when=nth(3)),
    another_errno=lambda: drift(INTERRUPT, errno.ENXIO, when=nth(1)),
    a_second_vector_is_taken=lambda: accept(INTERRUPT, when=nth(5)),
    a_first_vector_is_refused=lambda: refuse(INTERRUPT, errno.EEXIST, when=nth(4)),
    a_vector_is_taken_beside_the_pic=lambda: accept(INTERRUPT, when=nth(6)),
    a_refused_vector_is_injected=lambda: once(EVENTS, after(EVENTS, toggle("interrupt.injected", 1))),
    another_vector_is_injected=lambda: after(EVENTS, toggle("interrupt.nr", 1), when=nth(2)),
)
lies(
    "call.guest-debug-busy",
    an_exception_is_replaced=lambda: accept(DEBUG),
    another_errno=lambda: drift(DEBUG, errno.EINVAL),
    the_exception_is_another_one=lambda: after(EVENTS, toggle("exception.nr", 1), when=nth(2)),
    nothing_is_pending_any_more=lambda: after(EVENTS, toggle("exception.pending", 1), when=nth(2)),
    nothing_is_injected=lambda: after(EVENTS, toggle("exception.injected", 1), when=nth(3)),
    another_vector_is_injected=lambda: after(EVENTS, toggle("exception.nr", 2), when=nth(3)),
    it_is_refused_without_an_exception=lambda: refuse(DEBUG, errno.EBUSY),
)


def _at_stop(change: Callable[[Any], None], number: int = 1) -> Interposer:
    """A debugged guest stops otherwise the ``number``-th time."""
    met = nth(number)

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == "KVM_RUN" and call.kind == RUN and met(call):
            change(call.argument.run)
        return result

    return interposer


def _word(offset: int, bits: int) -> Callable[[Any], None]:
    from vmm._kvm import ffi

    def change(run: Any) -> None:
        view = ffi.buffer(ffi.cast("uint8_t *", run) + 32 + offset, 8)
        view[:] = (int.from_bytes(view[:], "little") ^ bits).to_bytes(8, "little")

    return change


def _leaves_otherwise(run: Any) -> None:
    run.exit_reason = 8  # KVM_EXIT_SHUTDOWN


lies(
    "call.guest-breakpoint",
    it_is_refused=lambda: refuse(DEBUG, errno.EINVAL),
    the_guest_leaves_otherwise=lambda: _at_stop(_leaves_otherwise),
    the_exception_is_another_one=lambda: _at_stop(_word(0, 2)),
    the_pc_is_another_one=lambda: _at_stop(_word(8, 2)),
    dr6_has_no_b0=lambda: _at_stop(_word(16, 1)),
    rip_has_gone_on=lambda: after(REGS, toggle("rip", 2), when=nth(2)),
    the_guests_dr0_is_the_vmms=lambda: after(OWN, toggle("dr7", 1), when=nth(2)),
)
lies(
    "call.guest-single-step",
    it_is_refused=lambda: refuse(DEBUG, errno.EINVAL),
    the_guest_leaves_otherwise=lambda: _at_stop(_leaves_otherwise),
    the_pc_is_another_one=lambda: _at_stop(_word(8, 2), 2),
    tf_is_shown=lambda: after(REGS, toggle("rflags", 0x100), when=nth(3)),
)


lies(
    "call.kvmclock-ctrl",
    it_is_taken_without_a_clock=lambda: accept(CLOCK),
    another_errno=lambda: drift(CLOCK, errno.ENOTTY),
    it_is_refused_with_a_clock=lambda: refuse(CLOCK, errno.EINVAL),
    the_guest_is_not_told=lambda: _forgotten(),
)


def _forgotten() -> Interposer:
    """The call is taken and nothing is done, where there is a clock."""
    calls = nth(2)

    def interposer(call: Call, proceed: Proceed) -> int:
        return 0 if call.name == CLOCK and calls(call) else proceed()

    return interposer


lies(
    "call.apic-access-rules",
    flags_are_taken=lambda: accept(TPR),
    another_errno=lambda: drift(TPR, errno.ENOTTY),
    reporting_is_refused=lambda: refuse(TPR, errno.EINVAL),
    an_address_is_taken_without_an_apic=lambda: accept(VAPIC),
    an_address_is_refused=lambda: refuse(VAPIC, errno.EINVAL),
)
