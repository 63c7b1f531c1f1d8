# SPDX-License-Identifier: Apache-2.0
"""Lies about RESET and INIT: what survives that must not, what is lost that must stay."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import after, answer, before, once, refuse, toggle
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import ST7, XMM3, bits_of, change_msr, flip, top_byte, xsave_lie
from tests.mutations.x86.lies import after_init, msr_readable
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

INIT = "KVM_SIGNAL_MSI"
GET_MSRS, SET_MSRS, GET_XCRS, SET_XCRS = "KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_GET_XCRS", "KVM_SET_XCRS"
GET_SREGS, GET_REGS, SET_REGS, SET_XSAVE = "KVM_GET_SREGS", "KVM_GET_REGS", "KVM_SET_REGS", "KVM_SET_XSAVE"


def _xcr0(value: int) -> Interposer:
    def change(call: Call) -> None:
        call.argument.xcrs[0].value = value

    return after(GET_XCRS, change)


lies(
    "reset.xcr0-xss-xfd",
    xcr0_is_0_after_reset=lambda: _xcr0(0),
    ia32_xss_has_cet_after_reset=lambda: msr_readable(Msr.XSS, 0x800),
    ia32_xfd_err_is_not_0_after_reset=lambda: msr_readable(Msr.XFD_ERR, 1 << 18),
    ia32_pat_is_all_write_back_after_reset=lambda: msr_readable(Msr.PAT, 0x0606060606060606),
    caches_are_enabled_after_reset=lambda: after(GET_SREGS, toggle("cr0", 0x60000000)),
    cr4_has_osxsave_after_reset=lambda: after(GET_SREGS, toggle("cr4", 1 << 18)),
    efer_has_sce_after_reset=lambda: after(GET_SREGS, toggle("efer", 1)),
)


def _fresh(call: Call) -> bool:
    """Met by an area that names no component."""
    return bits_of(call) == 0


lies(
    "reset.by-writing-back",
    an_area_without_components_changes_nothing=lambda: answer(SET_XSAVE, 0, _fresh),
    an_area_without_components_is_refused=lambda: refuse(SET_XSAVE, errno.EINVAL, _fresh),
    a_byte_survives_the_reset=lambda: once(SET_XSAVE, xsave_lie(flip(top_byte())), when=_fresh),
    xcr0_survives_the_reset=lambda: answer(SET_XCRS, 0, lambda call: bool(call.argument.xcrs[0].value == 1)),
    ia32_pat_survives_the_reset=lambda: before(SET_MSRS, change_msr(Msr.PAT, lambda value: 0x0006060606060606)),
)


@mutation("reset.by-writing-back")
def rbx_survives_the_reset() -> Interposer:
    def change(call: Call) -> None:
        call.argument.rbx = 0x5A5A

    return before(SET_REGS, change)


lies("reset.by-writing-back", a_register_cannot_be_changed=lambda: answer(SET_XCRS, 0))


def _registers(change: Callable[[Call], None]) -> Interposer:
    return after_init(after(GET_REGS, change))


lies(
    "init.preserves",
    init_resets_xcr0=lambda: after_init(_xcr0(1)),
    init_resets_ia32_pat=lambda: after_init(msr_readable(Msr.PAT, 0x0007040600070406)),
    init_clears_a_byte_of_xmm3=lambda: after_init(xsave_lie(flip(XMM3))),
    init_clears_a_byte_of_the_highest_component=lambda: after_init(xsave_lie(flip(top_byte()))),
)


@mutation("init.preserves")
def init_leaves_rip() -> Interposer:
    def change(call: Call) -> None:
        call.argument.rip = 0x1234

    return _registers(change)


@mutation("init.preserves")
def init_leaves_rbx() -> Interposer:
    def change(call: Call) -> None:
        call.argument.rbx = 0x5678

    return _registers(change)


lies(
    "init.preserves",
    init_is_not_received=lambda: answer(INIT, 1),
    the_vcpu_goes_on_running_after_init=lambda: after_init(after("KVM_GET_MP_STATE", toggle("mp_state", 2))),
)


def _control(register: str, value: int) -> Interposer:
    return after_init(after(GET_SREGS, lambda call: setattr(call.argument, register, value)))


lies(
    "init.preserves",
    init_leaves_cr0=lambda: _control("cr0", 0x33),
    init_sets_cr0_cd_and_nw=lambda: _control("cr0", 0x60000010),
    init_leaves_cr4=lambda: _control("cr4", 0x220),
    init_leaves_efer=lambda: _control("efer", 0x100),
    init_clears_a_byte_of_st7=lambda: after_init(xsave_lie(flip(ST7))),
)
