# SPDX-License-Identifier: Apache-2.0
"""The running architecture's guest and its chain payload, as types that hold for every architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from vmm.arch import module
from vmm.guest.base import BaseGuest
from vmm.guest.layout import Regions
from vmm.kvm.system import Kvm

__all__ = ["Chains", "chains", "guest_type"]


class Chains(Protocol):
    """A module ``vmm.ARCHITECTURE.chain``: the levels of the chain payload, its guests and its digests."""

    LEVELS: tuple[str, ...]

    def available(self, kvm: Kvm) -> list[str]: ...

    def best(self, kvm: Kvm) -> str: ...

    def permit(self, kvm: Kvm) -> None: ...

    def make_guest(
        self, kvm: Kvm, level: str, steps: int, seed: int, *, memory_size: int = ..., regions: Regions | None = None,
        vcpus: int = 1,
    ) -> BaseGuest: ...  # fmt: skip

    def reference(self, level: str, steps: int, seed: int) -> bytes: ...

    def seeds(self, seed: int, vcpus: int) -> Sequence[int]: ...


def guest_type() -> type[BaseGuest]:
    """Return the class of guests of the running architecture."""
    return cast("type[BaseGuest]", module("guest").Guest)


def chains() -> Chains:
    """Return the chain payload of the running architecture."""
    return cast(Chains, module("chain"))
