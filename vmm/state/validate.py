# SPDX-License-Identifier: Apache-2.0
"""Whether a state from a stranger may be shown to a kernel: checked in user space, before any ioctl.

A kernel checks what it is given, and has had faults there: a state that no vCPU can have never reaches it. What
only the kernel can know (which bits this CPU's registers have) is left to it. All that is refused is a
StreamError that names part and register.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmm.state.architecture import ARCHITECTURES, of, pieces
from vmm.state.errors import StreamError
from vmm.state.parts import check_parts
from vmm.state.stream.memory import check_region
from vmm.state.value import PAGE, MemoryState, Part, VcpuState, VmState

__all__ = ["check_readable", "normalise", "validate"]

# Guest physical addresses have at most 52 bits on both architectures.
_ADDRESS_END = 1 << 52
_MAX_VCPUS, _MAX_REGIONS = 4096, 512


def validate(state: VmState) -> None:
    """Raise StreamError unless this could be the state of a VM, of whatever architecture."""
    if state.arch not in ARCHITECTURES:
        raise StreamError("the state", f"architecture {state.arch} is not known")
    _check_memory(state.memory)
    if not 0 < len(state.vcpus) <= _MAX_VCPUS:
        raise StreamError("the state", f"it has {len(state.vcpus)} vCPUs, a VM has 1 to {_MAX_VCPUS}")
    if len({vcpu.identifier for vcpu in state.vcpus}) < len(state.vcpus):
        raise StreamError("the state", "two vCPUs have the same identifier")
    check_parts(state)
    for vcpu in state.vcpus:
        for name, piece in pieces(state.arch).items():
            if name in vcpu.parts:
                piece.check(f"vCPU {vcpu.identifier}, {name}", vcpu.parts)


def check_readable(arch: str, where: str, name: str, parts: Mapping[str, Part]) -> None:
    """Raise StreamError for a part that cannot be described beside the others in ``parts``; all have their shapes."""
    if name in pieces(arch):
        pieces(arch)[name].check_readable(where, parts)


def _check_memory(memory: tuple[MemoryState, ...]) -> None:
    if len(memory) > _MAX_REGIONS:
        raise StreamError("memory", f"it has {len(memory)} regions, at most {_MAX_REGIONS} are taken")
    end = 0
    for region in sorted(memory, key=lambda region: region.gpa):
        where = f"the memory region at {region.gpa:#x}"
        if region.gpa % PAGE or region.size % PAGE or region.size <= 0 or region.gpa < 0:
            raise StreamError(where, f"{region.size} bytes are not whole pages")
        if region.gpa + region.size > _ADDRESS_END:
            raise StreamError(where, f"it ends beyond {_ADDRESS_END:#x}, where no guest has memory")
        if region.gpa < end:
            raise StreamError(where, "it overlaps another one")
        end = region.gpa + region.size
        try:
            check_region(region)
        except ValueError as error:
            raise StreamError(where, str(error)) from error


def normalise(state: VmState) -> tuple[VmState, list[str]]:
    """Return a state without what its own registers disable, and a sentence about each component cleared.

    Only x86 has such a thing: see vmm.state.x86.area.without_disabled.
    """
    vcpus: list[VcpuState] = []
    notes: list[str] = []
    for vcpu in state.vcpus:
        cleaned, found = of(state.arch).without_disabled(vcpu)
        vcpus.append(cleaned)
        notes += found
    if not notes:
        return state, []
    return VmState(state.arch, tuple(vcpus), state.memory, state.machine, state.payload, state.about), notes
