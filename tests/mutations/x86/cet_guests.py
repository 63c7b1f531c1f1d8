# SPDX-License-Identifier: Apache-2.0
"""Lies about CET of two guests that take turns: what is not saved is the other guest's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.mutations.lies import RUN, Proceed, called, given
from tests.mutations.registry import lies
from tests.mutations.x86.buffers import get_msr_now, set_msr_now
from tests.mutations.x86.lies import guest_writes, host_reads, in_cet_guest
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.msr_names import Msr

SUPERVISOR = (Msr.PL0_SSP, Msr.PL1_SSP, Msr.PL2_SSP, Msr.INT_SSP_TAB)
USER = (Msr.U_CET, Msr.PL3_SSP)


def _not_saved(index: int) -> Interposer:
    """An MSR stays in the CPU: each guest gets what the one before it left."""
    last = -1

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal last
        if called(call) == RUN:
            if last not in (-1, call.fd):
                set_msr_now(call.fd, index, get_msr_now(last, index))
            last = call.fd
        return proceed()

    return interposer


def _each(
    registers: Sequence[Msr], lie: Callable[[int, Msr], Interposer], what: str
) -> dict[str, Callable[[], Interposer]]:
    """Return a lie for each register by a name."""

    def factory(position: int, register: Msr) -> Callable[[], Interposer]:
        return lambda: lie(position, register)

    return {f"{r.name.lower()}_{what}": factory(position, r) for position, r in enumerate(registers)}


def _guest_reads(position: int, register: Msr) -> Interposer:
    return in_cet_guest("rdmsrs", lambda guest: guest.set("values", 0x40, position))


for clause, registers in (
    ("cet.two-guests-supervisor-pointers", SUPERVISOR),
    ("cet.two-guests-user", USER),
    ("cet.two-guests-s-cet", (Msr.S_CET,)),
):
    lies(clause, **_each(registers, lambda position, register: _not_saved(register), "is_not_saved"))
    lies(clause, **_each(registers, _guest_reads, "is_another_in_the_guest"))
    lies(
        clause,
        **_each(
            registers, lambda position, register: host_reads(register, lambda value: 0x40), "is_another_for_the_host"
        ),
    )

lies(
    "cet.two-guests-supervisor-pointers",
    a_guest_cannot_write_pl0_ssp=lambda: guest_writes("cet", Msr.PL0_SSP, 0x20000, 1),
)
lies("cet.two-guests-user", a_guest_cannot_write_u_cet=lambda: guest_writes("cet", Msr.U_CET, 1, 1))
lies("cet.two-guests-s-cet", a_guest_cannot_write_s_cet=lambda: guest_writes("cet", Msr.S_CET, 0, 1))

lies(
    "cet.two-guests-xss",
    ia32_xss_stays_in_the_cpu=lambda: _not_saved(Msr.XSS),
    xsaves_stores_the_other_guests_components=lambda: in_cet_guest(
        "xsaves", lambda guest: guest.poke("area", 521, 0x10)
    ),
    the_guest_reads_another_ia32_xss=lambda: _guest_reads(0, Msr.XSS),
    the_host_reads_another_ia32_xss=lambda: host_reads(Msr.XSS, lambda value: value ^ 0x800),
    a_guest_cannot_write_ia32_xss=lambda: in_cet_guest(
        "wrmsr", lambda guest: guest.set("values", 1, 15), given(Msr.XSS)
    ),
)
