# SPDX-License-Identifier: Apache-2.0
"""Whether a state from a stranger may be shown to a kernel: checked in user space, before any ioctl.

A kernel checks what it is given, and has had faults there: a state that no vCPU can have never reaches it. What
only the kernel can know (which bits this CPU's registers have) is left to it. All that is refused is a
StreamError that names part and register.
"""

from __future__ import annotations

from vmm.state.arm64 import check as validate_arm64
from vmm.state.errors import StreamError
from vmm.state.parts import check_parts
from vmm.state.stream.container import ARCHITECTURES
from vmm.state.stream.memory import check_region
from vmm.state.value import PAGE, MemoryState, VcpuState, VmState
from vmm.state.x86 import check as validate_x86

__all__ = ["normalise", "validate"]

# Guest physical addresses have at most 52 bits on both architectures.
_ADDRESS_END = 1 << 52
_MAX_VCPUS, _MAX_REGIONS = 4096, 512
_CONTENTS = {"x86": validate_x86.check_contents, "arm64": validate_arm64.check_contents}


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
        _CONTENTS[state.arch](f"vCPU {vcpu.identifier}", vcpu.parts)


def _check_memory(memory: tuple[MemoryState, ...]) -> None:
    if len(memory) > _MAX_REGIONS:
        raise StreamError("memory", f"it has {len(memory)} regions, at most {_MAX_REGIONS} are taken")
    end = 0
    for region in sorted(memory, key=lambda region: region.gpa):
        where = f"the memory region at {region.gpa:#x}"
        if region.gpa % PAGE or region.size % PAGE or region.size <= 0 or region.gpa < 0:
            raise StreamError(where, f"{region.size} bytes are not whole pages")
        if region.gpa + region.size > _ADDRESS_END:
            raise StreamError(where, f"it ends behind {_ADDRESS_END:#x}, where no guest has memory")
        if region.gpa < end:
            raise StreamError(where, "it overlaps another one")
        end = region.gpa + region.size
        try:
            check_region(region)
        except ValueError as error:
            raise StreamError(where, str(error)) from error


def normalise(state: VmState) -> tuple[VmState, list[str]]:
    """Return a state without what its own IA32_XFD disables, and a sentence about each component cleared.

    Only x86 has such a thing: XSTATE_BV that names a component whose bit is set in IA32_XFD. A KVM with the fix
    of CVE-2026-23005 drops that component's contents by itself; without it such a state must never get there.
    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave.
    """
    if state.arch != "x86":
        return state, []
    vcpus: list[VcpuState] = []
    notes: list[str] = []
    for vcpu in state.vcpus:
        cleaned, found = validate_x86.without_disabled(vcpu)
        vcpus.append(cleaned)
        notes += found
    if not notes:
        return state, []
    return VmState(state.arch, tuple(vcpus), state.memory, state.machine, state.payload, state.about), notes
