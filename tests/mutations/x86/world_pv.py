# SPDX-License-Identifier: Apache-2.0
"""Lies about what KVM writes for its guests, and about the features that they need for it."""

from __future__ import annotations

from typing import Any

from tests.mutations.lies import Proceed, Shared, after_entry, answer
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import of_msr, sets
from tests.mutations.x86.lies import GP, in_lists
from vmm.kvm.ioctl import Call, Interposer
from vmm.state.x86.world.msr_row import KVM_PAGES
from vmm.x86.msr_names import Msr

SET = "KVM_SET_MSRS"
_WALL, _CLOCK, _STEAL = (KVM_PAGES + 0x1000 * page for page in range(3))


def _spoiled(address: int, offset: int, value: int = 1) -> Interposer:
    """After a run a number of 32 bits in the guest's memory is another."""

    def change(shared: Shared) -> None:
        shared.at(address + offset)[0] = value

    return after_entry("rdmsr_list", change, payload="lists")


def _all_taken() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        return int(call.argument.nmsrs) if call.name == SET and result >= 0 else result

    return interposer


def _faults(_operand: int, found: Any) -> None:
    found[2], found[3] = 1, GP


def _succeeds(_operand: int, found: Any) -> None:
    found[2] = 0


lies(
    "world.kvm-pages",
    the_wall_clock_is_not_written=lambda: answer(SET, 1, of_msr(Msr.KVM_WALL_CLOCK_NEW)),
    the_clock_is_not_written=lambda: answer(SET, 1, of_msr(Msr.KVM_SYSTEM_TIME_NEW)),
    stolen_time_is_not_written=lambda: answer(SET, 1, of_msr(Msr.KVM_STEAL_TIME)),
    the_wall_clocks_version_is_odd=lambda: _spoiled(_WALL, 0),
    the_wall_clock_is_of_1970=lambda: _spoiled(_WALL, 4),
    the_clocks_version_is_odd=lambda: _spoiled(_CLOCK, 0),
    the_stolen_times_version_is_odd=lambda: _spoiled(_STEAL, 8),
    a_clock_is_not_disabled=lambda: answer(SET, 1, sets(Msr.KVM_SYSTEM_TIME_NEW, _CLOCK)),
    stolen_time_is_not_disabled=lambda: answer(SET, 1, sets(Msr.KVM_STEAL_TIME, _STEAL)),
)
lies(
    "world.kvm-features",
    the_host_may_write_what_is_not_offered=lambda: _all_taken(),
    the_guest_reads_what_is_not_offered=lambda: in_lists("rdmsr_list", _succeeds),
    the_guest_may_read_nothing=lambda: in_lists("rdmsr_list", _faults),
    the_guest_may_write_nothing=lambda: in_lists("wrmsr_list", _faults, 16),
    nothing_is_enforced=lambda: answer("KVM_ENABLE_CAP", 0),
)


lies(
    "world.hyperv-pages",
    there_is_no_hypercall_page=lambda: answer(SET, 1, of_msr(0x4000_0001)),
    there_is_no_assist_page=lambda: answer(SET, 1, of_msr(0x4000_0073)),
    the_identity_stays=lambda: answer(SET, 1, sets(0x4000_0000, 0)),
)
