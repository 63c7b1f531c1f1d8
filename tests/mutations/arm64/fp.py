# SPDX-License-Identifier: Apache-2.0
"""Lies about FPSIMD registers."""

from __future__ import annotations

from tests.mutations.arm64.lies import (
    GET,
    SET,
    before_entry,
    change_now,
    flip,
    forget,
    guest_left,
    number,
    of,
    reading,
    values,
    writing,
)
from tests.mutations.lies import accept, after_run
from tests.mutations.registry import lies
from vmm.arm64.registers import FPCR, FPSR, v

lies(
    "fp.vregs-on-sve-einval",
    v3_can_be_read_with_sve=lambda: accept(GET, of(v(3))),
    v31_can_be_written_with_sve=lambda: accept(SET, of(v(31))),
)

lies(
    "fp.fpsr-fpcr-on-sve",
    "fp.vregs-nonsve-roundtrip",
    fpcr_is_not_kept=lambda: forget(FPCR),
    fpsr_loses_its_saturation_bit=lambda: reading(flip(3, 8), FPSR),
)

lies(
    "fp.fpsr-fpcr-on-sve",
    the_guest_has_another_fpsr=lambda: guest_left("execute", values(0, lambda old: old ^ 1), payload="sve"),
)

lies(
    "fp.vregs-nonsve-roundtrip",
    v31_loses_its_last_byte_in_reading=lambda: reading(flip(15), v(31)),
    v0_is_written_wrong=lambda: writing(flip(0), v(0)),
    the_guest_finds_another_v5=lambda: before_entry(
        "verify", lambda guest, fd: change_now(v(5))(fd), payload="fpsimd"
    ),
    an_exit_changes_v9=lambda: after_run(change_now(v(9), 1 << 100)),
)

lies("fp.fpcr-raw", fpcr_reads_0=lambda: reading(number(0), FPCR))
