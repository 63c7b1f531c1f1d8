# SPDX-License-Identifier: Apache-2.0
"""Lies about protection keys."""

from __future__ import annotations

import errno
from collections.abc import Callable

from tests.mutations.lies import RUN, Shared, after, after_entry, after_run, before, given, once, refuse
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.buffers import (
    XSTATE_BV,
    area,
    bits_of,
    change_entry,
    entry,
    flip,
    place,
    put,
    spoil,
    xsave_lie,
)
from vmm._kvm import lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.xfeature import XFeature

PKRU = int(XFeature.PKRU)
SET, GET_CPUID, OSPKE = "KVM_SET_XSAVE", "KVM_GET_CPUID2", 1 << 4


def _in_guest(name: str, change: Callable[[Shared], object], first: int | None = None) -> Interposer:
    """Spoil what an entry point left, if its first parameter is this one."""
    when = None if first is None else given(first)
    return after_entry(name, change, payload="pku", when=when)


def _set_pkru(value: int) -> Callable[[memoryview], None]:
    def change(view: memoryview) -> None:
        offset = place(PKRU)
        view[offset : offset + 4] = value.to_bytes(4, "little")
        view[XSTATE_BV + 1] |= 2

    return change


lies(
    "pku.xsave-slot",
    "pku.host-pkru-zero",
    pkru_is_missing_from_xstate_bv=lambda: xsave_lie(flip(XSTATE_BV + 1, 2)),
    the_area_has_the_hosts_pkru=lambda: xsave_lie(lambda call: put(place(PKRU), lib.vmm_rdpkru(), 4)(call)),
)

lies(
    "pku.xsave-slot",
    "pku.new-vm",
    pkru_is_not_taken_from_the_area=lambda: before(SET, lambda call: _set_pkru(0)(area(call))),
)

lies(
    "pku.survives-exits",
    "pku.cr4-pke-without-xcr0",
    the_guest_reads_another_pkru_after_its_exits=lambda: _in_guest(
        "churn", lambda guest: guest.set("values", 0x55555554)
    ),
)

lies("pku.survives-exits", an_exit_replaces_the_guests_pkru=lambda: after_run(lambda fd: spoil(fd, _set_pkru(0))))

lies(
    "pku.set-clear-bit-keeps",
    a_clear_bit_resets_pkru=lambda: before(
        SET, lambda call: _set_pkru(0)(area(call)), lambda call: not bits_of(call) >> PKRU & 1
    ),
    an_area_without_pkru_is_refused=lambda: refuse(SET, errno.EINVAL, lambda call: not bits_of(call) >> PKRU & 1),
)

lies("pku.xsave-slot", "pku.new-vm", an_area_with_pkru_is_refused=lambda: refuse(SET, errno.EINVAL))

lies(
    "pku.survives-exits",
    the_guest_loses_access_to_its_pages=lambda: once(RUN, after_run(lambda fd: spoil(fd, _set_pkru(0xFFFFFFFF)))),
)

lies(
    "pku.cr4-pke-without-xcr0",
    "pku.host-unchanged",
    a_run_changes_the_threads_own_pkru=lambda: after(RUN, lambda call: lib.vmm_wrpkru(lib.vmm_rdpkru() ^ 0x30000000)),
)

lies(
    "pku.enforced",
    a_denied_access_goes_through=lambda: _in_guest("denied", lambda guest: guest.set("values", 0, 15), 4),
    the_fault_lacks_the_protection_key_bit=lambda: _in_guest("denied", lambda guest: guest.set("values", 5)),
    a_write_protected_page_cannot_be_read=lambda: _in_guest("denied", lambda guest: guest.set("values", 1, 15), 8),
    the_denied_access_is_gp=lambda: _in_guest("denied", lambda guest: guest.set("vector", 13)),
    the_fault_has_another_address=lambda: _in_guest("denied", lambda guest: guest.set("cr2", 0)),
)

lies(
    "pku.ospke-mirror",
    ospke_is_never_shown=lambda: after(GET_CPUID, change_entry(7, ecx=lambda value: value & ~OSPKE)),
)


@mutation("pku.ospke-mirror")
def ospke_follows_cr4_one_step_late() -> Interposer:
    seen = [0]

    def change(call: Call) -> None:
        seen.append(entry(call, 7).ecx & OSPKE)
        entry(call, 7).ecx = entry(call, 7).ecx & ~OSPKE | seen[-2]

    return once("KVM_SET_REGS", after(GET_CPUID, change))
