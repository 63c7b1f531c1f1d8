# SPDX-License-Identifier: Apache-2.0
"""What a vCPU's state was meant to be, held against what KVM gives back.

A setter that loses a value loses it in every restore too, so that a state that was captured and restored equals
itself: only what was meant shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from vmm.arch import module
from vmm.guest.base import BaseGuest
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.state.compare import vcpu_differences
from vmm.state.value import Part, VcpuState

__all__ = ["Meant", "Unsettled", "architecture", "joined", "lost", "registers"]

# By part: what makes of the part that was captured the one that was meant, of which it may say only some registers.
Meant = Mapping[str, Callable[[Part], Part]]


class Unsettled(Protocol):
    """A module ``vmm.state.ARCHITECTURE.unsettled``. ``ARGUMENTS`` are for the guest's class.

    ``unsettle`` changes all it can of a vCPU that never runs, ``mark`` what guests of the chain payload do not use.
    """

    ARGUMENTS: Mapping[str, Any]

    def before(self, kvm: Kvm) -> None: ...

    def unsettle(self, guest: BaseGuest, seed: int) -> Meant: ...

    def mark(self, vcpu: Vcpu) -> Meant: ...


def architecture() -> Unsettled:
    """Return the module of the architecture that runs here."""
    return cast(Unsettled, module("unsettled", "state"))


def registers(values: Mapping[int, bytes]) -> Callable[[Part], Part]:
    """Some registers of a part that is a set of registers; one that the part lacks counts as different."""

    def meant(part: Part) -> Part:
        assert not isinstance(part, bytes)
        return {**part, **values}

    return meant


def joined(values: Mapping[str, Mapping[int, bytes]]) -> Meant:
    """Registers by part, where all parts are sets of registers."""
    return {name: registers(found) for name, found in values.items()}


def lost(arch: str, meant: Meant, found: VcpuState) -> list[str]:
    """Return what of ``meant`` is otherwise in a captured state, by register, with both values."""
    parts = {name: change(found.parts[name]) for name, change in meant.items() if name in found.parts}
    missing = [f"{name}: not captured" for name in meant if name not in found.parts]
    wanted = VcpuState({**found.parts, **parts}, found.identifier)
    return missing + [f"{one.name}: {one.values}" for one in vcpu_differences(arch, wanted, found)]
