# SPDX-License-Identifier: Apache-2.0
"""Lies about restore orders: what one piece resets of another, and what is lost whatever the order."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tests.mutations.lies import Proceed, after, answer, assign, before, nth, once
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import (
    MXCSR,
    XMM3,
    XSTATE_BV,
    change_msr,
    flip,
    msr_values,
    set_msr_now,
    spoil,
    struct_now,
    top_byte,
)
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

SET_XSAVE, SET_SREGS, SET_REGS, SET_XCRS = "KVM_SET_XSAVE", "KVM_SET_SREGS", "KVM_SET_REGS", "KVM_SET_XCRS"
SET_EVENTS, SET_MP, SET_DEBUG = "KVM_SET_VCPU_EVENTS", "KVM_SET_MP_STATE", "KVM_SET_DEBUGREGS"
GET_MSRS, SET_MSRS, VCPUS = "KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_CREATE_VCPU"


def _behind(name: str, change: Callable[[int], None]) -> Interposer:
    """Really change the vCPU behind each such call, but leave the first vCPU alone."""
    return once(VCPUS, once(VCPUS, after(name, lambda call: change(call.fd))))


def _breakpoint(number: int) -> Interposer:
    def change(call: Call) -> None:
        call.argument.db[number] = 0

    return before(SET_DEBUG, change)


def _xcr0(call: Call) -> None:
    call.argument.xcrs[0].value &= 3


# What a KVM always loses is equal in every restore: it is no longer what was meant.
lies(
    "mig.order-matrix",
    xcr0_loses_avx_when_it_is_written=lambda: before(SET_XCRS, _xcr0),
    the_area_loses_a_byte_of_xmm3_when_it_is_written=lambda: before(SET_XSAVE, flip(XMM3 + 3), nth(1)),
    the_area_loses_a_byte_of_its_highest_component=lambda: before(SET_XSAVE, flip(top_byte()), nth(1)),
    lstar_loses_what_is_written=lambda: before(SET_MSRS, change_msr(Msr.LSTAR, lambda value: 0)),
    kernel_gs_base_loses_what_is_written=lambda: before(SET_MSRS, change_msr(Msr.KERNEL_GS_BASE, lambda value: 0)),
    pat_loses_what_is_written=lambda: before(SET_MSRS, change_msr(Msr.PAT, lambda value: 0x0007040600070406)),
    cr2_loses_what_is_written=lambda: before(SET_SREGS, assign("cr2", 0)),
    fs_base_loses_what_is_written=lambda: before(SET_SREGS, assign("fs.base", 0)),
    rax_loses_what_is_written=lambda: before(SET_REGS, assign("rax", 0)),
    r15_loses_what_is_written=lambda: before(SET_REGS, assign("r15", 0)),
    dr0_loses_what_is_written=lambda: _breakpoint(0),
    dr3_loses_what_is_written=lambda: _breakpoint(3),
    dr6_loses_what_is_written=lambda: before(SET_DEBUG, assign("dr6", 0xFFFF0FF0)),
    dr7_loses_what_is_written=lambda: before(SET_DEBUG, assign("dr7", 0x400)),
    an_exception_is_lost_when_it_is_written=lambda: before(SET_EVENTS, assign("exception.injected", 0)),
    its_vector_is_lost_when_it_is_written=lambda: before(SET_EVENTS, assign("exception.nr", 0)),
    its_error_code_is_lost_when_it_is_written=lambda: before(SET_EVENTS, assign("exception.error_code", 0)),
    a_pending_nmi_is_lost_when_it_is_written=lambda: before(SET_EVENTS, assign("nmi.pending", 0)),
    the_nmi_mask_is_lost_when_it_is_written=lambda: before(SET_EVENTS, assign("nmi.masked", 0)),
    the_interrupt_shadow_is_lost_when_it_is_written=lambda: before(SET_EVENTS, assign("interrupt.shadow", 0)),
    ia32_pat_cannot_be_restored=lambda: once(
        GET_MSRS, answer(SET_MSRS, 0, lambda call: Msr.PAT in dict(msr_values(call)))
    ),
)


@mutation("mig.order-matrix")
def control_registers_reset_xcr0() -> Interposer:
    def change(fd: int) -> None:
        row = {"nr_xcrs": 1, "flags": 0, "xcrs": [(0, 0, 1)]}
        lib.vmm_ioctl(fd, lib.KVM_SET_XCRS, ffi.new("struct kvm_xcrs *", row))

    return _behind(SET_SREGS, change)


@mutation("mig.order-matrix")
def xcr0_clears_the_vector_registers() -> Interposer:
    def clear(view: memoryview) -> None:
        view[XSTATE_BV] &= 3

    return _behind(SET_XCRS, lambda fd: spoil(fd, clear))


@mutation("mig.order-matrix")
def xcr0_resets_mxcsr() -> Interposer:
    def initial(view: memoryview) -> None:
        view[MXCSR] = 0x80

    return _behind(SET_XCRS, lambda fd: spoil(fd, initial))


@mutation("mig.order-matrix")
def general_registers_unmask_nmis() -> Interposer:
    def unmask(events: Any) -> None:
        events.nmi.masked = 0

    def change(fd: int) -> None:
        struct_now(fd, lib.KVM_GET_VCPU_EVENTS, lib.KVM_SET_VCPU_EVENTS, "kvm_vcpu_events", unmask)

    return _behind(SET_REGS, change)


@mutation("mig.order-matrix")
def msrs_clear_a_breakpoint_register() -> Interposer:
    def clear(registers: Any) -> None:
        registers.db[3] = 0

    def change(fd: int) -> None:
        struct_now(fd, lib.KVM_GET_DEBUGREGS, lib.KVM_SET_DEBUGREGS, "kvm_debugregs", clear)

    return _behind(SET_MSRS, change)


lies(
    "mig.order-matrix",
    events_reset_ia32_pat=lambda: _behind(SET_EVENTS, lambda fd: set_msr_now(fd, Msr.PAT, 0x0007040600070406)),
)


@mutation("mig.order-matrix")
def the_run_state_resets_r15() -> Interposer:
    def clear(registers: Any) -> None:
        registers.r15 = 0

    return _behind(SET_MP, lambda fd: struct_now(fd, lib.KVM_GET_REGS, lib.KVM_SET_REGS, "kvm_regs", clear))


@mutation("mig.order-matrix")
def the_area_is_refused_before_xcr0() -> Interposer:
    ready: set[int] = set()

    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name == VCPUS:
            result = proceed()
            ready.discard(result)
            return result
        if call.name == SET_XCRS:
            ready.add(call.fd)
        return -errno.EINVAL if call.name == SET_XSAVE and call.fd not in ready else proceed()

    return interposer
