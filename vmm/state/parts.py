# SPDX-License-Identifier: Apache-2.0
"""Which parts a state has on each architecture, and what shape each is; known on every host.

The parts are those of the steps in vmm.state.x86.steps and vmm.state.arm64.steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmm.state.errors import StreamError
from vmm.state.value import Part, VmState

__all__ = ["CAPABILITIES", "MACHINE", "VCPU", "Shape", "check_known", "check_parts", "check_vcpu"]

_REGISTERS = 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """A part of ``smallest`` to ``largest`` bytes, a multiple of ``unit``; with ``largest`` 0 a set of registers, of
    ``register`` bytes each or, with 0, of any size."""

    smallest: int = 0
    largest: int = 0
    unit: int = 1
    register: int = 0
    required: bool = True

    def check(self, where: str, part: Part) -> None:
        """Raise StreamError for a part of another shape."""
        if not isinstance(part, bytes):
            if self.largest:
                raise StreamError(where, "it is a set of registers but has to be bytes")
            self._check_registers(where, part)
        elif not self.largest:
            raise StreamError(where, "it is bytes but has to be a set of registers")
        elif not self.smallest <= len(part) <= self.largest:
            least = "" if self.smallest == self.largest else f"{self.smallest} to "
            raise StreamError(where, f"it has {len(part)} bytes and not {least}{self.largest}")
        elif len(part) % self.unit:
            raise StreamError(where, f"{len(part)} bytes are not whole entries of {self.unit} bytes")

    def _check_registers(self, where: str, registers: Mapping[int, bytes]) -> None:
        if not 0 < len(registers) <= _REGISTERS:
            raise StreamError(where, f"it has {len(registers)} registers and not 1 to {_REGISTERS}")
        for number, value in registers.items():
            if not 0 <= number < 1 << 64 or (self.register and len(value) != self.register):
                raise StreamError(where, f"register {number:#x} has {len(value)} bytes and not {self.register}")


def _bytes(size: int, *, required: bool = True) -> Shape:
    return Shape(size, size, required=required)


# Sizes: struct kvm_* in arch/{x86,arm64}/include/uapi/asm/kvm.h; CPUID has 1 to 256 entries of 40 bytes.
VCPU: dict[str, dict[str, Shape]] = {
    "x86": {
        "CPUID": Shape(40, 256 * 40, 40),
        "TSC_KHZ": _bytes(4, required=False),
        "SREGS": _bytes(320),
        "XCRS": _bytes(392),
        "XFD": Shape(register=8, required=False),
        "XSAVE": Shape(4096, 1 << 14),
        "LAPIC": _bytes(1024, required=False),
        "MSRS": Shape(register=8),
        "ONE_REGS": Shape(required=False),
        "TSC": Shape(register=8),
        "REGS": _bytes(144),
        "DEBUGREGS": _bytes(128),
        "MP_STATE": _bytes(4),
        "EVENTS": _bytes(64),
    },
    "arm64": {
        "INIT": _bytes(32),
        "VLS": _bytes(64, required=False),
        "FINALIZE": _bytes(4, required=False),
        "LIST": Shape(8, _REGISTERS * 8, 8),
        "IDREGS": Shape(),
        "FIRMWARE": Shape(),
        "CORE": Shape(),
        "VECTORS": Shape(),
        "SYSREGS": Shape(),
        "COUNTERS": Shape(required=False),
        "CACHES": Shape(required=False),
        "EVENTS": _bytes(64),
        "MP_STATE": _bytes(4),
    },
}
MACHINE: dict[str, dict[str, Shape]] = {
    "x86": {"CAPS": Shape(required=False), "CLOCK": _bytes(8)},
    "arm64": {"CAPS": Shape(required=False)},
}
# What a VM may have enabled for its state: KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT.
CAPABILITIES: dict[str, frozenset[int]] = {"x86": frozenset({164, 218}), "arm64": frozenset()}
_ARGUMENTS = 4


def check_parts(state: VmState) -> None:
    """Raise StreamError unless the VM and every vCPU have the parts they need, no others, each of its shape."""
    _check("the VM", MACHINE[state.arch], state.machine)
    _check_capabilities(state)
    for vcpu in state.vcpus:
        check_vcpu(state.arch, vcpu.identifier, vcpu.parts)


def check_vcpu(arch: str, identifier: int, parts: Mapping[str, Part]) -> None:
    """Raise StreamError unless a vCPU has the parts it needs, no others, each of its shape."""
    _check(f"vCPU {identifier}", VCPU[arch], parts)


def check_known(arch: str, name: str, part: Part, where: str) -> bool:
    """Tell whether a part of this name is known on an architecture; StreamError if it has another shape."""
    shape = VCPU[arch].get(name) or MACHINE[arch].get(name)
    if shape is not None:
        shape.check(where, part)
    return shape is not None


def _check(where: str, shapes: Mapping[str, Shape], parts: Mapping[str, Part]) -> None:
    if unknown := [name for name in parts if name not in shapes]:
        raise StreamError(where, f"it has parts unknown to this version: {', '.join(unknown)}")
    if missing := [name for name, shape in shapes.items() if shape.required and name not in parts]:
        raise StreamError(where, f"it is incomplete, it lacks {', '.join(missing)}")
    for name, part in parts.items():
        shapes[name].check(f"{where}, {name}", part)


def _check_capabilities(state: VmState) -> None:
    part = state.machine.get("CAPS", {})
    assert not isinstance(part, bytes)
    for number, arguments in part.items():
        if number not in CAPABILITIES[state.arch]:
            raise StreamError("the VM, CAPS", f"capability {number} is not allowed in a saved state")
        if len(arguments) % 8 or len(arguments) > 8 * _ARGUMENTS:
            raise StreamError("the VM, CAPS", f"capability {number} has {len(arguments)} bytes of arguments")
