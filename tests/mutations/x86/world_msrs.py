# SPDX-License-Identifier: Apache-2.0
"""Lies about the MSRs of the closed world: of those that every KVM has, and of shadow stacks' register."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import partial
from typing import Any

from tests.mutations.lies import RUN, Proceed, after, answer, once, refuse, succeed_with
from tests.mutations.registry import lies
from tests.mutations.world import world_lies, world_loses, world_shows
from tests.mutations.x86.buffers import change_msr, set_msr_now
from tests.mutations.x86.lies import GP, in_lists, one_reg_number
from vmm.kvm.ioctl import Call, Interposer
from vmm.state.world.table import Table
from vmm.state.x86.world.msrs import MSRS, ONE_REGS, XFD
from vmm.state.x86.world.msrs_unlisted import HYPERV, UNLISTED
from vmm.x86.msr import msr_id
from vmm.x86.msr_names import Msr, saved_name

GET, SET, GET_ONE, SET_ONE = "KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_GET_ONE_REG", "KVM_SET_ONE_REG"
# A field for every row that is about MSRs which every KVM has.
_COMMON = (
    Msr.STAR, Msr.LSTAR, Msr.SYSENTER_CS, Msr.SYSENTER_ESP, Msr.SYSCALL_MASK, Msr.PAT, Msr.TSC_ADJUST,
    Msr.MISC_ENABLE, Msr.MCG_STATUS, Msr.SMI_COUNT, Msr.PLATFORM_INFO, Msr.MISC_FEATURES_ENABLES, Msr.UCODE_REV,
    0x1FC, 0xC001_0015, Msr.KVM_SYSTEM_TIME_NEW, Msr.KVM_WALL_CLOCK_NEW, Msr.KVM_ASYNC_PF_EN,
    Msr.KVM_ASYNC_PF_INT, Msr.KVM_STEAL_TIME, Msr.KVM_PV_EOI_EN, Msr.KVM_POLL_CONTROL,
)  # fmt: skip
_UNLISTED = (0x200, 0x201, 0x250, Msr.MTRR_DEF_TYPE, 0x400, 0x401, 0x402, Msr.MCG_CTL, Msr.FS_BASE, Msr.EFER)


def _fields(indices: Iterable[int]) -> list[str]:
    return [saved_name(index) for index in indices]


for _table, _indices, _properties in (
    (MSRS, _COMMON, ("fresh", "kept", "moved")),
    (UNLISTED, _UNLISTED, ("fresh", "kept")),
    (XFD, (Msr.XFD,), ("moved",)),
):
    world_lies(__name__, _table, _fields(_indices), _properties)
world_lies(__name__, ONE_REGS, ["GUEST_SSP"], ("fresh", "kept", "refused", "moved"))


# --- what is refused: less is set than was asked for ---


def _all_set() -> Interposer:
    return succeed_with(SET, lambda call, done: int(call.argument.nmsrs))


def _one_is_set(index: int, value: int) -> Interposer:
    """A refused value is taken, although KVM says otherwise."""

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == SET and call.argument.nmsrs == 1 and call.argument.entries[0].index == index and not result:
            set_msr_now(call.fd, index, value)
        return result

    return interposer


lies(
    "world.msrs-refused",
    everything_is_taken=lambda: _all_set(),
    a_refused_value_of_pat_changes_it=lambda: _one_is_set(Msr.PAT, 0x0606_0606_0606_0600),
    a_refused_address_changes_lstar=lambda: _one_is_set(Msr.LSTAR, 0x1230),
)
lies(
    "world.unlisted-msrs-refused",
    everything_is_taken=lambda: _all_set(),
    a_refused_type_changes_an_mtrr=lambda: _one_is_set(0x250, 0x0606_0606_0606_0600),
    a_refused_address_changes_fs=lambda: _one_is_set(Msr.FS_BASE, 0x1230),
)


# --- the guest ---


def _in_guest(entry: str, index: int, size: int, *, bits: int = 0, fault: int | None = None) -> Interposer:
    """Spoil what an access of the guest gave: the value, or whether it was a fault."""

    def change(operand: int, found: Any) -> None:
        if operand == index:
            found[0] ^= bits
            if fault is not None:
                found[2], found[3] = fault, GP

    return in_lists(entry, change, size)


_READS, _WRITES = partial(_in_guest, "rdmsr_list", size=8), partial(_in_guest, "wrmsr_list", size=16)


def _guest_lies(table: Table, readable: int, kept: int) -> None:
    """``readable`` is an MSR that the guest may read and write, ``kept`` one that it may not write."""
    field, title = saved_name(readable), table.title
    lies(
        f"world.{title}-guest-reads",
        the_guest_reads_something_else=lambda: _READS(readable, bits=4),
        the_guests_read_faults=lambda: _READS(readable, fault=1),
        the_host_writes_for_nothing=lambda: world_loses(table, field),
    )
    lies(
        f"world.{title}-guest-writes",
        the_guests_write_faults=lambda: _WRITES(readable, fault=1),
        the_guest_writes_what_it_may_not=lambda: _WRITES(kept, fault=0),
        the_host_reads_something_else=lambda: world_shows(table, field),
        a_write_that_faults_changes_it=lambda: once(RUN, after(GET, change_msr(kept, lambda value: value ^ 1))),
    )


_guest_lies(MSRS, Msr.KERNEL_GS_BASE, Msr.SMBASE)
_guest_lies(UNLISTED, Msr.MTRR_DEF_TYPE, Msr.MTRRCAP)
_guest_lies(HYPERV, 0x4000_0000, 0x4000_0023)
lies(
    "world.msrs-frozen",
    a_vcpu_that_has_run_takes_another_value=lambda: once(RUN, _all_set()),
    a_vcpu_that_has_run_does_not_take_its_own=lambda: once(RUN, answer(SET, 0)),
    a_refused_value_changes_it=lambda: once(RUN, after(GET, change_msr(Msr.PLATFORM_INFO, lambda value: value ^ 4))),
)
lies("world.msrs-guest-reads", the_guest_reads_what_it_may_not=lambda: _READS(Msr.SMBASE, fault=0))


# --- two calls for one MSR ---


def _flip(call: Call) -> None:
    one_reg_number(call)[0] ^= 1 << 4


def _of(index: int) -> Any:
    return lambda call: bool(call.argument.id == msr_id(index))


def _shown_lies(title: str, index: int) -> None:
    lies(
        f"world.{title}-shown",
        the_other_call_shows_something_else=lambda: after(GET_ONE, _flip, _of(index)),
        the_other_call_refuses_to_show_it=lambda: refuse(GET_ONE, errno.EINVAL, _of(index)),
        the_other_call_sets_nothing=lambda: answer(SET_ONE, 0, _of(index)),
        the_other_call_refuses_to_set_it=lambda: refuse(SET_ONE, errno.EINVAL, _of(index)),
    )


_shown_lies("msrs", Msr.KERNEL_GS_BASE)
_shown_lies("unlisted-msrs", 0x202)
