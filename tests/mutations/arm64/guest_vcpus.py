# SPDX-License-Identifier: Apache-2.0
"""Lies about several vCPUs of one VM: registers of one in another, and a reset that leaves something."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import (
    before_entry,
    change_now,
    executed,
    flip,
    get_now,
    guest_left,
    reading,
    set_now,
    spoiled_exit,
    values,
    widest,
)
from tests.mutations.lies import RUN, after, assign, before, nth, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import FFR, FPCR, FPSR, SYSTEM, Register, p, v, x, z
from vmm.kvm.ioctl import Call, Interposer

_RDVL = 0x04BF5020
_GET_MP, _SET_MP = "KVM_GET_MP_STATE", "KVM_SET_MP_STATE"


def _turn_changes(register: Register, turn: int = 9) -> Interposer:
    """One turn costs a bit of a register of the vCPU that has had it."""
    return after(RUN, lambda call: change_now(register)(call.fd), nth(turn))


lies(
    "guest.two-vcpus-sve",
    a_turn_costs_one_bit_of_p3=lambda: _turn_changes(p(3)),
    a_turn_costs_one_bit_of_ffr=lambda: _turn_changes(FFR),
    z30_is_not_what_kvm_shows=lambda: reading(flip(3), z(30)),
)

lies(
    "guest.two-vcpus-sve",
    "guest.two-vcpus-fpsimd",
    "guest.two-vcpus-threads",
    a_turn_rounds_differently=lambda: after(RUN, lambda call: change_now(FPCR, 1 << 22)(call.fd), nth(5)),
    a_turn_is_left_out=lambda: after(RUN, assign("absorbed", 0), nth(4)),
    what_kvm_shows_is_another_register=lambda: reading(flip(0), widest(1), v(1)),
)

lies("guest.two-vcpus-fpsimd", a_turn_costs_one_byte_of_v31=lambda: _turn_changes(v(31)))
lies("guest.two-vcpus-threads", another_thread_loses_a_register=lambda: _turn_changes(widest(8), 7))


def _from_the_other(register: Register) -> Interposer:
    """A vCPU gets a register of the other one."""
    ran: list[int] = []

    def leak(call: Call) -> None:
        ran.append(call.fd)
        if len(ran) == 12:
            other = next(fd for fd in ran if fd != call.fd)
            set_now(call.fd, register, int.from_bytes(get_now(other, register), "little"))

    return after(RUN, leak)


lies("guest.two-vcpus-fpsimd", a_vcpu_gets_v9_of_the_other=lambda: _from_the_other(v(9)))
lies(
    "guest.two-vcpus-sve",
    "guest.two-vcpus-threads",
    a_vcpu_gets_a_register_of_the_other=lambda: _from_the_other(widest(9)),
)


def _before_verify(turn: int) -> Interposer:
    """V9 is another when the guest looks, for the ``turn``-th time."""
    count = nth(turn)
    return before_entry(
        "verify",
        lambda guest, fd: change_now(v(9))(fd) if count(None) else None,  # type: ignore[arg-type]
        payload="fpsimd",
    )


lies(
    "guest.sve-undef-keeps-v",
    rdvl_works_without_sve=lambda: executed(_RDVL, values(15, lambda old: 0), payload="fpsimd"),
    rdvl_traps_as_such=lambda: executed(_RDVL, lambda guest: guest.set("esr", 0x19 << 26), payload="fpsimd"),
    registers_that_are_not_in_use_are_lost=lambda: _before_verify(1),
    registers_in_use_are_lost=lambda: _before_verify(2),
)


def _finds(register: Register, bits: int = 1 << 9) -> Interposer:
    """The second vCPU, whose run is the second one, finds some bits in a register."""
    return before(RUN, lambda call: set_now(call.fd, register, bits), nth(2))


def _event_is_another(call: Call) -> None:
    call.argument.run.mmio.data[3] ^= 4


lies(
    "guest.cpu-on-by-run-sve",
    the_reset_leaves_z31=lambda: _finds(z(31), 1 << 100),
    the_reset_leaves_p15=lambda: _finds(p(15), 1 << 12),
    the_reset_leaves_ffr=lambda: _finds(FFR, 1),
    the_reset_leaves_zcr_el1=lambda: _finds(SYSTEM["ZCR_EL1"], 2),
)

lies("guest.cpu-on-by-run", the_reset_leaves_v31=lambda: _finds(v(31), 1 << 120))

lies(
    "guest.cpu-on-by-run-sve",
    "guest.cpu-on-by-run",
    the_reset_leaves_x30=lambda: _finds(x(30)),
    the_reset_leaves_fpsr=lambda: _finds(FPSR, 1),
    the_reset_leaves_fpcr=lambda: _finds(FPCR, 1 << 22),
    the_reset_leaves_cpacr_el1=lambda: _finds(SYSTEM["CPACR_EL1"], 3 << 20),
    x0_is_not_the_context=lambda: _finds(x(0), 5),
    cpu_on_is_refused=lambda: guest_left("hvc", values(0, lambda old: (1 << 64) - 3), payload="registers"),
)

lies(
    "guest.mp-state-keeps-registers",
    a_vcpu_cannot_be_made_runnable=lambda: refuse(_SET_MP, errno.EINVAL),
    a_vcpu_that_is_off_is_runnable=lambda: after(_GET_MP, assign("mp_state", 0)),
    making_it_runnable_clears_v9=lambda: after(_SET_MP, lambda call: set_now(call.fd, v(9), 0)),
    making_it_runnable_clears_fpcr=lambda: after(_SET_MP, lambda call: set_now(call.fd, FPCR, 0)),
    it_leaves_with_another_value=lambda: spoiled_exit(_event_is_another),
    it_leaves_elsewhere=lambda: spoiled_exit(lambda call: setattr(call.argument.run.mmio, "phys_addr", 8)),
    x7_is_another_afterwards=lambda: reading(flip(0), x(7)),
)
