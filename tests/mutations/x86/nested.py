# SPDX-License-Identifier: Apache-2.0
"""Lies about tiles and XFD of a guest's guest."""

from __future__ import annotations

from tests.mutations.lies import RUN, after, after_entry, after_run, answer, at_the_end, before, once
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import place, set_msr_now, sets
from tests.mutations.x86.lies import CONFIGURATION, host_reads, lose, tile_byte
from vmm.conformance.x86.tiles import AREA_SIZE
from vmm.kvm.ioctl import Interposer
from vmm.x86.msr_names import Msr

ERR, ARMED = Msr.XFD_ERR, 1 << 18


def _value(index: int, value: int, entry: str = "launch") -> Interposer:
    """Let the guest have left another value."""
    return after_entry(entry, lambda guest: guest.set("values", value, index), payload="nested")


def _field(name: str, value: int) -> Interposer:
    return at_the_end("nested", lambda guest: guest.set(name, value))


def _area(number: int, offset: int) -> Interposer:
    return at_the_end("nested", lambda guest: guest.poke("areas", AREA_SIZE * number + offset))


lies(
    "nested.xfd-err-l2",
    one_of_l2s_exits_is_missing=lambda: before(RUN, lambda call: setattr(call.argument, "budget", 1)),
    an_exit_of_l2_loses_the_error=lambda: after_run(lambda fd: set_msr_now(fd, ERR, 0), ticks=1),
    the_host_does_not_see_l2s_error=lambda: host_reads(ERR, lambda value: 0),
    the_host_does_not_see_it_behind_l2=lambda: once(RUN, once(RUN, host_reads(ERR, lambda value: 0))),
    l2_reads_no_error=lambda: _value(0, 0),
    l2_takes_another_exception=lambda: _value(1, 6),
    l2_takes_it_elsewhere=lambda: _field("rip", 0x100000),
    l1_gets_another_exit=lambda: _value(4, 0),
    l1_reads_no_error=lambda: _value(6, 0),
    l1_reads_xfd_as_disarmed=lambda: _value(7, 0),
    an_instruction_of_vmx_fails=lambda: at_the_end("nested", lambda guest: guest.set("values", 1, 15)),
)

lies(
    "nested.xfd-err-l1-intercepts",
    l1_gets_no_exception=lambda: _value(4, 18),
    l1_gets_another_exception=lambda: _value(5, 0x80000306),
    l2s_handler_runs_first=lambda: _field("vector", 7),
    l1_reads_no_error_of_l2=lambda: _value(6, 0),
    the_host_reads_no_error_of_l2=lambda: host_reads(ERR, lambda value: 0),
    the_host_cannot_clear_it=lambda: answer("KVM_SET_MSRS", 0, sets(ERR, 0)),
    what_the_host_clears_stays=lambda: answer("KVM_SET_MSRS", 1, sets(ERR, 0)),
    l2_is_stopped_again=lambda: _value(4, 0, "again"),
    l2s_handler_ran_nevertheless=lambda: _value(1, 7, "again"),
    the_launch_fails=lambda: _value(15, 1),
    resuming_l2_fails=lambda: _value(15, 1, "again"),
)

lies(
    "nested.tiles-l1-l2",
    l2_leaves_otherwise=lambda: _value(4, 0),
    a_tick_of_l2_is_lost=lambda: after(RUN, lambda call: setattr(call.argument, "absorbed", 4)),
    entering_l2_costs_a_byte_of_a_tile=lambda: _area(1, tile_byte(3, 7, 1)),
    entering_l2_changes_the_configuration=lambda: _area(1, place(CONFIGURATION, 48)),
    leaving_l2_costs_a_byte_of_a_tile=lambda: _area(3, tile_byte(7, 15, 63)),
    leaving_l2_changes_the_configuration=lambda: _area(3, place(CONFIGURATION, 49)),
    an_exit_of_l2_costs_a_byte_of_a_tile=lambda: after_run(lose(4, 1), ticks=2),
    the_launch_fails=lambda: _value(15, 1),
)
