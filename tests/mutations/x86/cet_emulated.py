# SPDX-License-Identifier: Apache-2.0
"""Lies about CET where KVM emulates: what it must not, and INIT outside KVM_RUN."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import (
    RUN,
    Change,
    Proceed,
    Shared,
    after,
    answer,
    assign,
    before,
    called,
    nth,
    refuse,
    toggle,
)
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import XMM3, flip, get_msr_now, set_msr_now, with_bits, xcr0_reads
from tests.mutations.x86.lies import after_init, get_ssp_now, host_reads, in_cet_guest, set_ssp_now, ssp_reads
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

REGS, SREGS = "KVM_GET_REGS", "KVM_GET_SREGS"
STACKS, TRACKING = 1, 4
# The second task's descriptor.
NEW_TASK = 0x10020


def _cet_is(value: Callable[[int], int], *registers: Msr) -> Interposer:
    """The guest runs with other bits of U_CET and S_CET: KVM does not see which are set."""

    def change(call: Call) -> None:
        for register in registers or (Msr.U_CET, Msr.S_CET):
            enabled = get_msr_now(call.fd, register)
            if value(enabled) != enabled:
                set_msr_now(call.fd, register, value(enabled))

    return before(RUN, change)


def _where_kvm_gave_up(change: Change) -> Interposer:
    """Spoil the exit with which KVM gives up."""

    def spoil(call: Call) -> None:
        if call.argument.run.exit_reason == lib.KVM_EXIT_INTERNAL_ERROR:
            change(call)

    return after(RUN, spoil)


def _arrived(entry: str, count: int) -> Interposer:
    return in_cet_guest(entry, lambda guest: guest.set("values", count))


lies(
    "cet.emulation-refused",
    "cet.task-switch-emul",
    u_cet_is_not_looked_at=lambda: _cet_is(lambda value: 0, Msr.U_CET),
    s_cet_is_not_looked_at=lambda: _cet_is(lambda value: 0, Msr.S_CET),
    shadow_stacks_are_not_looked_at=lambda: _cet_is(lambda value: value & ~STACKS),
    branch_tracking_is_not_looked_at=lambda: _cet_is(lambda value: value & ~TRACKING),
    cet_is_never_emulated=lambda: _cet_is(lambda value: STACKS | TRACKING),
    kvm_gives_up_for_another_reason=lambda: _where_kvm_gave_up(assign("run.internal.suberror", 3)),
    kvm_shuts_the_guest_down=lambda: _where_kvm_gave_up(assign("run.exit_reason", lib.KVM_EXIT_SHUTDOWN)),
    a_run_fails=lambda: refuse(RUN, errno.EIO, nth(2)),
)


def _of_reads(change: Change) -> Interposer:
    """Spoil the exit for what is read where there is no memory."""

    def spoil(call: Call) -> None:
        if call.argument.run.exit_reason == lib.KVM_EXIT_MMIO:
            change(call)

    return after(RUN, spoil)


lies(
    "cet.emulation-refused",
    shadow_stacks_refuse_jumps=lambda: _cet_is(lambda value: value | TRACKING if value else 0),
    branch_tracking_refuses_returns=lambda: _cet_is(lambda value: value | STACKS if value else 0),
    a_refused_branch_is_begun=lambda: after(REGS, toggle("rip", 2)),
    a_refused_call_pushes_on_the_shadow_stack=lambda: _where_kvm_gave_up(
        lambda call: set_ssp_now(call.fd, get_ssp_now(call.fd) - 8)
    ),
    a_refused_return_arrives=lambda: _arrived("return_read", 1),
    an_emulated_return_does_not_arrive=lambda: _arrived("return_read", 0),
    an_emulated_jump_does_not_arrive=lambda: _arrived("jump_read", 0),
    an_emulated_call_does_not_arrive=lambda: _arrived("call_read", 0),
    half_a_target_is_read=lambda: _of_reads(assign("run.mmio.len", 4)),
    the_target_is_read_elsewhere=lambda: _of_reads(toggle("run.mmio.phys_addr", 8)),
    the_target_of_an_emulated_call_is_not_run=lambda: refuse(RUN, errno.EIO, nth(3)),
)

lies(
    "cet.task-switch-emul",
    the_task_register_is_the_old_tasks=lambda: after(SREGS, assign("tr.selector", 0x18)),
    the_task_register_is_the_new_tasks=lambda: after(SREGS, assign("tr.selector", 0x20)),
    the_new_task_is_busy_all_the_same=lambda: _busy(2),
    the_new_task_is_not_busy=lambda: _busy(0),
    the_new_task_ends_in_another_way=lambda: after(RUN, _at_the_end(assign("run.exit_reason", lib.KVM_EXIT_HLT))),
)


def _busy(bit: int) -> Interposer:
    """The second task is marked, or is not, whenever the guest has left."""

    shared = Shared("cet")

    def interposer(call: Call, proceed: Proceed) -> int:
        shared.watch(call)
        result = proceed()
        if called(call) == RUN:
            descriptor = shared.at(NEW_TASK)
            descriptor[0] = descriptor[0] & ~(2 << 40) | bit << 40
        return result

    return interposer


def _at_the_end(change: Change) -> Change:
    """Spoil an exit by OUT of a byte, as the second task leaves."""

    def spoil(call: Call) -> None:
        run = call.argument.run
        if run.exit_reason == lib.KVM_EXIT_IO and run.io.size == 1:
            change(call)

    return spoil


_STATE = {
    "u_cet": Msr.U_CET, "s_cet": Msr.S_CET, "pl0_ssp": Msr.PL0_SSP, "pl1_ssp": Msr.PL1_SSP,
    "pl2_ssp": Msr.PL2_SSP, "pl3_ssp": Msr.PL3_SSP, "the_interrupt_table": Msr.INT_SSP_TAB,
}  # fmt: skip


def _leaves(register: Msr) -> Callable[[], Interposer]:
    return lambda: after_init(host_reads(register, lambda value: 0x1000))


# These need a run that includes what may harm a host: tests.mutations leaves it out.
lies("cet.init-outside-run", **{f"init_leaves_{what}": _leaves(register) for what, register in _STATE.items()})


def _vmms(call: Call) -> None:
    with_bits(2)(call)
    flip(XMM3)(call)


lies(
    "cet.init-outside-run",
    init_is_not_taken=lambda: answer("KVM_SIGNAL_MSI", 1),
    init_leaves_ssp=lambda: after_init(ssp_reads(lambda value: 0x6000)),
    init_resets_ia32_xss=lambda: after_init(host_reads(Msr.XSS, lambda value: 0)),
    init_resets_xcr0=lambda: after_init(xcr0_reads(1)),
    the_vmms_registers_become_the_guests=lambda: after_init(after("KVM_GET_XSAVE2", _vmms)),
)
