# SPDX-License-Identifier: Apache-2.0
"""Lies about vector guests that are switched: between turns, threads and CPUs, and beside neighbours."""

from __future__ import annotations

import errno

from tests.mutations.lies import RUN, Proceed, called, refuse
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import FCW, FTW, MXCSR, ST7, XMM3, flip, flip_now, spoil, top_byte, xsave_lie
from tests.mutations.x86.lies import before_run
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer

_SWITCHED = (
    "xsave.two-vms-same-cpu",
    "xsave.two-vcpus-same-vm",
    "xsave.other-thread",
    "xsave.cross-cpu",
    "xsave.signal-interrupt",
    "xsave.beside-competitor",
    "xsave.beside-kernel-fpu",
)

lies(
    *_SWITCHED,
    the_area_has_another_st7=lambda: xsave_lie(flip(ST7)),
    the_area_has_another_fcw=lambda: xsave_lie(flip(FCW)),
    the_area_has_another_ftw=lambda: xsave_lie(flip(FTW)),
    the_area_has_another_mxcsr=lambda: xsave_lie(flip(MXCSR, 0x20)),
    the_area_has_another_xmm3=lambda: xsave_lie(flip(XMM3)),
    the_area_has_another_byte_of_the_highest_component=lambda: xsave_lie(flip(top_byte())),
    the_area_names_no_component=lambda: xsave_lie(flip(512, 0xE7)),
)


def _lost(number: int, offset: int) -> Interposer:
    return before_run(number, flip_now(offset))


lies(
    *_SWITCHED[:4],
    a_vcpu_goes_on_with_another_xmm3=lambda: _lost(9, XMM3),
    a_vcpu_goes_on_with_another_st7=lambda: _lost(9, ST7 + 1),
    a_vcpu_goes_on_with_another_mxcsr=lambda: _lost(9, MXCSR),
)

lies(
    *_SWITCHED[4:],
    the_guest_goes_on_with_another_xmm3=lambda: _lost(3, XMM3),
    the_guest_goes_on_with_another_st7=lambda: _lost(3, ST7 + 1),
    the_guest_goes_on_with_another_mxcsr=lambda: _lost(3, MXCSR),
)


@mutation("xsave.two-vms-same-cpu", "xsave.two-vcpus-same-vm")
def a_vcpu_runs_with_the_registers_of_the_one_before() -> Interposer:
    turns, kept = iter(range(1, 1 << 30)), bytearray()

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) == RUN:
            turn = next(turns)
            if turn == 7:
                spoil(call.fd, lambda view: kept.extend(view[:4096]))
            elif turn == 8:
                spoil(call.fd, lambda view: view.__setitem__(slice(0, 4096), bytes(kept)))
        return proceed()

    return interposer


@mutation(*_SWITCHED)
def a_run_that_is_not_the_first_is_refused() -> Interposer:
    turns = iter(range(1, 1 << 30))
    return refuse(RUN, errno.EINVAL, lambda call: next(turns) == 4)


@mutation("xsave.beside-competitor", "xsave.beside-kernel-fpu")
def a_guest_without_end_leaves() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        return 0 if result == lib.VMM_RUN_DEADLINE and called(call) == RUN else result

    return interposer
