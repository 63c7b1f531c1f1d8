# SPDX-License-Identifier: Apache-2.0
"""Lies about the VMM's own vector registers and vector length."""

from __future__ import annotations

import os
import signal

from tests.mutations.arm64.lies import guest_left, values
from tests.mutations.lies import RUN, after, succeed_with
from tests.mutations.registry import lies, mutation
from vmm._kvm import ffi, lib
from vmm.arm64.vector import AREA_SIZE
from vmm.kvm.ioctl import PR_SVE_SET_VL, Call, Interposer

_P, _FFR, _FPSR, _FPCR = 8192, 8704, 8736, 8744
_SHORTEST = 16


def _own(offset: int, new: bytes | None = None) -> Interposer:
    """After a run with the VMM's own registers some bytes of them are others: flipped, or ``new``."""

    def change(call: Call) -> None:
        if call.argument.vectors == ffi.NULL:
            return
        view = memoryview(ffi.buffer(call.argument.vectors.observed, AREA_SIZE)).cast("B")
        if new is None:
            view[offset] ^= 1
        else:
            view[offset : offset + len(new)] = new

    return after(RUN, change)


lies(
    "host.v-regs-preserved",
    "host.sve-after-run-signal",
    "host.sve-after-run-kernel-neon",
    a_run_changes_the_vmms_v31=lambda: _own(31 * 256 + 15),
    a_run_changes_the_vmms_fpsr=lambda: _own(_FPSR),
    a_run_changes_the_vmms_rounding=lambda: _own(_FPCR + 2, b"\xff"),
)

lies(
    "host.no-guest-leak",
    the_guests_z3_shows_above_128_bits=lambda: _own(3 * 256 + 16, bytes(range(16))),
    the_guests_p15_shows=lambda: _own(_P + 15 * 32, b"\x5a\xa5"),
    the_guests_ffr_shows=lambda: _own(_FFR, b"\x08"),
)

lies(
    "host.sve-after-run-signal",
    "host.sve-after-run-kernel-neon",
    a_signal_after_a_run_clears_the_predicates=lambda: _own(_P, bytes(_FPSR - _P)),
    a_signal_after_a_run_clears_z_above_128_bits=lambda: _own(16, bytes(240)),
)


@mutation("host.sve-after-run-kernel-neon", "host.v-regs-preserved")
def the_guest_does_not_run() -> Interposer:
    def interrupted(call: Call) -> None:
        if call.argument.vectors != ffi.NULL:
            call.argument.run.exit_reason = lib.KVM_EXIT_INTR

    return after(RUN, interrupted)


def _shorten(call: Call) -> None:
    lib.vmm_prctl(PR_SVE_SET_VL, _SHORTEST)


lies(
    "host.vl-unchanged",
    "host.no-sigkill-kernel-neon",
    a_run_leaves_the_vmm_with_short_vectors=lambda: after(RUN, _shorten),
)

lies(
    "host.vl-unchanged",
    the_kernel_says_another_length_than_the_cpu=lambda: succeed_with(
        "PR_SVE_GET_VL", lambda call, result: result ^ 0x30
    ),
    the_guests_length_is_the_vmms=lambda: guest_left(
        "lengths", values(15, lambda old: _SHORTEST // 2), payload="sve"
    ),
)


@mutation("host.no-sigkill-kernel-neon")
def a_run_kills_the_vmm() -> Interposer:
    clause = os.getpid()

    def kill(call: Call) -> None:
        if os.getpid() != clause:  # the VMM is a child of the clause
            os.kill(os.getpid(), signal.SIGKILL)

    return after(RUN, kill)


lies(
    "host.no-sigkill-kernel-neon",
    the_guest_loses_z9_beside_a_user_of_advsimd=lambda: guest_left(
        "store", lambda guest: guest.poke("observed", 9 * 256 + 3), payload="sve"
    ),
)
