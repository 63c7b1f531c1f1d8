# SPDX-License-Identifier: Apache-2.0
"""Lies about IA32_XFD and IA32_XFD_ERR."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import Condition, Shared, after_entry, answer, once, refuse
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import change_list, change_msr, msr_values, of_msr
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

GET, SET = "KVM_GET_MSRS", "KVM_SET_MSRS"
GP, UD = 13, 6


lies(
    "xfd.msr-list",
    ia32_xfd_is_listed_against_cpuid=lambda: change_list(Msr.XFD),
    ia32_xfd_err_is_listed_against_cpuid=lambda: change_list(Msr.XFD_ERR),
)


def _writes(index: int, *values: int) -> Condition:
    """Met by a batch that sets one MSR to one of the values."""
    return lambda call: call.argument.nmsrs == 1 and msr_values(call)[0] in [(index, value) for value in values]


lies(
    "xfd.set-rules",
    "mig.cpuid-first",
    ia32_xfd_takes_the_tile_data_bit=lambda: answer(SET, 1, _writes(Msr.XFD, 1 << 18)),
)

lies(
    "xfd.set-rules",
    ia32_xfd_err_takes_the_tile_data_bit=lambda: answer(SET, 1, _writes(Msr.XFD_ERR, 1 << 18)),
    ia32_xfd_err_takes_bit_63=lambda: answer(SET, 1, _writes(Msr.XFD_ERR, 1 << 63)),
    ia32_xfd_does_not_take_0=lambda: answer(SET, 0, _writes(Msr.XFD, 0)),
    a_refused_value_of_ia32_xfd_is_einval=lambda: refuse(SET, errno.EINVAL, _writes(Msr.XFD, 1 << 11)),
)

lies("xfd.set-rules", "reset.xcr0-xss-xfd", ia32_xfd_of_a_fresh_vcpu_has_tile_data=lambda: _reads(Msr.XFD, 1 << 18))

lies(
    "xfd.set-rules",
    a_refused_value_of_ia32_xfd_is_taken=lambda: once(SET, _reads(Msr.XFD, 1), when=_writes(Msr.XFD, 1)),
)


def _reads(index: int, value: int) -> Interposer:
    """Let one MSR be readable, with this value."""

    def change(call: Call) -> bool:
        change_msr(index, lambda old: value)(call)
        return True

    return answer(GET, 1, lambda call: of_msr(index)(call) and change(call))


def _counted(count: int, vector: int = GP) -> Callable[[Shared], None]:
    def change(guest: Shared) -> None:
        guest.set("values", count, 15)
        guest.set("vector", vector)

    return change


def _touching(*indices: int) -> Callable[[Shared], bool]:
    return lambda guest: guest.get("params") in indices


lies(
    "xfd.guest-gp",
    the_guest_can_read_ia32_xfd=lambda: after_entry("rdmsr", _counted(0), when=_touching(Msr.XFD)),
    the_guest_can_read_ia32_xfd_err=lambda: after_entry("rdmsr", _counted(0), when=_touching(Msr.XFD_ERR)),
    the_guest_can_clear_ia32_xfd_err=lambda: after_entry("wrmsr", _counted(0), when=_touching(Msr.XFD_ERR)),
    the_guest_can_set_ia32_xfd=lambda: after_entry(
        "wrmsr", _counted(0), when=lambda guest: guest.get("params", 1) == 1 << 18
    ),
    ia32_xfd_is_ud_in_the_guest=lambda: after_entry("rdmsr", _counted(1, UD), when=_touching(Msr.XFD)),
    every_msr_faults_in_the_guest=lambda: after_entry("rdmsr", _counted(1)),
)
