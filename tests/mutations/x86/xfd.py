# SPDX-License-Identifier: Apache-2.0
"""Lies about IA32_XFD and IA32_XFD_ERR."""

from __future__ import annotations

import errno

from tests.mutations.lies import after_entry, answer, once, refuse
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import change_list, sets
from tests.mutations.x86.lies import GP, UD, after_msr_entry, faults, msr_readable
from vmm.x86.msr_names import Msr

GET, SET = "KVM_GET_MSRS", "KVM_SET_MSRS"


lies(
    "xfd.msr-list",
    ia32_xfd_is_listed_against_cpuid=lambda: change_list(Msr.XFD),
    ia32_xfd_err_is_listed_against_cpuid=lambda: change_list(Msr.XFD_ERR),
)

lies(
    "xfd.set-rules",
    "mig.cpuid-first",
    ia32_xfd_takes_the_tile_data_bit=lambda: answer(SET, 1, sets(Msr.XFD, 1 << 18)),
)

lies(
    "xfd.set-rules",
    ia32_xfd_err_takes_the_tile_data_bit=lambda: answer(SET, 1, sets(Msr.XFD_ERR, 1 << 18)),
    ia32_xfd_err_takes_bit_63=lambda: answer(SET, 1, sets(Msr.XFD_ERR, 1 << 63)),
    ia32_xfd_does_not_take_0=lambda: answer(SET, 0, sets(Msr.XFD, 0)),
    a_refused_value_of_ia32_xfd_is_einval=lambda: refuse(SET, errno.EINVAL, sets(Msr.XFD, 1 << 11)),
)

lies(
    "xfd.set-rules",
    "reset.xcr0-xss-xfd",
    ia32_xfd_of_a_fresh_vcpu_has_tile_data=lambda: msr_readable(Msr.XFD, 1 << 18),
)

lies(
    "xfd.set-rules",
    a_refused_value_of_ia32_xfd_is_taken=lambda: once(SET, msr_readable(Msr.XFD, 1), when=sets(Msr.XFD, 1)),
)

lies(
    "xfd.guest-gp",
    the_guest_can_read_ia32_xfd=lambda: after_msr_entry("rdmsr", faults(0, GP), Msr.XFD),
    the_guest_can_read_ia32_xfd_err=lambda: after_msr_entry("rdmsr", faults(0, GP), Msr.XFD_ERR),
    the_guest_can_clear_ia32_xfd_err=lambda: after_msr_entry("wrmsr", faults(0, GP), Msr.XFD_ERR),
    the_guest_can_set_ia32_xfd=lambda: after_entry(
        "wrmsr", faults(0, GP), when=lambda guest: guest.get("params", 1) == 1 << 18
    ),
    ia32_xfd_is_ud_in_the_guest=lambda: after_msr_entry("rdmsr", faults(1, UD), Msr.XFD),
    every_msr_faults_in_the_guest=lambda: after_entry("rdmsr", faults(1, GP)),
)
