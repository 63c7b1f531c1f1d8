# SPDX-License-Identifier: Apache-2.0
"""From a guest to its state and back, whole or not at all.

>>> state = capture(guest)
>>> with restore(kvm, state) as twin:
...     twin.resume()
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence

from vmm.arch import ARCHITECTURE
from vmm.guest.architecture import guest_type
from vmm.guest.base import BaseGuest
from vmm.guest.payload import Payload, load, names
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.state.architecture import here
from vmm.state.compare import Difference, memory_differences, vcpu_differences
from vmm.state.errors import StateRefused, printable
from vmm.state.policy import Policy
from vmm.state.stream.staging import Staging
from vmm.state.value import MemoryState, Part, PayloadIdentity, VcpuState, VmState
from vmm.state.vcpu import capture_vcpu, restore_vcpu

__all__ = [
    "capture",
    "capture_memory",
    "finish",
    "foreign",
    "identity",
    "judge",
    "prepare",
    "restore",
    "restore_memory",
    "verify_vcpu",
]


def identity(payload: Payload) -> PayloadIdentity:
    """Return what says that two payloads are the same: the name, and a digest of what is loaded where."""
    digest = hashlib.sha256()
    for address, data in payload.segments:
        digest.update(address.to_bytes(8, "little") + len(data).to_bytes(8, "little") + data)
    return PayloadIdentity(payload.name, digest.digest())


# --- capture --------------------------------------------------------------------------------------


def capture_memory(guest: BaseGuest) -> tuple[MemoryState, ...]:
    """Return the memory of a guest that does not run."""
    return tuple(MemoryState.of(memory.gpa, memory.current()) for memory in guest.vm.memories)


def _capabilities(vm: VirtualMachine) -> dict[str, Part]:
    """Return the part CAPS, which both architectures have: what was enabled, with its arguments."""
    enabled = {
        number: b"".join(a.to_bytes(8, "little") for a in values) for number, values in vm.capabilities.items()
    }
    return {"CAPS": enabled} if enabled else {}


def _enable(state: VmState) -> dict[int, tuple[int, ...]]:
    """Return the capabilities to enable; StateRefused for one that is not allowed in a saved state."""
    part = state.machine.get("CAPS", {})
    if isinstance(part, bytes):
        raise StateRefused("CAPS has to be a set of capabilities: the state is damaged")
    if strange := set(part) - here().CAPABILITIES:
        raise StateRefused(f"CAPS: capabilities {sorted(strange)} are not enabled for a state")
    return {
        number: tuple(int.from_bytes(value[at : at + 8], "little") for at in range(0, len(value), 8))
        for number, value in part.items()
    }


def capture(guest: BaseGuest, *, memory: bool = True) -> VmState:
    """Return the state of a guest that has left, all of it at one point in time.

    No vCPU runs, and what is pending of any of them is completed before the state of any is read.
    """
    guest.complete()
    vcpus = tuple(capture_vcpu(processor.vcpu) for processor in guest.processors)
    machine = {**_capabilities(guest.vm), **here().capture_machine(guest.vm)}
    about = {"kernel": platform.release(), "machine": platform.machine(), **here().about()}
    contents = capture_memory(guest) if memory else tuple(MemoryState(m.gpa, m.size) for m in guest.vm.memories)
    return VmState(ARCHITECTURE, vcpus, contents, machine, identity(guest.payload), about)


# --- restore --------------------------------------------------------------------------------------


def verify_vcpu(vcpu: Vcpu, state: VcpuState, policy: Policy | None = None) -> None:
    """Capture a restored vCPU again; StateRefused names all that is not what the state says."""
    judge(vcpu_differences(ARCHITECTURE, state, capture_vcpu(vcpu)), policy or Policy())


def judge(found: Sequence[Difference], policy: Policy) -> None:
    """Let the policy decide about what differs between a state and what was restored of it."""
    extra = [(difference.name, difference.only_second) for difference in found]
    policy.missing((name, value) for name, value in extra if value is not None)
    policy.refuse_all(
        (difference.name, f"saved and restored differ: {difference.values}")
        for difference in found
        if difference.only_second is None
    )


def foreign(state: VmState) -> bool:
    """Tell whether another kernel saved this state, which may know fewer registers."""
    return state.about.get("kernel", platform.release()) != platform.release()


def _payload(state: VmState, payload: Payload | None) -> Payload:
    if state.payload is None:
        raise StateRefused("the state does not say which payload its guest runs")
    if payload is None and state.payload.name not in names():
        raise StateRefused(
            f"the guest runs the payload {printable(state.payload.name)!r}, which did not come with this package: "
            "name its ELF file with --payload"
        )
    found = payload or load(state.payload.name)
    if identity(found) != state.payload:
        raise StateRefused(
            f"the payload {state.payload.name} here is another build than the one in the state: "
            "restore with the version that saved it"
        )
    return found


def prepare(kvm: Kvm, state: VmState, payload: Payload | None = None) -> BaseGuest:
    """Make an empty VM for a state: memory regions (all zero) and fresh vCPUs; nothing is restored yet.

    On x86 the guest permission for the state's dynamic components is requested.
    """
    if state.arch != ARCHITECTURE:
        raise StateRefused(f"this is a state of {state.arch}, the host is {ARCHITECTURE}")
    found = _payload(state, payload)
    if not state.memory or state.memory[0].gpa:
        raise StateRefused("guests here have memory at 0: this state has its first region elsewhere")
    identifiers = [vcpu.identifier for vcpu in state.vcpus]
    if identifiers != list(range(len(identifiers))) or not identifiers:
        raise StateRefused(f"guests here number their vCPUs from 0 on: this state has {identifiers[:8]}")
    for vcpu in state.vcpus:
        here().check_complete(vcpu.parts)
        here().permit(vcpu)
    regions = tuple((region.gpa, region.size) for region in state.memory)
    guest = guest_type().empty(kvm, found, regions, len(identifiers), _enable(state))
    return guest


def restore_memory(guest: BaseGuest, contents: Sequence[MemoryState]) -> None:
    """Write memory contents into the regions of the same addresses of a guest whose memory is zero."""
    memories = {memory.gpa: memory for memory in guest.vm.memories}
    for region in contents:
        for extent in region.extents:
            memories[region.gpa].write(extent.gpa, extent.data)


def finish(guest: BaseGuest, state: VmState, policy: Policy | None = None, *, verify: bool = True) -> None:
    """Write the vCPUs and the VM's parts of a state to a prepared guest, and capture them again to compare.

    No vCPU is read before all of them are written.
    """
    known = here()
    chosen = policy or Policy()
    chosen.foreign = foreign(state)
    pairs = [(processor.vcpu, vcpu) for processor, vcpu in zip(guest.processors, state.vcpus, strict=True)]
    for _, vcpu in pairs:
        known.check_complete(vcpu.parts)
    known.restore_machine(guest.vm, {name: part for name, part in state.machine.items() if name != "CAPS"})
    for fresh, vcpu in pairs:
        restore_vcpu(fresh, vcpu, chosen)
    if verify:
        for fresh, vcpu in pairs:
            verify_vcpu(fresh, vcpu, chosen)


def _wrong_memory(guest: BaseGuest, state: VmState, staging: Staging | None) -> str:
    if staging:
        return staging.wrong(guest.vm.memories)
    return next(map(str, memory_differences(state.memory, capture_memory(guest))), "")


def restore(
    kvm: Kvm,
    state: VmState,
    policy: Policy | None = None,
    *,
    payload: Payload | None = None,
    verify: bool = True,
    staging: Staging | None = None,
) -> BaseGuest:
    """Return a new guest with this state, ready to run; nothing remains if that fails.

    Raises StateRefused with the names of the registers that this KVM does not take or does not keep;
    ``policy`` says which of those the caller can live with. From ``staging``, where it was read to, the memory is
    moved and not copied: the state cannot be restored again.
    """
    guest = prepare(kvm, state, payload)
    try:
        if staging:
            staging.move_to(guest.vm.memories)
        else:
            restore_memory(guest, state.memory)
        finish(guest, state, policy, verify=verify)
        if verify and (found := _wrong_memory(guest, state, staging)):
            raise StateRefused(f"memory was not written as it is in the state: {found}")
    except BaseException:
        guest.close()
        raise
    return guest
