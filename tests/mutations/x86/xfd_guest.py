# SPDX-License-Identifier: Apache-2.0
"""Lies about IA32_XFD and IA32_XFD_ERR in use: what the guest's #NM handler sees, and what outlives an exit."""

from __future__ import annotations

from itertools import count

from tests.mutations.lies import RUN, Shared, after, after_run, answer, before, given
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import change_msr, of_msr, set_msr_now, sets
from tests.mutations.x86.lies import GP, NM, UD, before_run, faults, guest_writes, host_reads, in_tile_guest, lose
from vmm._kvm import lib
from vmm.conformance.x86.tiles import FULL
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

GET, SET = "KVM_GET_MSRS", "KVM_SET_MSRS"
ARMED, TS = 1 << 18, 1 << 3


def _guest_reads(index: int, value: int) -> Interposer:
    """Let the guest read another value of an MSR."""
    return in_tile_guest("rdmsr", lambda guest: guest.set("values", value), given(index))


def _guest_writes(index: int, value: int, number: int, vector: int = GP) -> Interposer:
    """Let one WRMSR of the guest fault, or not."""
    return guest_writes("amx", index, value, number, vector)


lies(
    "xfd.reset",
    a_fresh_vcpu_has_the_hosts_armed_xfd=lambda: host_reads(Msr.XFD, lambda value: ARMED),
    a_fresh_guest_reads_an_error=lambda: _guest_reads(Msr.XFD_ERR, ARMED),
)

lies(
    "xfd.set-rules-with-tiles",
    ia32_xfd_takes_the_tile_configurations_bit=lambda: answer(SET, 1, sets(Msr.XFD, 1 << 17)),
    ia32_xfd_err_takes_bit_63_with_tiles=lambda: answer(SET, 1, sets(Msr.XFD_ERR, 1 << 63)),
)

lies(
    "xfd.set-rules-with-tiles",
    "xfd.guest-write-rules",
    "xfd.passthrough-coherent",
    the_host_always_reads_0_from_ia32_xfd=lambda: host_reads(Msr.XFD, lambda value: 0),
)

lies("xfd.set-rules-with-tiles", the_host_cannot_set_ia32_xfd_err=lambda: answer(SET, 0, of_msr(Msr.XFD_ERR)))

lies(
    "xfd.guest-write-rules",
    a_reserved_bit_of_ia32_xfd_is_ignored=lambda: _guest_writes(Msr.XFD, 1 << 63, 0),
    a_reserved_bit_of_ia32_xfd_err_is_ud=lambda: _guest_writes(Msr.XFD_ERR, 1 << 17, 1, UD),
    arming_ia32_xfd_faults=lambda: _guest_writes(Msr.XFD, ARMED, 1),
)

lies(
    "xfd.guest-write-rules",
    "xfd.err-guest-write",
    "xfd.nm-each-instruction",
    "xfd.err-sticky-or",
    the_guest_always_reads_0_from_ia32_xfd_err=lambda: _guest_reads(Msr.XFD_ERR, 0),
)

lies("xfd.needs-tiledata-in-cpuid", arming_works_without_tile_data_in_cpuid=lambda: _guest_writes(Msr.XFD, ARMED, 0))


@mutation("xfd.needs-tiledata-in-cpuid")
def the_second_attempt_to_arm_works() -> Interposer:
    turns = count(1)
    return in_tile_guest("wrmsr", faults(0), lambda guest: next(turns) == 2)


lies("xfd.needs-tiledata-in-cpuid", disarming_needs_tile_data_in_cpuid=lambda: _guest_writes(Msr.XFD, 0, 1))


def _handler(index: int, value: int) -> Interposer:
    """Let the guest's #NM handler have seen another value."""
    return in_tile_guest("demand", lambda guest: guest.set("values", value, index))


_DEMAND = ("xfd.nm-delivery", "xfd.err-survives-exit", "xfd.host-isolation")


lies(*_DEMAND, the_handler_reads_no_error=lambda: _handler(0, 0))

lies(
    "xfd.nm-delivery",
    the_handler_sees_cr0_ts_set=lambda: _handler(2, TS),
    the_fault_of_an_armed_tile_is_ud=lambda: _handler(3, UD),
    the_error_cannot_be_cleared=lambda: _handler(1, ARMED),
    the_retry_faults_again=lambda: _handler(15, 2),
    nm_arrives_behind_the_instruction=lambda: in_tile_guest(
        "demand", lambda guest: guest.set("rip", guest.get("rip") + 5)
    ),
    the_retried_tile_is_not_in_use=lambda: in_tile_guest("xinuse", lambda guest: guest.set("values", 0x20000)),
)

lies(
    "xfd.nm-each-instruction",
    "xfd.err-sticky-or",
    "xfd.migrates",
    tilezero_works_while_armed=lambda: in_tile_guest("tilezero_once", faults(0)),
)

lies(
    "xfd.nm-each-instruction",
    tdpbssd_faults_whether_armed_or_not=lambda: in_tile_guest("tdpbssd_once", faults(1, NM)),
    tileload_is_gp_while_armed=lambda: in_tile_guest("tileload_once", lambda guest: guest.set("vector", GP)),
)

lies(
    "xfd.err-survives-exit",
    "xfd.err-guest-write",
    an_exit_clears_the_error=lambda: after_run(lambda fd: set_msr_now(fd, Msr.XFD_ERR, 0)),
)

lies(
    "xfd.err-guest-write",
    the_host_reads_no_error_that_the_guest_wrote=lambda: host_reads(Msr.XFD_ERR, lambda value: 0),
)

lies(
    "xfd.err-ts-untouched",
    "xfd.ldtilecfg-not-nm",
    there_is_an_error_without_a_tile=lambda: _guest_reads(Msr.XFD_ERR, ARMED),
)

lies(
    "xfd.err-ts-untouched",
    the_error_is_lost_in_a_task_switched_fault=lambda: _guest_reads(Msr.XFD_ERR, 0),
    the_task_switched_fault_is_ud=lambda: in_tile_guest("sse_once", lambda guest: guest.set("vector", UD)),
    the_task_switched_fault_clears_cr0_ts=lambda: in_tile_guest(
        "sse_once", lambda guest: guest.set("cr0", guest.get("cr0") & ~TS)
    ),
)


lies(
    "xfd.err-with-ts",
    the_error_of_a_tile_with_cr0_ts_is_another=lambda: in_tile_guest(
        "rdmsr", lambda guest: guest.set("values", guest.get("values") ^ ARMED)
    ),
)


@mutation("xfd.err-sticky-or")
def disarming_clears_the_error() -> Interposer:
    def change(guest: Shared) -> None:
        set_msr_now(guest.vcpu, Msr.XFD_ERR, 0)

    return in_tile_guest("wrmsr", change, lambda guest: guest.get("params", 1) == 0)


lies(
    "xfd.ldtilecfg-not-nm",
    the_tile_configuration_is_subject_to_xfd=lambda: in_tile_guest("ldtilecfg_once", faults(1, NM)),
)

lies(
    "xfd.passthrough-coherent",
    toggling_costs_a_byte_of_a_tile=lambda: before_run(7, lose(3, 3, 3)),
    toggling_leaves_xfd_armed=lambda: in_tile_guest(
        "toggle_xfd", lambda guest: set_msr_now(guest.vcpu, Msr.XFD, ARMED)
    ),
)


@mutation("xfd.host-isolation")
def a_run_replaces_the_threads_own_tiles() -> Interposer:
    def change(call: Call) -> None:
        lib.vmm_host_tiles_load(FULL.data, bytes(8192))

    return after(RUN, change)


lies("xfd.host-isolation", the_threads_tiles_cost_the_guest_a_byte=lambda: before_run(3, lose(0, 15)))

lies(
    "xfd.err-not-leaked-to-host",
    the_guests_error_ends_with_the_exit=lambda: host_reads(Msr.XFD_ERR, lambda value: 0),
    the_hosts_first_tile_takes_the_guests_error=lambda: _guest_reads(Msr.XFD_ERR, 0),
)

lies(
    "xfd.migrates",
    ia32_xfd_is_not_saved=lambda: host_reads(Msr.XFD, lambda value: 0),
    ia32_xfd_does_not_come_over=lambda: before(SET, change_msr(Msr.XFD, lambda value: 0)),
    the_error_does_not_come_over=lambda: before(SET, change_msr(Msr.XFD_ERR, lambda value: 0)),
)
