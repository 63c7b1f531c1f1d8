# SPDX-License-Identifier: Apache-2.0
"""Lies about vCPUs whose EL1 is AArch32."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import INIT, SET, flip, forget, number, of, reading, value
from tests.mutations.lies import COMPLETE, RUN, accept, after, drift, nth, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import PSTATE, sysreg, v, x
from vmm.kvm.ioctl import Call, Interposer

_FPEXC = sysreg(3, 4, 5, 3, 0)
_ABORT_MODE, _EL1H = 0x17, 5


def _mode(call: Call, mode: int) -> bool:
    return of(PSTATE)(call) and value(call)[0] & 0x1F == mode


def _shown(turn: int) -> Interposer:
    """The guest's ``turn``-th store is of another value."""

    def change(call: Call) -> None:
        call.argument.run.mmio.data[2] ^= 8

    return after(RUN, change, nth(turn))


lies(
    "aarch32.refused-without",
    every_width_is_accepted=lambda: accept(INIT),
    a_width_that_there_is_not_is_enoent=lambda: drift(INIT, errno.ENOENT),
    no_width_is_accepted=lambda: refuse(INIT, errno.EINVAL),
)

lies(
    "aarch32.one-width",
    widths_may_be_mixed=lambda: accept(INIT),
    a_mixture_is_ebusy=lambda: drift(INIT, errno.EBUSY),
    the_second_vcpu_is_refused=lambda: refuse(INIT, errno.EINVAL, nth(3)),
    a_vcpu_that_was_refused_once_cannot_run=lambda: refuse(COMPLETE, errno.ENOEXEC),
)

lies(
    "aarch32.pstate",
    it_begins_in_el1=lambda: reading(number(0x3C5), PSTATE),
    a_mode_of_aarch64_is_accepted=lambda: accept(SET, lambda call: _mode(call, _EL1H)),
    abort_mode_is_refused=lambda: refuse(SET, errno.EINVAL, lambda call: _mode(call, _ABORT_MODE)),
    pstate_is_not_kept=lambda: forget(PSTATE),
)

lies(
    "aarch32.registers",
    r13_is_x13=lambda: forget(x(19)),
    r12_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(x(12))),
    r14_is_another_in_the_guest=lambda: _shown(14),
    what_the_guest_left_is_not_shown=lambda: _shown(15),
    r13_is_read_wrong=lambda: reading(flip(3), x(19)),
)

lies(
    "aarch32.vectors",
    v15_is_not_kept=lambda: forget(v(15)),
    v3_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(v(3))),
    fpexc_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(_FPEXC)),
    fpexc_is_another_in_the_guest=lambda: _shown(1),
    d0_is_another_in_the_guest=lambda: _shown(3),
    the_guest_writes_something_else=lambda: _shown(6),
    d30_is_not_saved=lambda: reading(flip(0), v(15)),
    d1_is_not_saved=lambda: reading(flip(8), v(0)),
    v31_is_lost=lambda: reading(number(0), v(31)),
    fpexc_is_not_saved=lambda: reading(number(0), _FPEXC),
)
