# SPDX-License-Identifier: Apache-2.0
"""What the generated clauses need of an architecture: its vCPUs, ready-made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmm.conformance.context import Context
from vmm.conformance.needs import Need
from vmm.guest.base import BaseGuest
from vmm.kvm.vcpu import Vcpu

__all__ = ["Ground"]


@dataclass(frozen=True, slots=True)
class Ground:
    """How a clause gets a vCPU that has all it may have.

    ``vcpu`` makes one in a VM of its own that has never run. ``guest`` makes one that is ready to run instructions
    which change nothing of its state but where they are, and leaves by a tick. ``blank`` makes one to restore a state
    into, where that is another than ``vcpu``. ``reset`` makes a vCPU begin anew by an ioctl, where there is one.
    ``moves`` is what saving a whole vCPU needs.
    """

    arch: str
    vcpu: Callable[[Context], Vcpu]
    guest: Callable[[Context], BaseGuest]
    blank: Callable[[Context], Vcpu] | None = None
    reset: Callable[[Vcpu], None] | None = None
    moves: tuple[Need, ...] = ()
