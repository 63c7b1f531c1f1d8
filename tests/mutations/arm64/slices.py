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
from tests.mutations.lies import accept, before, once
from tests.mutations.registry import mutation
from vmm.arm64.registers import FFR, Register, ffr, p, z
from vmm.kvm.ioctl import Call, Interposer

_GROUP = 0x6000_0000_0015_0000


@mutation("sve.reg.zreg-roundtrip", "sve.reg.pffr-roundtrip", "sve.reg.get-full-slice-zero-pad")
def z31_loses_its_first_byte() -> Interposer:
    return reading(flip(0), z(31))


@mutation("sve.reg.zreg-roundtrip", "sve.reg.pffr-roundtrip")
def z16_and_z17_share_a_place() -> Interposer:
    def elsewhere(call: Call) -> None:
        call.argument.id = int(z(16))

    return before(SET, elsewhere, of(z(17)))


@mutation("sve.reg.zreg-roundtrip")
def vectors_end_at_128_bits() -> Interposer:
    return reading(lambda view: number(int.from_bytes(view[:16], "little"))(view), *(z(n) for n in range(32)))


@mutation("sve.reg.pffr-roundtrip")
def ffr_is_not_kept() -> Interposer:
    return forget(FFR)


@mutation("sve.reg.pffr-roundtrip")
def p0_is_the_ffr() -> Interposer:
    def elsewhere(call: Call) -> None:
        call.argument.id = int(FFR)

    return before(GET, elsewhere, of(p(0)))


@mutation("sve.reg.get-full-slice-zero-pad")
def a_slice_is_not_written_to_its_end() -> Interposer:
    return leave_out(255, z(9))


@mutation("sve.reg.get-full-slice-zero-pad")
def a_predicate_is_not_written_to_its_end() -> Interposer:
    return leave_out(31, p(9))


@mutation("sve.reg.get-full-slice-zero-pad")
def a_slice_is_written_beyond_its_end() -> Interposer:
    return behind(256, z(9))


@mutation("sve.reg.set-ignores-tail")
def the_tail_of_a_slice_is_kept() -> Interposer:
    return reading(flip(255), z(0))


@mutation("sve.reg.set-ignores-tail")
def the_tail_of_ffr_is_kept() -> Interposer:
    return reading(flip(31), FFR)


@mutation("sve.reg.surplus-slice-enoent")
def the_second_slice_of_z31_reads_0() -> Interposer:
    return accept(GET, of(z(31, 1)))


@mutation("sve.reg.surplus-slice-enoent")
def the_last_slice_of_ffr_can_be_written() -> Interposer:
    return accept(SET, of(ffr(31)))


@mutation("sve.reg.slice-precedence")
def a_slice_that_does_not_exist_can_be_read_before_finalize() -> Interposer:
    return accept(GET, of(z(5, 1)))


@mutation("sve.reg.slice-precedence")
def a_predicate_can_be_read_before_finalize() -> Interposer:
    return accept(GET, of(p(5)))


@mutation("sve.reg.nonsve-enoent")
def z31_can_be_read_without_sve() -> Interposer:
    return accept(GET, of(z(31)))


@mutation("sve.reg.nonsve-enoent")
def ffr_can_be_written_without_sve() -> Interposer:
    return accept(SET, of(FFR))


@mutation("sve.reg.bad-id-einval")
def z0_can_be_read_in_64_bits() -> Interposer:
    return accept(GET, of(Register(_GROUP | 3 << 52)))


@mutation("sve.reg.bad-id-einval")
def an_id_between_ffr_and_the_lengths_can_be_written() -> Interposer:
    return accept(SET, of(Register(_GROUP | 8 << 52 | 0x800)))


@mutation("sve.reg.efault")
def a_bad_address_can_be_read_to() -> Interposer:
    return accept(GET, at_bad_address)


@mutation("sve.reg.efault")
def a_bad_address_can_be_written_from() -> Interposer:
    return accept(SET, at_bad_address)


def _backwards(view: View) -> None:
    view[:] = bytes(view)[::-1]


@mutation("sve.reg.endianness")
def z0_is_big_endian() -> Interposer:
    return reading(_backwards, z(0))


@mutation("sve.reg.low128-is-v")
def an_advsimd_write_leaves_the_rest_of_z0() -> Interposer:
    return reading(flip(15), z(0))


@mutation("sve.reg.low128-is-v")
def an_advsimd_write_reaches_the_next_register() -> Interposer:
    return reading(flip(0), z(1))


@mutation("sve.reg.low128-is-v")
def the_guest_finds_another_z0() -> Interposer:
    return guest_left("store", lambda guest: guest.poke("observed", 3), payload="sve")


def _low_quadword(view: View) -> None:
    view[16:] = bytes(len(view) - 16)


@mutation("sve.zcr.order-free")
def zcr_el1_decides_how_much_is_read() -> Interposer:
    return once(SET, reading(_low_quadword, z(7)), when=of(ZCR))


@mutation("sve.zcr.order-free")
def zcr_el1_decides_how_much_is_written() -> Interposer:
    return once(SET, writing(_low_quadword, z(7)), when=of(ZCR))
