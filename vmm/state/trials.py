# SPDX-License-Identifier: Apache-2.0
"""The order matrix of this host: restores of one unsettled vCPU in the orders that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmm.guest.architecture import guest_type
from vmm.guest.base import BaseGuest
from vmm.kvm.system import Kvm
from vmm.state import capture
from vmm.state.compare import vcpu_differences
from vmm.state.errors import StateRefused
from vmm.state.meant import Meant, architecture, lost
from vmm.state.order import Matrix, Trial, discover, judge
from vmm.state.value import VmState
from vmm.state.vcpu import capture_vcpu, restore_vcpu, steps

__all__ = ["attempt", "measure", "unsettled"]

_SHOWN = 3


def unsettled(kvm: Kvm, seed: int) -> BaseGuest:
    """Return a guest with all it may have, whose state differs from a fresh one's wherever KVM lets it; never run it.

    On x86 the guest permission for dynamic components is requested where KVM offers one.
    """
    return _unsettled(kvm, seed)[0]


def _unsettled(kvm: Kvm, seed: int) -> tuple[BaseGuest, Meant]:
    """Return such a guest with what its state was meant to be."""
    ways = architecture()
    ways.before(kvm)
    guest = guest_type()(kvm, "hello", **ways.ARGUMENTS)
    try:
        guest.prepare(guest.payload.entry)
        return guest, ways.unsettle(guest, seed)
    except BaseException:
        guest.close()
        raise


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

    Returns it with the state it was measured with. What of that is not as it was meant is in the result's ``lost``: a
    KVM that loses it whenever it is written restores it as well as any other in every order. What is expected of the
    order is what the steps say. StateRefused if not even our own order restores it.
    """
    guest, meant = _unsettled(kvm, seed)
    with guest:
        state = capture.capture(guest)
    restore, done = attempt(kvm, state), 0

    def counted(order: Sequence[str]) -> str | None:
        nonlocal done
        result = restore(order)
        done += 1
        progress(done)
        return result

    names = [step.name for step in steps() if step.name in state.vcpus[0].parts]
    try:
        matrix = discover(names, counted, samples=samples, seed=seed)
    except ValueError as error:
        raise StateRefused(f"this KVM does not restore such a vCPU at all: {error}") from error
    matrix.lost = lost(state.arch, meant, state.vcpus[0])
    parts = state.vcpus[0].parts
    known = [(one, (one.step, step.name)) for step in steps() for one in step.after]
    known = [(one, pair) for one, pair in known if pair[0] in parts and pair[1] in parts]
    judge(matrix, [pair for _, pair in known], [pair for one, pair in known if one.always(parts)])
    return matrix, state
