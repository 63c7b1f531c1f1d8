# SPDX-License-Identifier: Apache-2.0
"""Lies about XFD beside neighbours: what a host thread's #NM or another guest takes away."""

from __future__ import annotations

from collections.abc import Callable

from tests.mutations.lies import RUN, Proceed, Shared, after_entry, called, given
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import set_msr_now
from tests.mutations.x86.lies import before_run, faults, host_reads, in_tile_guest
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

ARMED = 1 << 18
PREEMPTED = "xfd.err-survives-preemption"


def _contended(change: Callable[[Shared], object]) -> Interposer:
    return after_entry("contended", change, payload="amx_os")


lies(
    PREEMPTED,
    no_thread_of_the_host_came_between=lambda: _contended(lambda guest: guest.set("values", 0, 2)),
    the_handler_reads_the_hosts_0=lambda: _contended(lambda guest: guest.set("values", 0, 0)),
    the_error_comes_back_after_it_was_cleared=lambda: _contended(lambda guest: guest.set("values", ARMED, 1)),
    the_retry_is_nm_again=lambda: _contended(lambda guest: guest.set("values", 2, 15)),
    the_handler_is_that_of_another_exception=lambda: _contended(lambda guest: guest.set("values", 6, 3)),
)


@mutation(PREEMPTED)
def preemption_really_loses_the_error() -> Interposer:
    """The guest is stopped while it waits in its handler, its IA32_XFD_ERR is cleared, and it waits no longer."""
    shared = Shared("amx_os")

    def interposer(call: Call, proceed: Proceed) -> int:
        shared.watch(call)
        if called(call) != RUN:
            return proceed()
        shared.set("params", 1 << 40)  # more than will come
        timeout, call.argument.timeout_ns = call.argument.timeout_ns, 50_000_000
        regs = ffi.new("struct kvm_regs *")
        while (result := proceed()) == lib.VMM_RUN_DEADLINE:
            lib.vmm_ioctl(call.fd, lib.KVM_GET_REGS, regs)
            if regs.rip - shared.payload.symbol("contended_handler") in range(32):
                break
        call.argument.timeout_ns = timeout
        if result != lib.VMM_RUN_DEADLINE:
            return result
        set_msr_now(call.fd, Msr.XFD_ERR, 0)
        regs.rsi = 0
        lib.vmm_ioctl(call.fd, lib.KVM_SET_REGS, regs)
        return proceed()

    return interposer


def _reads(index: int, value: int) -> Interposer:
    return in_tile_guest("rdmsr", lambda guest: guest.set("values", value), given(index))


TWO = "xfd.two-guests-isolated"

lies(
    TWO,
    a_guest_runs_with_the_xfd_of_another=lambda: before_run(13, lambda fd: set_msr_now(fd, Msr.XFD, ARMED)),
    a_guest_runs_with_the_error_of_another=lambda: before_run(13, lambda fd: set_msr_now(fd, Msr.XFD_ERR, ARMED)),
    all_guests_read_one_xfd=lambda: _reads(Msr.XFD, 0),
    all_guests_read_one_error=lambda: in_tile_guest(
        "rdmsr", lambda guest: guest.set("values", 0), given(Msr.XFD_ERR)
    ),
    the_host_reads_one_xfd_for_all=lambda: host_reads(Msr.XFD, lambda value: 0),
    the_host_reads_one_error_for_all=lambda: host_reads(Msr.XFD_ERR, lambda value: ARMED),
    a_guest_is_stopped_by_the_xfd_of_another=lambda: before_run(49, lambda fd: set_msr_now(fd, Msr.XFD, ARMED)),
    no_guest_is_stopped=lambda: in_tile_guest("tilezero_once", faults(0, 7)),
)
