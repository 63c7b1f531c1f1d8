# SPDX-License-Identifier: Apache-2.0
"""Lies about KVM_GET_FPU and KVM_SET_FPU."""

from __future__ import annotations

import errno

from tests.mutations.lies import Change, Shared, after, after_entry, after_run, answer, before, refuse, toggle
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import FCW, FSW, FTW, MXCSR, XMM3, flip, flip_now, place, xsave_lie
from tests.mutations.x86.lies import before_run
from vmm._kvm import ffi
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.xfeature import XFeature

GET, SET, SET_AREA = "KVM_GET_FPU", "KVM_SET_FPU", "KVM_SET_XSAVE"
FOP, FIP, FDP, ST0, XMM15 = 6, 8, 16, 32, 160 + 16 * 15


def _row(array: str, number: int) -> Change:
    """Change a byte of one of the registers of a kvm_fpu."""

    def change(call: Call) -> None:
        getattr(call.argument, array)[number][3] ^= 1

    return change


def _written(size: int) -> Change:
    """Have the call that was given 832 bytes write so many of them."""

    def change(call: Call) -> None:
        view = memoryview(ffi.buffer(call.argument)).cast("B")
        view[size:416] = bytes([0xAA]) * (416 - size)
        view[416:size] = bytes(max(0, size - 416))

    return change


def _padding(offset: int) -> Change:
    def change(call: Call) -> None:
        memoryview(ffi.buffer(call.argument)).cast("B")[offset] ^= 1

    return change


lies(
    "fpu.set-on-fresh",
    "fpu.set-after-run",
    "fpu.set-shows-in-xsave",
    "fpu.set-keeps-rest",
    "fpu.ftw-abridged",
    kvm_set_fpu_is_refused=lambda: refuse(SET, errno.EINVAL),
    kvm_set_fpu_does_nothing=lambda: answer(SET, 0),
)

lies(
    "fpu.set-on-fresh",
    "fpu.set-after-run",
    "fpu.set-shows-in-xsave",
    kvm_set_fpu_loses_a_byte_of_st7=lambda: before(SET, _row("fpr", 7)),
    kvm_set_fpu_loses_a_byte_of_xmm0=lambda: before(SET, _row("xmm", 0)),
    kvm_set_fpu_loses_a_bit_of_fcw=lambda: before(SET, toggle("fcw", 0x400)),
    kvm_set_fpu_loses_the_top_of_the_stack=lambda: before(SET, toggle("fsw", 0x800)),
    kvm_set_fpu_loses_a_tag=lambda: before(SET, toggle("ftwx", 1)),
)

lies(
    "fpu.pointers-kept",
    "fpu.set-shows-in-xsave",
    "fpu.set-on-fresh",
    kvm_set_fpu_loses_fop=lambda: before(SET, toggle("last_opcode", 0x10)),
    kvm_set_fpu_loses_the_upper_half_of_fip=lambda: before(SET, toggle("last_ip", 1 << 40)),
    kvm_set_fpu_loses_the_upper_half_of_fdp=lambda: before(SET, toggle("last_dp", 1 << 40)),
)

lies(
    "fpu.get-agrees-with-xsave",
    "fpu.set-shows-in-xsave",
    "fpu.pointers-kept",
    kvm_get_fpu_shows_another_fcw=lambda: after(GET, toggle("fcw", 1)),
    kvm_get_fpu_shows_another_fsw=lambda: after(GET, toggle("fsw", 0x100)),
    kvm_get_fpu_shows_another_ftw=lambda: after(GET, toggle("ftwx", 0x80)),
    kvm_get_fpu_shows_another_fop=lambda: after(GET, toggle("last_opcode", 1)),
    kvm_get_fpu_shows_another_fip=lambda: after(GET, toggle("last_ip", 1 << 32)),
    kvm_get_fpu_shows_another_fdp=lambda: after(GET, toggle("last_dp", 1)),
    kvm_get_fpu_shows_another_st0=lambda: after(GET, _row("fpr", 0)),
    kvm_get_fpu_shows_another_xmm15=lambda: after(GET, _row("xmm", 15)),
)

lies(
    "fpu.get-agrees-with-xsave",
    "fpu.set-shows-in-xsave",
    the_area_has_another_fcw=lambda: xsave_lie(flip(FCW)),
    the_area_has_another_fsw=lambda: xsave_lie(flip(FSW + 1)),
    the_area_has_another_ftw=lambda: xsave_lie(flip(FTW)),
    the_area_has_another_fop=lambda: xsave_lie(flip(FOP)),
    the_area_has_another_fip=lambda: xsave_lie(flip(FIP + 4)),
    the_area_has_another_fdp=lambda: xsave_lie(flip(FDP)),
    the_area_has_another_st0=lambda: xsave_lie(flip(ST0 + 9)),
    the_area_has_another_xmm15=lambda: xsave_lie(flip(XMM15 + 15)),
)

lies("fpu.get-agrees-with-xsave", the_area_has_another_mxcsr=lambda: xsave_lie(flip(MXCSR, 0x20)))
lies("fpu.set-shows-in-xsave", kvm_set_xsave_does_not_reach_kvm_get_fpu=lambda: answer(SET_AREA, 0))

lies(
    "fpu.set-keeps-rest",
    kvm_set_fpu_changes_mxcsr=lambda: after(SET, lambda call: flip_now(MXCSR, 0x20)(call.fd)),
    kvm_set_fpu_changes_ymm5=lambda: after(SET, lambda call: flip_now(place(XFeature.YMM, 16 * 5))(call.fd)),
    kvm_set_fpu_takes_another_xmm3=lambda: after(SET, lambda call: flip_now(XMM3)(call.fd)),
    the_guest_runs_with_another_xmm3=lambda: before_run(2, flip_now(XMM3)),
    the_guest_runs_with_another_ymm3=lambda: before_run(2, flip_now(place(XFeature.YMM, 16 * 3))),
)

lies(
    "fpu.ftw-abridged",
    ftwx_is_the_full_tag_word=lambda: after(GET, toggle("ftwx", 0x02)),
    ftwx_is_always_read_as_full=lambda: after(GET, lambda call: setattr(call.argument, "ftwx", 0xFF)),
    ftwx_is_always_set_as_full=lambda: before(SET, lambda call: setattr(call.argument, "ftwx", 0xFF)),
)

lies(
    "fpu.padding",
    padding_that_is_not_0_is_refused=lambda: refuse(SET, errno.EINVAL, lambda call: bool(call.argument.pad2)),
    kvm_get_fpu_leaves_its_last_bytes_out=lambda: after(GET, _written(412)),
    kvm_get_fpu_writes_beyond_the_structure=lambda: after(GET, _written(424)),
    pad1_is_not_0=lambda: after(GET, _padding(133)),
    pad2_is_not_0=lambda: after(GET, _padding(412)),
    padding_reaches_the_tags=lambda: before(SET, toggle("ftwx", 1), lambda call: bool(call.argument.pad1)),
)

lies(
    "fpu.mxcsr",
    kvm_get_fpu_shows_the_guests_mxcsr=lambda: after(GET, lambda call: setattr(call.argument, "mxcsr", 0x1FA0)),
    kvm_set_fpu_takes_mxcsr=lambda: after(SET, lambda call: flip_now(MXCSR, 0x20)(call.fd)),
)

lies(
    "fpu.pointers-kept",
    an_exit_costs_fop=lambda: after_run(flip_now(FOP)),
    an_exit_costs_fip=lambda: after_run(flip_now(FIP)),
    an_exit_costs_fdp=lambda: after_run(flip_now(FDP)),
    an_exit_costs_a_bit_of_fsw=lambda: after_run(flip_now(FSW + 1)),
    fip_is_missing_from_the_area=lambda: xsave_lie(flip(FIP + 1, 0x9A)),
    the_copy_gets_no_fdp=lambda: before(SET_AREA, flip(FDP + 3)),
    the_copy_is_refused=lambda: refuse(SET_AREA, errno.EINVAL),
    the_guest_of_the_copy_finds_another_fop=lambda: before_run(2, flip_now(FOP)),
)

lies(
    "fpu.set-on-fresh",
    kvm_get_fpu_forgets_what_was_set=lambda: after(GET, _row("xmm", 4)),
    kvm_get_fpu_shows_fdp_as_fip=lambda: after(
        GET, lambda call: setattr(call.argument, "last_ip", call.argument.last_dp)
    ),
    kvm_set_fpu_with_pointers_is_refused=lambda: refuse(SET, errno.EINVAL, lambda call: bool(call.argument.last_ip)),
)


@mutation("fpu.set-on-fresh")
def the_guest_finds_another_byte() -> Interposer:
    def change(guest: Shared) -> None:
        guest.set("differences", 1)
        guest.set("difference", 0)

    return after_entry("verify", change, payload="fxsave")
