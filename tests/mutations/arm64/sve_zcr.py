# SPDX-License-Identifier: Apache-2.0
"""Lies about ZCR_EL1."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import INIT, SET, ZCR, flip, guest_left, number, of, reading, set_now, values
from tests.mutations.lies import RUN, after, nth, once, refuse
from tests.mutations.registry import lies
from vmm.kvm.ioctl import Interposer

lies(
    "sve.zcr.reset-zero",
    "init.reinit-zeroes-sve",
    init_leaves_zcr_el1=lambda: after(INIT, lambda call: set_now(call.fd, ZCR, 3), nth(2)),
)

lies("sve.zcr.reset-zero", a_fresh_zcr_el1_is_the_longest=lambda: reading(number(15), ZCR))


def _guest_reads(index: int, change: int) -> Interposer:
    return guest_left("rdvl", values(index, lambda old: old ^ change), payload="sve")


lies(
    "sve.zcr.guest-user-agree",
    the_guest_reads_another_zcr_el1=lambda: _guest_reads(1, 1),
    the_guest_has_another_length_than_zcr_el1_says=lambda: _guest_reads(0, 0x30),
    zcr_el1_cannot_be_written_after_a_run=lambda: once(RUN, refuse(SET, errno.EPERM, of(ZCR))),
    the_guests_zcr_el1_is_not_read_back=lambda: reading(flip(0, 4), ZCR),
)

lies("sve.zcr.verbatim", reserved_bits_of_zcr_el1_read_0=lambda: reading(number(0xF), ZCR))
