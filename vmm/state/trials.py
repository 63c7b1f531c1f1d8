# SPDX-License-Identifier: Apache-2.0
"""The order matrix of this host: restores of one unsettled vCPU in the orders that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from vmm.arch import module
from vmm.guest.architecture import guest_type
from vmm.guest.base import BaseGuest
from vmm.kvm.system import Kvm
from vmm.state import capture
from vmm.state.compare import vcpu_differences
from vmm.state.errors import StateRefused
from vmm.state.order import Matrix, Trial, discover
from vmm.state.value import VmState
from vmm.state.vcpu import capture_vcpu, restore_vcpu, steps

__all__ = ["Unsettled", "attempt", "measure", "unsettled"]

_SHOWN = 3


class Unsettled(Protocol):
    """A module ``vmm.state.ARCHITECTURE.unsettled``. ``ARGUMENTS`` are for the guest's class."""

    ARGUMENTS: Mapping[str, Any]

    def before(self, kvm: Kvm) -> None: ...

    def unsettle(self, guest: BaseGuest, seed: int) -> None: ...


def unsettled(kvm: Kvm, seed: int) -> BaseGuest:
    """Return a guest with all it may have, whose state differs from a fresh one's wherever KVM lets it; never run it.

    On x86 the guest permission for dynamic components is requested where KVM offers one.
    """
    architecture = cast(Unsettled, module("unsettled", "state"))
    architecture.before(kvm)
    guest = guest_type()(kvm, "hello", **architecture.ARGUMENTS)
    try:
        guest.prepare(guest.payload.entry)
        architecture.unsettle(guest, seed)
    except BaseException:
        guest.close()
        raise
    return guest


def attempt(kvm: Kvm, state: VmState) -> Trial:
    """Return what restores ``state`` in an order into a VM of its own, compares, and never runs it."""

    def restore(order: Sequence[str]) -> str | None:
        with capture.prepare(kvm, state) as guest:
            try:
                restore_vcpu(guest.vcpu, state.vcpus[0], order=order)
                found = vcpu_differences(state.arch, state.vcpus[0], capture_vcpu(guest.vcpu))
            except StateRefused as error:
                return str(error)
            if not found:
                return None
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            return "lost: " + ", ".join(difference.name for difference in found[:_SHOWN]) + more

    return restore


def measure(
    kvm: Kvm, *, samples: int, seed: int, progress: Callable[[int], None] = lambda done: None
) -> tuple[Matrix, VmState]:
    """Measure the partial order of a restore on this KVM; ``progress(n)`` is called after the n-th trial.

    Returns it with the state it was measured with.
    """
    with unsettled(kvm, seed) as guest:
        state = capture.capture(guest)
    restore, done = attempt(kvm, state), 0

    def counted(order: Sequence[str]) -> str | None:
        nonlocal done
        result = restore(order)
        done += 1
        progress(done)
        return result

    names = [step.name for step in steps() if step.name in state.vcpus[0].parts]
    return discover(names, counted, samples=samples, seed=seed), state
