# SPDX-License-Identifier: Apache-2.0
"""Lies about RESET: what survives that must not, what is not as it has to be."""

from __future__ import annotations

import errno

from tests.mutations.lies import after, answer, assign, before, once, refuse, toggle
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import bits_of, change_msr, flip, top_byte, xcr0_reads, xsave_lie
from tests.mutations.x86.lies import msr_readable
from vmm.kvm.ioctl import Call
from vmm.x86.msr_names import Msr

GET_SREGS, SET_XSAVE, SET_MSRS, SET_XCRS = "KVM_GET_SREGS", "KVM_SET_XSAVE", "KVM_SET_MSRS", "KVM_SET_XCRS"


lies(
    "reset.xcr0-xss-xfd",
    xcr0_is_0_after_reset=lambda: xcr0_reads(0),
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
    rbx_survives_the_reset=lambda: before("KVM_SET_REGS", assign("rbx", 0x5A5A)),
    a_register_cannot_be_changed=lambda: answer(SET_XCRS, 0),
)
