# SPDX-License-Identifier: Apache-2.0
"""What an architecture has to know of its states, as a type; and which modules know it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Protocol, cast

from vmm.arch import ARCHITECTURE, module
from vmm.kvm.vm import VirtualMachine
from vmm.state.errors import StateRefused
from vmm.state.piece import Piece
from vmm.state.shape import Shape
from vmm.state.value import Part, VcpuState

__all__ = ["ARCHITECTURES", "Architecture", "here", "of", "pieces"]

ARCHITECTURES = ("x86", "arm64")


class Architecture(Protocol):
    """A module ``vmm.state.ARCHITECTURE.parts``. It can be imported on every host.

    ``PIECES`` are in the order of a restore, ``CAPTURE_ORDER`` has their names in that of a capture; ``MACHINE`` are
    the shapes of the parts that belong to the VM. ``CAPABILITIES`` may have been enabled on the VM of a state.
    """

    PIECES: tuple[Piece, ...]
    CAPTURE_ORDER: tuple[str, ...]
    MACHINE: Mapping[str, Shape]
    CAPABILITIES: frozenset[int]

    def check_complete(self, parts: Mapping[str, Part]) -> None:
        """Raise StateRefused if a part is missing, or the guest uses what is not captured."""

    def without_disabled(self, vcpu: VcpuState) -> tuple[VcpuState, list[str]]:
        """Return the vCPU without what its own registers disable, and a sentence about each thing left out."""

    def capture_machine(self, vm: VirtualMachine) -> Mapping[str, Part]:
        """Return the parts that belong to the VM, beside the capabilities that were enabled."""

    def restore_machine(self, vm: VirtualMachine, parts: Mapping[str, Part]) -> None:
        """Write the parts that belong to the VM; StateRefused if they are others."""

    def permit(self, vcpu: VcpuState) -> None:
        """Request the guest permissions that a vCPU's state needs; StateRefused without them."""

    def about(self) -> dict[str, str]:
        """Return what a state says about its host, beside the kernel."""


@cache
def of(arch: str) -> Architecture:
    """Return what is known of the states of an architecture."""
    return cast(Architecture, module("parts", "state", arch))


@cache
def pieces(arch: str) -> Mapping[str, Piece]:
    """Return the pieces of a vCPU's state on an architecture by name, in the order of a restore."""
    return {piece.name: piece for piece in of(arch).PIECES}


def here() -> Architecture:
    """Return what is known of the states of the running architecture; StateRefused if nothing is."""
    if ARCHITECTURE not in ARCHITECTURES:
        raise StateRefused(f"states of {ARCHITECTURE} are not known here")
    return of(ARCHITECTURE)
