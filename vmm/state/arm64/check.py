# SPDX-License-Identifier: Apache-2.0
"""Whether the parts of an arm64 vCPU's state fit together: register ids, vector lengths, what lies beyond them."""

from __future__ import annotations

from collections.abc import Mapping

from vmm.arm64.registers import Register
from vmm.arm64.vls import ARCHITECTURAL_MAX, VectorLengths
from vmm.state.errors import StreamError
from vmm.state.value import Part, VcpuState

__all__ = ["check_contents", "check_readable", "without_disabled"]

_ARM64 = 0x60
_CORE, _DEMUX, _SYSREG, _FW, _SVE, _BITMAP = 0x10, 0x11, 0x13, 0x14, 0x15, 0x16
# Which groups of registers a part may hold: vmm.state.arm64.steps.group_of.
_GROUPS = {
    "IDREGS": {_SYSREG}, "SYSREGS": {_SYSREG}, "COUNTERS": {_SYSREG}, "FIRMWARE": {_FW, _BITMAP}, "CORE": {_CORE},
    "VECTORS": {_CORE, _SVE}, "CACHES": {_DEMUX},
}  # fmt: skip
_SVE_BIT = 1 << 4  # KVM_ARM_VCPU_SVE, in the features of INIT and in FINALIZE
_Z_BYTES, _P_BYTES, _VLS_LOW = 256, 32, 0xFFFF
# V0 to V31 in struct kvm_regs, in units of 32 bits.
_V = range(0x54, 0xD4)


def check_contents(where: str, parts: Mapping[str, Part]) -> None:
    """Raise StreamError for what no vCPU has; the parts have their shapes already."""
    lengths = _lengths(where, parts)
    for name, groups in _GROUPS.items():
        part = parts.get(name, {})
        assert not isinstance(part, bytes)
        for identifier, value in part.items():
            _check_register(f"{where}, {name}", Register(identifier), value, groups)
            _check_vector(f"{where}, {name}", Register(identifier), value, lengths)


def check_readable(where: str, name: str, parts: Mapping[str, Part]) -> None:
    """Raise nothing: every part of an arm64 state is read by itself."""


def without_disabled(vcpu: VcpuState) -> tuple[VcpuState, list[str]]:
    """Return the vCPU as it is: no register of an arm64 vCPU disables what another one holds."""
    return vcpu, []


def _lengths(where: str, parts: Mapping[str, Part]) -> VectorLengths | None:
    """The vector lengths of a vCPU with SVE, None of one without."""
    init, finalize, register = parts["INIT"], parts.get("FINALIZE", bytes(4)), parts.get("VLS")
    assert isinstance(init, bytes) and isinstance(finalize, bytes)
    chosen = int.from_bytes(init[4:8], "little") & _SVE_BIT
    final = int.from_bytes(finalize, "little") & _SVE_BIT
    if bool(chosen) != (register is not None) or chosen != final:
        raise StreamError(f"{where}, INIT", "SVE, VLS and FINALIZE must be present together or not at all")
    if register is None:
        return None
    assert isinstance(register, bytes)
    lengths = VectorLengths.decode(register)
    if not lengths or lengths.maximum > ARCHITECTURAL_MAX:
        raise StreamError(
            f"{where}, VLS",
            f"vector lengths {lengths} in quadwords: there is at least one, of 1 to {ARCHITECTURAL_MAX}",
        )
    return lengths


def _check_register(where: str, register: Register, value: bytes, groups: set[int]) -> None:
    number = int(register)
    if number >> 56 != _ARM64 or number >> 28 & 0xFFFFFF:
        raise StreamError(where, f"{number:#x} is not an arm64 register id")
    if register.size != len(value):
        raise StreamError(where, f"register {register} has {register.size} bytes by its id, and {len(value)} here")
    if register.group not in groups:
        raise StreamError(where, f"register {register} ({number:#x}) belongs to another part")


def _check_vector(where: str, register: Register, value: bytes, lengths: VectorLengths | None) -> None:
    low = register & 0xFFFF
    if register.group == _CORE and low in _V and lengths is not None:
        raise StreamError(where, f"{register} is present, which a vCPU with SVE has as Z only")
    if register.group != _SVE:
        return
    if lengths is None:
        raise StreamError(where, f"{register} is present, but the vCPU has no SVE")
    is_z, is_p = low < 0x400, 0x400 <= low < 0x620
    if not (is_z or is_p) or len(value) != (_Z_BYTES if is_z else _P_BYTES):
        raise StreamError(where, f"{int(register):#x} is neither Z nor P nor FFR")
    if register.slice:
        raise StreamError(where, f"{register} is a slice beyond the longest vector of {8 * lengths.size} bits")
    used = lengths.size if is_z else lengths.size // 8
    if any(value[used:]):
        raise StreamError(where, f"{register} has bytes beyond its vector length of {8 * lengths.size} bits")
