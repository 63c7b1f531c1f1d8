# SPDX-License-Identifier: Apache-2.0
"""Guests of arm64 whose stores are logged: a slot at 4 GiB, which their tables map, for nothing but those."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.arm64 import boot
from vmm.arm64.guest import Guest
from vmm.arm64.vcpu import Feature
from vmm.conformance.context import Context
from vmm.conformance.dirty import PAGES, Logged
from vmm.kvm.memory import PAGE_SIZE
from vmm.kvm.system import Kvm

__all__ = ["GPA", "guest_of", "logged"]

# Where the tables map memory behind the addresses of devices.
GPA = 4 << 30


def guest_of(
    context: Context, kvm: Kvm, payload: str = "dirty", features: Iterable[Feature] = (Feature.PSCI_0_2,),
    pages: int = PAGES,
) -> Guest:  # fmt: skip
    """A guest without SVE if it is not asked for, whose tables map ``pages`` at GPA; there is no slot yet."""
    guest = context.own(Guest(kvm, payload, features=features))
    guest.memory_end = GPA + pages * PAGE_SIZE
    boot.write_tables(guest.memory, guest.memory_end)
    return guest


def logged(context: Context, *features: Feature) -> Logged:
    """The guest of the payload ``dirty`` with these features beside PSCI, and its slot."""
    return Logged(guest_of(context, context.kvm, features=(Feature.PSCI_0_2, *features)), GPA, context.timeout)
