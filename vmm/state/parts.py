# SPDX-License-Identifier: Apache-2.0
"""Whether a state has the parts it needs, no others, each of its shape: the same answer on every host."""

from __future__ import annotations

from collections.abc import Mapping

from vmm.state.architecture import of, pieces
from vmm.state.errors import StreamError
from vmm.state.shape import Shape
from vmm.state.value import Part, VmState

__all__ = ["check_known", "check_parts", "check_vcpu", "vcpu_shapes"]

_ARGUMENTS = 4


def vcpu_shapes(arch: str) -> dict[str, Shape]:
    """Return the shapes of a vCPU's parts on an architecture, in the order of a restore."""
    return {name: piece.shape for name, piece in pieces(arch).items()}


def check_parts(state: VmState) -> None:
    """Raise StreamError unless the VM and every vCPU have the parts they need, no others, each of its shape."""
    _check("the VM", of(state.arch).MACHINE, state.machine)
    _check_capabilities(state)
    for vcpu in state.vcpus:
        check_vcpu(state.arch, vcpu.identifier, vcpu.parts)


def check_vcpu(arch: str, identifier: int, parts: Mapping[str, Part]) -> None:
    """Raise StreamError unless a vCPU has the parts it needs, no others, each of its shape."""
    _check(f"vCPU {identifier}", vcpu_shapes(arch), parts)


def check_known(arch: str, name: str, part: Part, where: str) -> bool:
    """Tell whether a part of this name is known on an architecture; StreamError if it has another shape."""
    piece = pieces(arch).get(name)
    shape = piece.shape if piece else of(arch).MACHINE.get(name)
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
        if number not in of(state.arch).CAPABILITIES:
            raise StreamError("the VM, CAPS", f"capability {number} is not allowed in a saved state")
        if len(arguments) % 8 or len(arguments) > 8 * _ARGUMENTS:
            raise StreamError("the VM, CAPS", f"capability {number} has {len(arguments)} bytes of arguments")
