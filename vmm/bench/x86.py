# SPDX-License-Identifier: Apache-2.0
"""The x86 part of what ``vmm bench`` measures; its interface is what another architecture has to offer."""

from __future__ import annotations

from vmm.kvm.exits import IoOut
from vmm.kvm.vcpu import Vcpu
from vmm.x86.guest import Guest, GuestError
from vmm.x86.registers import get_regs, get_sregs, raw

__all__ = ["handle_ticks", "registers"]


def registers(guest: Guest) -> dict[str, bytes]:
    """Return the registers of a prepared guest as the kernel's structures, by the file name that C expects."""
    return {"sregs": raw(get_sregs(guest.vcpu)), "regs": raw(get_regs(guest.vcpu))}


def handle_ticks(vcpu: Vcpu, tick: int, count: int) -> None:
    """Run to ``count`` exits by an OUT to port ``tick``, each seen by Python; GuestError at any other exit."""
    run = vcpu.run
    for _ in range(count):
        exit = run()
        if not (isinstance(exit, IoOut) and exit.port == tick):
            raise GuestError(f"the guest of the benchmark left with {exit}", exit)
