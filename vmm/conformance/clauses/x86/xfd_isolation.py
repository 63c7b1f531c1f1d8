# SPDX-License-Identifier: Apache-2.0
"""IA32_XFD and IA32_XFD_ERR beside neighbours on the same CPU: host threads that use tiles, and other guests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, true
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import TILE_GUESTS, TILEDATA, judged_call, stay_on_one_cpu
from vmm.conformance.x86.tiles import FULL, TileImage, tile_guest
from vmm.kvm.ioctl import errno_name
from vmm.x86 import permission
from vmm.x86.guest import Guest
from vmm.x86.msr import get_msr, name
from vmm.x86.msr_names import Msr

_ARMED = 1 << TILEDATA
_BOTH = (Msr.XFD, Msr.XFD_ERR)
_ROUNDS = 8
# First uses of tiles by the host while the guest waits between its #NM and the first read of IA32_XFD_ERR.
_USES = 3


@contextmanager
def _first_uses(line: Any) -> Iterator[None]:
    """Have new host threads use tiles, one after the other, whenever the guest says in ``line`` that it waits."""
    tiles = bytes(range(256)) * 32
    outcome: list[int] = []

    def work() -> None:
        outcome.append(lib.vmm_host_tiles_first_uses(FULL.data, tiles, line))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        line[2] = 1
        thread.join()
    if outcome != [0]:
        raise ChildProcessError(f"the threads that use tiles ended with {errno_name(-outcome[0])}")


def _line(guest: Guest) -> Any:
    """The three words of guest memory in which the guest and the host's threads tell each other how far they are."""
    address = guest.memory.address + guest.payload.symbol("neighbour")
    return ffi.cast("uint64_t *", address)


@clause("xfd.err-survives-preemption", arch="x86", needs=TILE_GUESTS, timeout=30)
def error_survives_preemption(context: Context) -> None:
    """IA32_XFD_ERR is the guest's own while host threads take #NM on its CPU between its #NM and its first read.

    The guest's handler spins inside one KVM_RUN until three more host threads have used tiles. Each of them is new
    and so takes one #NM, and process and guest have one CPU, so that they run only while the guest is preempted. A
    kernel that leaves the value in the CPU hands the guest the 0 that the host's handler wrote. One that reads it
    late, once it may have been preempted, does so only when that happens within a few hundred instructions: the
    threads are already at work when the guest takes its #NM.

    Source: arch/x86/kvm/vmx/vmx.c, handle_nm_fault_irqoff (read before preemption is possible); arch/x86/kvm/x86.c,
    vcpu_enter_guest (loaded at each entry); arch/x86/kernel/traps.c, handle_xfd_event (the host's #NM writes 0).
    """
    stay_on_one_cpu()
    guest = tile_guest(context, payload="amx_os")
    permission.request_host(TILEDATA)
    with _first_uses(_line(guest)):
        for number in range(_ROUNDS):
            judged_call(context, guest, "contended", _USES)
            values = guest.mailbox.values
            true(f"host threads that used tiles meanwhile, round {number}", values[2] >= _USES, values[2], f"{_USES}")
            equal("faults", values[15], 1)
            equal("the vector", values[3], 7)
            equal(f"IA32_XFD_ERR in the handler, round {number}", values[0], _ARMED)
            equal("IA32_XFD_ERR after the handler cleared it", values[1], 0)


@clause("xfd.two-guests-isolated", arch="x86", needs=TILE_GUESTS)
def two_guests(context: Context) -> None:
    """Guests that take turns on one CPU each keep their own IA32_XFD and IA32_XFD_ERR, and are stopped by their own.

    All four combinations of the two registers, a guest each.

    Source: arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate (XFD); arch/x86/kvm/x86.c, vcpu_enter_guest (XFD_ERR).
    """
    stay_on_one_cpu()
    first = tile_guest(context)
    guests = [first, *(tile_guest(context, first.cpuid, permit=False) for _ in range(3))]
    wanted = [(_ARMED * (number & 1), _ARMED * (number >> 1)) for number in range(4)]
    image = TileImage.random(1)
    for guest, values in zip(guests, wanted, strict=True):
        image.load(guest)
        judged_call(context, guest, "ldtilecfg_once")
        for msr, value in zip(_BOTH, values, strict=True):
            judged_call(context, guest, "wrmsr", msr, value)
    for turn in range(3):
        for guest in guests:
            judged_call(context, guest, "ticks", 2)
        for number, (guest, values) in enumerate(zip(guests, wanted, strict=True)):
            for msr, value in zip(_BOTH, values, strict=True):
                judged_call(context, guest, "rdmsr", msr)
                equal(f"{name(msr)} in guest {number}, turn {turn}", guest.mailbox.values[0], value)
                equal(f"{name(msr)} of guest {number} for the host, turn {turn}", get_msr(guest.vcpu, msr), value)
    for number, (guest, values) in enumerate(zip(guests, wanted, strict=True)):
        judged_call(context, guest, "tilezero_once")
        equal(f"faults of TILEZERO in guest {number}", guest.mailbox.read("values", 15), int(values[0] != 0))
