# SPDX-License-Identifier: Apache-2.0
"""Lies about INIT: what is lost that must stay, what stays that must not."""

from __future__ import annotations

from tests.mutations.lies import Change, after, answer, assign, toggle
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import ST7, XMM3, flip, top_byte, xcr0_reads, xsave_lie
from tests.mutations.x86.lies import after_init, msr_readable
from vmm.kvm.ioctl import Interposer
from vmm.x86.msr_names import Msr

GET_REGS, GET_SREGS = "KVM_GET_REGS", "KVM_GET_SREGS"


def _then(call: str, change: Change) -> Interposer:
    """After INIT ``change`` spoils what the host reads."""
    return after_init(after(call, change))


lies(
    "init.preserves",
    init_is_not_received=lambda: answer("KVM_SIGNAL_MSI", 1),
    the_vcpu_goes_on_running_after_init=lambda: _then("KVM_GET_MP_STATE", toggle("mp_state", 2)),
    init_leaves_rip=lambda: _then(GET_REGS, assign("rip", 0x1234)),
    init_leaves_rbx=lambda: _then(GET_REGS, assign("rbx", 0x5678)),
    init_leaves_cr0=lambda: _then(GET_SREGS, assign("cr0", 0x33)),
    init_sets_cr0_cd_and_nw=lambda: _then(GET_SREGS, assign("cr0", 0x60000010)),
    init_leaves_cr4=lambda: _then(GET_SREGS, assign("cr4", 0x220)),
    init_leaves_efer=lambda: _then(GET_SREGS, assign("efer", 0x100)),
    init_resets_xcr0=lambda: after_init(xcr0_reads(1)),
    init_resets_ia32_pat=lambda: after_init(msr_readable(Msr.PAT, 0x0007040600070406)),
    init_clears_a_byte_of_st7=lambda: after_init(xsave_lie(flip(ST7))),
    init_clears_a_byte_of_xmm3=lambda: after_init(xsave_lie(flip(XMM3))),
    init_clears_a_byte_of_the_highest_component=lambda: after_init(xsave_lie(flip(top_byte()))),
)
