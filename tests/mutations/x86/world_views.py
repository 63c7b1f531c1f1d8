# SPDX-License-Identifier: Apache-2.0
"""Lies about one state that several calls show: one of them shows it otherwise, or does not take it."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

from tests.mutations.lies import COMPLETE, Change, Proceed, after, called, succeed_with
from tests.mutations.registry import lies
from tests.mutations.world import world_loses, world_shows
from vmm._kvm import ffi
from vmm.kvm.ioctl import Call, Interposer
from vmm.state.x86.world.lapic import LAPIC, X2_ICR
from vmm.state.x86.world.modes import SREGS_1
from vmm.state.x86.world.vectors import XSAVE
from vmm.x86.msr_names import Msr

GET_MSRS, SET_MSRS = "KVM_GET_MSRS", "KVM_SET_MSRS"


def _around(
    before: Callable[[Any], object] = lambda run: None, after: Callable[[Any], object] = lambda run: None
) -> Interposer:
    """Change struct kvm_run before, or after, a KVM_RUN that runs nothing."""

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) != COMPLETE:
            return proceed()
        with mmap.mmap(call.fd, mmap.PAGESIZE) as page:
            run = ffi.from_buffer("struct kvm_run *", page)
            before(run)
            result = proceed()
            after(run)
            ffi.release(run)
        return result

    return interposer


def _gives(part: str, field: str) -> Interposer:
    """KVM_RUN gives other registers."""

    def change(run: Any) -> None:
        owner = getattr(ffi.cast("struct kvm_sync_regs *", ffi.addressof(run.s)), part)
        setattr(owner, field, getattr(owner, field) ^ 4)

    return _around(after=change)


def _takes_none() -> Interposer:
    """KVM_RUN does not look at the registers that it is given."""
    return _around(before=lambda run: setattr(run, "kvm_dirty_regs", 0))


def _leaves(field: str) -> Interposer:
    """KVM_RUN leaves another value in a field of kvm_run."""
    return _around(after=lambda run: setattr(run, field, getattr(run, field) ^ 1))


def _msr(index: int) -> Change:
    """Change an MSR where it stands in the calls' list."""

    def change(call: Call) -> None:
        for entry in call.argument.entries[0 : call.argument.nmsrs]:
            if entry.index == index:
                entry.data ^= 4

    return change


def _loses(index: int) -> Interposer:
    """KVM_SET_MSRS takes another value of an MSR than it was given."""

    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name == SET_MSRS:
            _msr(index)(call)
        return proceed()

    return interposer


lies(
    "world.regs-shown",
    kvm_run_has_another_rbx=lambda: _gives("regs", "rbx"),
    kvm_run_has_another_rip=lambda: _gives("regs", "rip"),
    registers_in_kvm_run_are_not_taken=lambda: _takes_none(),
    if_flag_is_another=lambda: _leaves("if_flag"),
)
lies(
    "world.sregs-shown",
    the_first_version_has_another_cr3=lambda: world_shows(SREGS_1, "cr3"),
    the_first_version_has_another_limit=lambda: world_shows(SREGS_1, "gs.limit"),
    the_first_version_loses_cr2=lambda: world_loses(SREGS_1, "cr2"),
    kvm_run_has_another_cr4=lambda: _gives("sregs", "cr4"),
    registers_in_kvm_run_are_not_taken=lambda: _takes_none(),
    cr8_of_kvm_run_is_another=lambda: _leaves("cr8"),
    apic_base_of_kvm_run_is_another=lambda: _leaves("apic_base"),
    the_msr_efer_is_another=lambda: after(GET_MSRS, _msr(Msr.EFER)),
    the_msr_gs_base_is_another=lambda: after(GET_MSRS, _msr(Msr.GS_BASE)),
    no_msr_is_set=lambda: succeed_with(SET_MSRS, lambda call, result: 0),
    tpr_of_the_page_is_another=lambda: world_shows(LAPIC, "TPR"),
    tpr_of_the_page_is_lost=lambda: world_loses(LAPIC, "TPR"),
)
lies(
    "world.sregs-long-shown",
    the_msr_fs_base_is_lost=lambda: _loses(Msr.FS_BASE),
    the_msr_efer_is_another=lambda: after(GET_MSRS, _msr(Msr.EFER)),
    the_first_version_has_another_cr0=lambda: world_shows(SREGS_1, "cr0"),
    the_first_version_loses_dpl=lambda: world_loses(SREGS_1, "cs.selector"),
)
lies(
    "world.events-shown",
    kvm_run_has_another_interrupt=lambda: _around(
        after=lambda run: setattr(
            ffi.cast("struct kvm_sync_regs *", ffi.addressof(run.s)).events.interrupt, "nr", 0x99
        )
    ),
    events_in_kvm_run_are_not_taken=lambda: _takes_none(),
    the_bitmap_has_another_interrupt=lambda: world_shows(SREGS_1, "interrupt_bitmap[0]"),
)
lies(
    "world.smm-shown",
    kvm_run_does_not_tell_smm=lambda: _leaves("flags"),
    events_in_kvm_run_are_not_taken=lambda: _takes_none(),
)
lies(
    "world.fpu-shown",
    xsave_has_another_fop=lambda: world_shows(XSAVE, "FP.FOP"),
    xsave_has_another_xmm3=lambda: world_shows(XSAVE, "SSE.XMM3"),
    xsave_loses_st4=lambda: world_loses(XSAVE, "FP.ST4"),
)
lies(
    "world.lapic-x2-shown",
    the_msr_of_svr_is_another=lambda: after(GET_MSRS, _msr(0x80F)),
    the_msr_of_isr3_is_another=lambda: after(GET_MSRS, _msr(0x813)),
    the_msr_of_icr_is_another=lambda: after(GET_MSRS, _msr(X2_ICR)),
    the_msr_of_tmict_is_lost=lambda: _loses(0x838),
)
