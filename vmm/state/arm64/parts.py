# SPDX-License-Identifier: Apache-2.0
"""The state of an arm64 vCPU and its VM: every piece, declared once, in the order of a restore."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace

from vmm._kvm import ffi, lib
from vmm.arm64.registers import VLS, Group, Register
from vmm.arm64.vcpu import Feature, get_vls
from vmm.arm64.vls import VectorLengths
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import errno_name
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.state.arm64.events import Events, untold
from vmm.state.arm64.registers import RegisterList, Registers, group_of, identifiers, lengths
from vmm.state.errors import StateRefused
from vmm.state.piece import ANY, Follows, Piece, Reading, Row, Structure, one_reg_calls, raw
from vmm.state.shape import Shape
from vmm.state.value import Part, VcpuState

__all__ = [
    "CAPABILITIES",
    "CAPTURE_ORDER",
    "MACHINE",
    "PIECES",
    "about",
    "capture_machine",
    "check_complete",
    "permit",
    "restore_machine",
    "without_disabled",
]

_INIT = struct.Struct("<8I")


class _Chosen(Piece):
    """What the VMM chose at the vCPU's set-up and no call tells."""

    chosen = True

    def __init__(self, name: str, size: int, *after: Follows, required: bool = True) -> None:
        calls = ("none: the VMM chose it", f"KVM_ARM_VCPU_{name}")
        super().__init__(name, calls, Shape.exactly(size, required=required), *after)

    def read(self, vcpu: Vcpu) -> Reading | None:
        part = vcpu.chosen.get(self.name)
        return None if part is None else Reading([], lambda calls: part)


class _Init(_Chosen):
    """The target and the features."""

    def write(self, part: Part) -> list[Row]:
        value = ffi.new("struct kvm_vcpu_init *")
        ffi.memmove(value, raw(self.name, part, _INIT.size), _INIT.size)
        return [(lib.KVM_ARM_VCPU_INIT, value, ANY)]

    def why(self, state: VcpuState, name: str) -> str:
        target, *words = _INIT.unpack(raw(self.name, state.parts[self.name], _INIT.size))
        names = [feature.name for feature in Feature if words[0] >> feature & 1]
        return f": target {target} with {', '.join(names) or 'no features'}, of which this host lacks some"

    def describe(self, part: Part, parts: Mapping[str, Part]) -> dict[str, str]:
        target, *words = _INIT.unpack(raw(self.name, part, _INIT.size))
        return {"target": str(target), "features": " ".join(f"{word:#x}" for word in words)}

    def check(self, where: str, parts: Mapping[str, Part]) -> None:
        """SVE, VLS and FINALIZE fit together."""
        lengths(where, parts)


class _Finalize(_Chosen):
    """The features that were finalized, as bits."""

    def write(self, part: Part) -> list[Row]:
        done = int.from_bytes(raw(self.name, part, 4), "little")
        return [(lib.KVM_ARM_VCPU_FINALIZE, ffi.new("int *", feature), ANY) for feature in bits(done)]


class _Vls(Piece):
    """The set of vector lengths, of a vCPU with SVE."""

    def __init__(self, *after: Follows) -> None:
        shape = Shape.exactly(VLS.size, required=False)
        super().__init__("VLS", ("KVM_GET_ONE_REG", "KVM_SET_ONE_REG"), shape, *after)

    def read(self, vcpu: Vcpu) -> Reading | None:
        words = int.from_bytes(vcpu.chosen.get("INIT", b"")[4:], "little")
        if not words >> Feature.SVE & 1:
            return None
        calls = one_reg_calls(lib.KVM_GET_ONE_REG, [VLS], bytes(VLS.size))
        data = ffi.buffer(calls.buffer)
        return Reading(calls, lambda made: data[:])

    def write(self, part: Part) -> list[Row]:
        return one_reg_calls(lib.KVM_SET_ONE_REG, [VLS], raw(self.name, part, VLS.size))

    def refused(self, vcpu: Vcpu, state: VcpuState, row: int, result: int) -> list[tuple[str, str]]:
        wanted = VectorLengths.decode(raw(self.name, state.parts[self.name]))
        raise StateRefused(
            f"VLS: the guest's vector lengths {wanted} are refused with {errno_name(-result)}, this host has "
            f"{get_vls(vcpu)}: it needs all of them and no other below the largest"
        )

    def describe(self, part: Part, parts: Mapping[str, Part]) -> dict[str, str]:
        return {self.name: str(VectorLengths.decode(raw(self.name, part, VLS.size)))}


_API = "Documentation/virt/kvm/api.rst, 4.82 KVM_ARM_VCPU_INIT and 4.119 KVM_ARM_VCPU_FINALIZE"
_FEATURES = "Documentation/virt/kvm/arm/vcpu-features.rst"
_AFTER_INIT = Follows("INIT", "an uninitialised vCPU has no registers", _API)
_AFTER_FINALIZE = Follows("FINALIZE", "SVE registers exist when the vector lengths are final", _API)


def _always(follows: Follows) -> Follows:
    """What every KVM enforces, whatever the state."""
    return replace(follows, always=lambda parts: True)


_AFTER_IDREGS = Follows("IDREGS", "the ID registers decide which other registers and bits exist", _FEATURES)

PIECES: tuple[Piece, ...] = (
    _Init("INIT", _INIT.size),
    _Vls(_always(Follows("INIT", "INIT resets the vector lengths", "arch/arm64/kvm/reset.c, kvm_vcpu_enable_sve"))),
    _Finalize("FINALIZE", 4, _AFTER_INIT, _always(Follows("VLS", "the vector lengths can no longer change", _API)),
              required=False),
    Registers("IDREGS", {Group.SYSREG}, _always(_AFTER_INIT), _AFTER_FINALIZE),
    Registers("FIRMWARE", {Group.FIRMWARE, Group.BITMAP}, _always(_AFTER_INIT), _AFTER_IDREGS),
    RegisterList(
        Follows("IDREGS", "which registers exist depends on them", "arch/arm64/kvm/sys_regs.c, walk_one_sys_reg"),
        _AFTER_FINALIZE,
    ),
    Registers("CORE", {Group.CORE}, _always(_AFTER_INIT), _AFTER_IDREGS),
    Registers("VECTORS", {Group.CORE, Group.SVE}, _AFTER_INIT, _always(_AFTER_FINALIZE), _AFTER_IDREGS),
    Registers("SYSREGS", {Group.SYSREG}, _always(_AFTER_INIT), _AFTER_FINALIZE, _AFTER_IDREGS),
    Registers("COUNTERS", {Group.SYSREG}, _AFTER_INIT, required=False),
    Registers("CACHES", {Group.DEMUX}, _AFTER_INIT, _AFTER_IDREGS, required=False),
    Events(
        _AFTER_INIT,
        Follows("CORE", "a pending abort may change PC and PSTATE at once",
                "arch/arm64/kvm/guest.c, __kvm_arm_vcpu_set_events"),
        Follows("SYSREGS", "and ESR_EL1 and FAR_EL1", "arch/arm64/kvm/guest.c, __kvm_arm_vcpu_set_events"),
    ),
    Structure("MP_STATE", "kvm_mp_state", 4, _AFTER_INIT),
)  # fmt: skip

_REQUIRED = tuple(piece.name for piece in PIECES if piece.shape.required)
CAPTURE_ORDER: tuple[str, ...] = (
    "INIT", "MP_STATE", "VLS", "FINALIZE", "LIST", "IDREGS", "FIRMWARE", "CORE", "VECTORS", "SYSREGS", "CACHES",
    "EVENTS", "COUNTERS",
)  # fmt: skip

# What a state may have enabled on its VM: nothing yet.
CAPABILITIES: frozenset[int] = frozenset()
MACHINE: Mapping[str, Shape] = {"CAPS": Shape(required=False)}


def capture_machine(vm: VirtualMachine) -> Mapping[str, Part]:
    """Return the parts that belong to the VM: none, its ID registers come with the vCPU.

    StateRefused for a VM with memory tags, which are part of no state.
    """
    if lib.KVM_CAP_ARM_MTE in vm.capabilities:
        raise StateRefused("the guest's memory has tags (KVM_CAP_ARM_MTE is enabled): memory tags cannot be saved")
    return {}


def restore_machine(vm: VirtualMachine, parts: Mapping[str, Part]) -> None:
    """Write the parts that belong to the VM; StateRefused if there are any."""
    if parts:
        raise StateRefused(f"the state has VM-wide parts that are not known: {', '.join(parts)}")


def check_complete(parts: Mapping[str, Part]) -> None:
    """Raise StateRefused if a part is missing or a register that the state itself lists, or for untold events."""
    if missing := [name for name in _REQUIRED if name not in parts]:
        raise StateRefused(f"the state is incomplete, it lacks {', '.join(missing)}")
    words = _INIT.unpack(raw("INIT", parts["INIT"], _INIT.size))
    if words[1] >> Feature.SVE & 1 and ("VLS" not in parts or "FINALIZE" not in parts):
        raise StateRefused("the state is incomplete, it lacks VLS or FINALIZE of a guest with SVE")
    held: set[int] = {VLS} if "VLS" in parts else set()
    for part in parts.values():
        if not isinstance(part, bytes):
            held |= set(part)
    listed = identifiers(parts["LIST"])
    if missing := [f"{group_of(number)}.{Register(number).name}" for number in sorted(listed ^ held)]:
        raise StateRefused(f"the state and its own register list do not agree about {', '.join(missing)}")
    if found := untold(parts):
        raise StateRefused(f"EVENTS: {found}")


def without_disabled(vcpu: VcpuState) -> tuple[VcpuState, list[str]]:
    """Return the vCPU as it is: no register of an arm64 vCPU disables what another one holds."""
    return vcpu, []


def permit(vcpu: VcpuState) -> None:
    """Nothing: arm64 has no permissions to request."""


def about() -> dict[str, str]:
    """Return what a state says about its host: the frequency of the counter, which no KVM can change."""
    return {"counter_hz": str(lib.vmm_host_cntfrq())}
