# SPDX-License-Identifier: Apache-2.0
"""Lies about IA32_XFD while the kernel uses vector registers; xfd.irq-kernel-fpu is judged with --dangerous."""

from __future__ import annotations

from tests.mutations.lies import Shared, after_entry
from tests.mutations.registry import lies, mutation
from tests.mutations.x86.lies import before_entry, lose
from vmm.kvm.ioctl import Interposer

lies(
    "xfd.irq-kernel-fpu",
    toggling_beside_the_kernel_costs_a_byte_of_a_tile=lambda: before_entry(
        "verify", lambda guest: lose(5, 5, 5)(guest.vcpu), payload="amx"
    ),
)


@mutation("xfd.irq-kernel-fpu")
def the_guest_finds_another_tile() -> Interposer:
    def change(guest: Shared) -> None:
        guest.poke("observed", 64 + 1024)
        guest.set("differences", 1)
        guest.set("difference", 64 + 1024)

    return after_entry("verify", change, payload="amx")
