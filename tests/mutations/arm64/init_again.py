# SPDX-License-Identifier: Apache-2.0
"""Lies about VCPU_INIT of a vCPU that has been in use."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import INIT, SET, before_entry, change_now, number, reading, set_now
from tests.mutations.lies import after, once, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import FPCR, FPSR, PSTATE, SYSTEM, sysreg, v, x

_SCTLR, _MDSCR, _TPIDR = SYSTEM["SCTLR_EL1"], sysreg(2, 0, 0, 2, 2), SYSTEM["TPIDR_EL0"]

lies(
    "init.again-resets",
    init_leaves_sctlr_el1=lambda: once(INIT, after(INIT, lambda call: set_now(call.fd, _SCTLR, 0x30D0180D))),
    init_leaves_mdscr_el1=lambda: once(INIT, after(INIT, lambda call: change_now(_MDSCR)(call.fd))),
    init_leaves_tpidr_el0=lambda: once(INIT, after(INIT, lambda call: change_now(_TPIDR)(call.fd))),
    init_leaves_pstate=lambda: once(INIT, after(INIT, lambda call: set_now(call.fd, PSTATE, 0x3C4))),
    init_leaves_v31=lambda: once(INIT, after(INIT, lambda call: set_now(call.fd, v(31), 1 << 127))),
    nothing_takes_another_value=lambda: refuse(SET, errno.EINVAL),
)

lies(
    "init.again-resets",
    "init.again-after-run",
    init_is_refused=lambda: once(INIT, refuse(INIT, errno.EINVAL)),
    init_leaves_fpsr=lambda: once(INIT, after(INIT, lambda call: set_now(call.fd, FPSR, 1))),
)

lies(
    "init.again-after-run",
    init_leaves_v9=lambda: once(INIT, after(INIT, lambda call: set_now(call.fd, v(9), 1 << 100))),
    init_leaves_x30=lambda: once(INIT, after(INIT, lambda call: set_now(call.fd, x(30), 1))),
    init_leaves_fpcr=lambda: once(INIT, after(INIT, lambda call: set_now(call.fd, FPCR, 1 << 22))),
    the_guest_finds_another_v7=lambda: before_entry(
        "verify", lambda guest, fd: change_now(v(7))(fd), payload="fpsimd"
    ),
    nothing_is_kept_of_what_a_guest_loads=lambda: reading(number(0), v(0)),
)
