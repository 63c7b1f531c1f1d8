# SPDX-License-Identifier: Apache-2.0
"""Lies about what IA32_XFD costs: a KVM that goes on intercepting, or shows another value than the last."""

from __future__ import annotations

from collections.abc import Callable

from tests.mutations.lies import Shared, after_entry, answer, given
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import sets
from tests.mutations.x86.lies import in_tile_guest
from vmm.conformance.clauses.x86 import xfd_exits
from vmm.conformance.context import Context
from vmm.kvm.ioctl import Interposer
from vmm.kvm.stats import Stats
from vmm.x86.guest import Guest
from vmm.x86.msr_names import Msr

ARMED = 1 << 18


def _costs(extra: int, name: str, *wanted: int, guests_before: int = 0, when: int | None = None) -> Interposer:
    """Some runs take more exits, with ``when`` those of this first parameter.

    The counters are read from a file and pass no door, so the sum is changed.
    """
    honest = xfd_exits._exits
    seen: set[int] = set()

    def counted(context: Context, guest: Guest, stats: Stats, entry: str, *parameters: int) -> int:
        seen.add(guest.vcpu.fd)
        spent = honest(context, guest, stats, entry, *parameters)
        ours = entry == name and parameters[1 : 1 + len(wanted)] == wanted and len(seen) > guests_before
        ours = ours and (when is None or parameters[0] == when)
        return spent + extra * ours

    xfd_exits._exits = counted
    return lambda call, proceed: proceed()


def _in_guest(entry: str, change: Callable[[Shared], object], *first: int) -> Interposer:
    return after_entry(entry, change, payload="amx_os", when=given(*first))


lies(
    "xfd.interception-ends",
    arming_xfd_costs_an_exit_for_ever=lambda: _costs(200, "wrmsrs", Msr.XFD, ARMED),
    one_of_all_writes_costs_an_exit=lambda: _costs(1, "wrmsrs", Msr.XFD, ARMED),
    reading_xfd_costs_an_exit=lambda: _costs(200, "rdmsrs", Msr.XFD),
    arming_by_the_host_is_refused=lambda: answer("KVM_SET_MSRS", 0, sets(Msr.XFD, ARMED)),
    arming_by_the_host_does_not_end_the_interception=lambda: _costs(400, "wrmsrs", Msr.XFD, ARMED, guests_before=1),
)

lies(
    "xfd.err-read-costs-nothing",
    reading_the_error_costs_an_exit=lambda: _costs(200, "rdmsrs", Msr.XFD_ERR),
    the_error_that_is_read_without_an_exit_is_always_0=lambda: _in_guest(
        "rdmsrs", lambda guest: guest.set("values", 0)
    ),
    the_error_that_is_read_without_an_exit_is_an_old_one=lambda: _in_guest(
        "rdmsrs", lambda guest: guest.set("values", ARMED)
    ),
)

lies(
    "xfd.nm-two-exits",
    the_handler_costs_a_third_exit=lambda: _costs(1, "demand"),
    there_is_no_nm_to_count=lambda: in_tile_guest("demand", lambda guest: guest.set("values", 0, 15)),
    another_exception_is_counted=lambda: in_tile_guest("demand", lambda guest: guest.set("values", 6, 3)),
)

lies(
    "xfd.nm-costs-nothing-unused",
    each_nm_costs_an_exit=lambda: _costs(200, "task_switched", when=200),
    one_nm_costs_an_exit=lambda: _costs(1, "task_switched", when=200),
    fewer_nm_are_counted=lambda: _in_guest("task_switched", lambda guest: guest.set("values", 199, 15), 200),
    another_exception_is_counted=lambda: _in_guest("task_switched", lambda guest: guest.set("values", 6, 3), 200),
)
