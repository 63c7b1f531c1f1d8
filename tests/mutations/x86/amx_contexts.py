# SPDX-License-Identifier: Apache-2.0
"""Lies about tiles of more than one owner: lost by a switch, a move or a signal, or shown in a signal's frame."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tests.mutations.lies import RUN, Shared, at_the_end, before, once, refuse
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import change_msr, flip, place
from tests.mutations.x86.lies import before_run, lose, tile_byte
from vmm.conformance.clauses.x86 import amx_contexts
from vmm.conformance.x86.tiles import AREA_SIZE
from vmm.kvm.ioctl import Interposer
from vmm.x86.msr_names import Msr

TASKS, SIGNALS = "amx.two-contexts", "amx.signal-interrupt"


def _at_the_end(change: Callable[[Shared], object]) -> Interposer:
    return at_the_end("amx_os", change)


lies(
    TASKS,
    a_move_costs_a_byte_of_the_task_that_runs=lambda: once(RUN, before("KVM_SET_XSAVE", flip(tile_byte(3, 2, 1)))),
    a_move_disarms_xfd=lambda: once(RUN, before("KVM_SET_MSRS", change_msr(Msr.XFD, lambda value: 0))),
    a_move_is_refused=lambda: once(RUN, refuse("KVM_SET_XSAVE", errno.EINVAL)),
    a_tick_costs_a_byte_of_the_task_that_runs=lambda: before_run(3, lose(6, 9)),
    there_was_one_nm_less=lambda: _at_the_end(lambda guest: guest.set("values", 11, 0)),
    one_nm_came_without_an_error=lambda: _at_the_end(lambda guest: guest.set("values", 11, 1)),
    there_was_another_exception=lambda: _at_the_end(lambda guest: guest.set("values", 1, 2)),
    the_first_task_has_a_byte_of_another=lambda: _at_the_end(lambda guest: guest.poke("areas", tile_byte(7, 1))),
    the_second_task_has_another_configuration=lambda: _at_the_end(
        lambda guest: guest.poke("areas", AREA_SIZE + place(17) + 48)
    ),
    a_turn_is_lost=lambda: _at_the_end(lambda guest: guest.poke("areas", tile_byte(0))),
)

lies(SIGNALS, a_signal_costs_one_byte_of_a_tile=lambda: before_run(3, lose(2, 9)))


def _grown(field: str, value: int) -> Interposer:
    """Frames are no answer of an ioctl: what is measured of those that come later is changed."""
    honest = amx_contexts._shape
    seen: list[Any] = []

    def shape(frames: Any) -> tuple[int, int, int]:
        if seen:
            setattr(frames, field, getattr(frames, field) | value)
        seen.append(frames)
        return honest(frames)

    amx_contexts._shape = shape
    return lambda call, proceed: proceed()


lies(
    SIGNALS,
    the_frames_of_a_vcpus_thread_are_larger=lambda: _grown("size", 1 << 14),
    the_state_in_a_frame_is_larger=lambda: _grown("extended", 1 << 13),
    a_frame_has_room_for_tiles=lambda: _grown("features", 1 << 18),
)


@mutation(SIGNALS)
def all_frames_have_tiles() -> Interposer:
    honest = amx_contexts._shape

    def shape(frames: Any) -> tuple[int, int, int]:
        frames.features |= 1 << 18
        return honest(frames)

    amx_contexts._shape = shape
    return lambda call, proceed: proceed()
