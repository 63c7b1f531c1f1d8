# SPDX-License-Identifier: Apache-2.0
"""Lies about the VMM's own ZA, and about registers that its tracer writes."""

from __future__ import annotations

import os
import signal

from tests.mutations.lies import RUN, after
from tests.mutations.registry import lies, mutation
from vmm._kvm import ffi, lib
from vmm.arm64.own import za_size
from vmm.arm64.vector import AREA_SIZE
from vmm.kvm.ioctl import Call, Interposer

_P, _FPSR, _FPCR = 8192, 8736, 8744


def _own(offset: int, size: int = AREA_SIZE, new: bytes | None = None) -> Interposer:
    """After a run with the VMM's own state some bytes of it are others: flipped, or ``new``."""

    def change(call: Call) -> None:
        if call.argument.vectors == ffi.NULL:
            return
        view = memoryview(ffi.buffer(call.argument.vectors.observed, size)).cast("B")
        if new is None:
            view[offset] ^= 1
        else:
            view[offset : offset + len(new)] = new

    return after(RUN, change)


def _elsewhere(call: Call) -> None:
    if call.argument.vectors != ffi.NULL:
        call.argument.run.exit_reason = lib.KVM_EXIT_INTR


lies(
    "host.za-preserved",
    a_run_changes_the_first_byte_of_za=lambda: _own(0, za_size()),
    a_run_changes_the_last_byte=lambda: _own(za_size() - 1, za_size()),
    a_run_switches_za_off=lambda: _own(0, za_size(), bytes(za_size())),
)

lies(
    "host.za-preserved",
    "host.traced-before-run",
    "host.traced-after-run",
    the_guest_does_not_run=lambda: after(RUN, _elsewhere),
)

lies(
    "host.traced-before-run",
    "host.traced-after-run",
    v31_is_not_what_the_tracer_wrote=lambda: _own(31 * 256 + 15),
    fpsr_is_not_what_the_tracer_wrote=lambda: _own(_FPSR),
    fpcr_is_not_what_the_tracer_wrote=lambda: _own(_FPCR + 2, new=b"\xff"),
)

lies(
    "host.traced-before-run",
    the_guests_z3_shows_above_128_bits=lambda: _own(3 * 256 + 16, new=bytes(range(1, 17))),
    the_guests_p15_shows=lambda: _own(_P + 15 * 32, new=b"\x5a\xa5"),
)

lies(
    "host.traced-after-run",
    predicates_that_the_tracer_wrote_are_0=lambda: _own(_P, new=bytes(_FPSR - _P)),
    what_the_tracer_wrote_above_128_bits_is_0=lambda: _own(16, new=bytes(240)),
)


@mutation("host.traced-before-run", "host.traced-after-run")
def a_vmm_that_is_traced_dies() -> Interposer:
    clause = os.getpid()

    def kill(call: Call) -> None:
        if os.getpid() != clause:
            os.kill(os.getpid(), signal.SIGKILL)

    return after(RUN, kill)
