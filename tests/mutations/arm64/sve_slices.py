# SPDX-License-Identifier: Apache-2.0
"""Lies about Z, P, FFR and ZCR_EL1 by KVM_GET_ONE_REG and KVM_SET_ONE_REG."""

from __future__ import annotations

from tests.mutations.arm64.lies import (
    GET,
    SET,
    ZCR,
    View,
    at_bad_address,
    behind,
    flip,
    forget,
    guest_left,
    leave_out,
    number,
    of,
    reading,
    writing,
)
from tests.mutations.lies import accept, assign, before, once
from tests.mutations.registry import lies
from vmm.arm64.registers import FFR, Register, ffr, p, z

_GROUP = 0x6000_0000_0015_0000


lies(
    "sve.reg.zreg-roundtrip",
    "sve.reg.pffr-roundtrip",
    "sve.reg.get-full-slice-zero-pad",
    z31_loses_its_first_byte=lambda: reading(flip(0), z(31)),
)

lies(
    "sve.reg.zreg-roundtrip",
    "sve.reg.pffr-roundtrip",
    z16_and_z17_share_a_place=lambda: before(SET, assign("id", int(z(16))), of(z(17))),
)

lies(
    "sve.reg.zreg-roundtrip",
    vectors_end_at_128_bits=lambda: reading(
        lambda view: number(int.from_bytes(view[:16], "little"))(view), *(z(n) for n in range(32))
    ),
)

lies(
    "sve.reg.pffr-roundtrip",
    ffr_is_not_kept=lambda: forget(FFR),
    p0_is_the_ffr=lambda: before(GET, assign("id", int(FFR)), of(p(0))),
)

lies(
    "sve.reg.get-full-slice-zero-pad",
    a_slice_is_not_written_to_its_end=lambda: leave_out(255, z(9)),
    a_predicate_is_not_written_to_its_end=lambda: leave_out(31, p(9)),
    a_slice_is_written_beyond_its_end=lambda: behind(256, z(9)),
)

lies(
    "sve.reg.set-ignores-tail",
    the_tail_of_a_slice_is_kept=lambda: reading(flip(255), z(0)),
    the_tail_of_ffr_is_kept=lambda: reading(flip(31), FFR),
)

lies(
    "sve.reg.surplus-slice-enoent",
    the_second_slice_of_z31_reads_0=lambda: accept(GET, of(z(31, 1))),
    the_last_slice_of_ffr_can_be_written=lambda: accept(SET, of(ffr(31))),
)

lies(
    "sve.reg.slice-precedence",
    a_slice_that_does_not_exist_can_be_read_before_finalize=lambda: accept(GET, of(z(5, 1))),
    a_predicate_can_be_read_before_finalize=lambda: accept(GET, of(p(5))),
)

lies(
    "sve.reg.nonsve-enoent",
    z31_can_be_read_without_sve=lambda: accept(GET, of(z(31))),
    ffr_can_be_written_without_sve=lambda: accept(SET, of(FFR)),
)

lies(
    "sve.reg.bad-id-einval",
    z0_can_be_read_in_64_bits=lambda: accept(GET, of(Register(_GROUP | 3 << 52))),
    an_id_between_ffr_and_the_lengths_can_be_written=lambda: accept(SET, of(Register(_GROUP | 8 << 52 | 0x800))),
)

lies(
    "sve.reg.efault",
    a_bad_address_can_be_read_to=lambda: accept(GET, at_bad_address),
    a_bad_address_can_be_written_from=lambda: accept(SET, at_bad_address),
)


def _backwards(view: View) -> None:
    view[:] = bytes(view)[::-1]


lies("sve.reg.endianness", z0_is_big_endian=lambda: reading(_backwards, z(0)))

lies(
    "sve.reg.low128-is-v",
    an_advsimd_write_leaves_the_rest_of_z0=lambda: reading(flip(15), z(0)),
    an_advsimd_write_reaches_the_next_register=lambda: reading(flip(0), z(1)),
    the_guest_finds_another_z0=lambda: guest_left("store", lambda guest: guest.poke("observed", 3), payload="sve"),
)


def _low_quadword(view: View) -> None:
    view[16:] = bytes(len(view) - 16)


lies(
    "sve.zcr.order-free",
    zcr_el1_decides_how_much_is_read=lambda: once(SET, reading(_low_quadword, z(7)), when=of(ZCR)),
    zcr_el1_decides_how_much_is_written=lambda: once(SET, writing(_low_quadword, z(7)), when=of(ZCR)),
)
