# SPDX-License-Identifier: Apache-2.0
"""The parts of an arm64 vCPU's state that are registers of KVM_GET_REG_LIST, and the list itself."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from functools import cache

from vmm._kvm import ffi, lib
from vmm.arm64.registers import FPCR, FPSR, VLS, Group, Register
from vmm.arm64.system_registers import FIELDS, fields
from vmm.arm64.vls import ARCHITECTURAL_MAX, VectorLengths
from vmm.kvm.ioctl import KvmError, Refused
from vmm.kvm.vcpu import Vcpu
from vmm.state.errors import StateRefused, StreamError
from vmm.state.piece import ANY, Change, Follows, OneRegs, Piece, Reading, Row, Stale, raw, registers
from vmm.state.shape import MOST_REGISTERS, Shape
from vmm.state.value import Part

__all__ = ["RegisterList", "Registers", "group_of", "identifiers", "lengths"]

_ARM64 = 0x60
_COUNTERS = {"CNTVCT_EL0", "CNTPCT_EL0"}
_SVE_BIT = 1 << 4  # KVM_ARM_VCPU_SVE, in the features of INIT and in FINALIZE
_Z_BYTES, _P_BYTES = 256, 32
_LONG = 8


_PARTS: dict[int, str] = {
    Group.DEMUX: "CACHES", Group.FIRMWARE: "FIRMWARE", Group.BITMAP: "FIRMWARE", Group.SVE: "VECTORS",
}  # fmt: skip


@cache
def group_of(identifier: int) -> str:
    """Return the part that a register of KVM_GET_REG_LIST belongs to; StateRefused for an unknown group."""
    register = Register(identifier)
    if identifier == VLS:
        return "VLS"
    if register.group == Group.SYSREG:
        op0, op1, crn, crm, _ = register.encoding
        if (op0, crn) == (3, 0) and ((op1 == 0 and crm < 8) or op1 in (1, 3)):
            return "IDREGS"
        return "COUNTERS" if register.name in _COUNTERS else "SYSREGS"
    if register.group == Group.CORE:
        return "VECTORS" if register.name.startswith("V") or register in (FPSR, FPCR) else "CORE"
    found = _PARTS.get(register.group)
    if found is None:
        raise StateRefused(
            f"KVM lists register {identifier:#x} of a group unknown to this version: "
            "a state without it would be incomplete"
        )
    return found


class Registers(OneRegs):
    """The registers of one part; ``groups`` are the groups (KVM_REG_ARM_COPROC) that they may be of."""

    def __init__(self, name: str, groups: set[int], *after: Follows, required: bool = True) -> None:
        super().__init__(name, *after, required=required)
        self._groups = groups

    def identifiers(self, vcpu: Vcpu) -> Sequence[int]:
        """Return those that KVM lists."""
        return [identifier for identifier in vcpu.reg_list() if group_of(identifier) == self.name]

    def unreadable(self, vcpu: Vcpu, row: int, result: int) -> None:
        """ENOENT: an ID register that was written has removed it."""
        if result == -errno.ENOENT:
            raise Stale(KvmError(self.get, -result))
        super().unreadable(vcpu, row, result)

    def register_name(self, number: int) -> str:
        """Return the register's name."""
        return Register(number).name

    def text(self, number: int, value: bytes) -> str:
        """Return a number with the names of its fields; a vector as bytes."""
        if len(value) > _LONG:
            return value.hex()
        content = int.from_bytes(value, "little")
        named = " ".join(f"{field}={bits:#x}" for field, bits in fields(Register(number).name, content).items())
        return f"{content:#x}" + (f" ({named})" if named else "")

    def change(self, number: int, first: bytes | None, second: bytes | None) -> Change:
        """Of a vector return the first byte that differs."""
        if first is None or second is None or len(first) <= _LONG or len(first) != len(second):
            return super().change(number, first, second)
        at = [index for index in range(len(first)) if first[index] != second[index]]
        shown = f"{len(at)} bytes, the first is byte {at[0]}: {first[at[0]]:02x}, {second[at[0]]:02x}"
        return Change(Register(number).name, shown)

    def why_refused(self, vcpu: Vcpu, identifier: int, value: bytes, name: str) -> str:
        """Say how the value that KVM refuses differs from its own, field by field where they have names."""
        try:
            own = vcpu.get_one_reg(identifier)
        except KvmError as error:
            return f"this vCPU has no such register ({error.errno_name})"
        theirs, ours = int.from_bytes(value, "little"), int.from_bytes(own, "little")
        names = _changed_fields(Register(identifier).name, theirs, ours)
        return f"KVM refused {theirs:#x} with {name}, its own value is {ours:#x}{names}"

    def check(self, where: str, parts: Mapping[str, Part]) -> None:
        """Each register is one of arm64, of this part, and no longer than the vCPU's vectors."""
        chosen = lengths(where, parts)
        for identifier, value in registers(self.name, parts[self.name]).items():
            register = Register(identifier)
            _check_register(where, register, value, self._groups)
            _check_vector(where, register, value, chosen)


def _changed_fields(name: str, first: int, second: int) -> str:
    if name not in FIELDS:
        return ""
    ours, theirs = fields(name, first), fields(name, second)
    changed = [
        f"{field} {ours.get(field, 0)} and {theirs.get(field, 0)}"
        for field in dict.fromkeys([*ours, *theirs])
        if ours.get(field) != theirs.get(field)
    ]
    return f" ({', '.join(changed)})" if changed else ""


def _check_register(where: str, register: Register, value: bytes, groups: set[int]) -> None:
    number = int(register)
    if number >> 56 != _ARM64 or number >> 28 & 0xFFFFFF:
        raise StreamError(where, f"{number:#x} is not an arm64 register id")
    if register.size != len(value):
        raise StreamError(where, f"register {register} has {register.size} bytes by its id, and {len(value)} here")
    if register.group not in groups:
        raise StreamError(where, f"register {register} ({number:#x}) belongs to another part")


def _check_vector(where: str, register: Register, value: bytes, chosen: VectorLengths | None) -> None:
    low = register & 0xFFFF
    if register.group == Group.CORE and register.name.startswith("V") and chosen is not None:
        raise StreamError(where, f"{register} is present, which a vCPU with SVE has as Z only")
    if register.group != Group.SVE:
        return
    if chosen is None:
        raise StreamError(where, f"{register} is present, but the vCPU has no SVE")
    is_z, is_p = low < 0x400, 0x400 <= low < 0x620
    if not (is_z or is_p) or len(value) != (_Z_BYTES if is_z else _P_BYTES):
        raise StreamError(where, f"{int(register):#x} is neither Z nor P nor FFR")
    if register.slice:
        raise StreamError(where, f"{register} is a slice beyond the longest vector of {8 * chosen.size} bits")
    used = chosen.size if is_z else chosen.size // 8
    if any(value[used:]):
        raise StreamError(where, f"{register} has bytes beyond its vector length of {8 * chosen.size} bits")


def lengths(where: str, parts: Mapping[str, Part]) -> VectorLengths | None:
    """Return the vector lengths of a vCPU with SVE, None of one without; StreamError for what no vCPU has."""
    init, finalize = raw("INIT", parts["INIT"]), raw("FINALIZE", parts.get("FINALIZE", bytes(4)))
    register = parts.get("VLS")
    chosen = int.from_bytes(init[4:8], "little") & _SVE_BIT
    final = int.from_bytes(finalize, "little") & _SVE_BIT
    vcpu = where.split(",")[0]
    if bool(chosen) != (register is not None) or chosen != final:
        raise StreamError(f"{vcpu}, INIT", "SVE, VLS and FINALIZE must be present together or not at all")
    if register is None:
        return None
    found = VectorLengths.decode(raw("VLS", register))
    if not found or found.maximum > ARCHITECTURAL_MAX:
        raise StreamError(
            f"{vcpu}, VLS", f"vector lengths {found} in quadwords: there is at least one, of 1 to {ARCHITECTURAL_MAX}"
        )
    return found


def identifiers(part: Part) -> set[int]:
    """Return the register ids in a part LIST; StateRefused if it is damaged."""
    if not isinstance(part, bytes) or len(part) % 8:
        raise StateRefused("LIST has to be a number of register ids: the state is damaged")
    return set(struct.unpack(f"<{len(part) // 8}Q", part))


class RegisterList(Piece):
    """Which registers the vCPU has. Nothing is written: what the state has and this vCPU lacks could only be lost."""

    def __init__(self, *after: Follows) -> None:
        shape = Shape(8, MOST_REGISTERS * 8, 8)
        super().__init__("LIST", ("KVM_GET_REG_LIST", "KVM_GET_REG_LIST"), shape, *after)

    def read(self, vcpu: Vcpu) -> Reading | None:
        """One call; where it gives another list than the last time, all calls are made anew."""
        listed = vcpu.reg_list()
        if not listed:
            return None
        value = ffi.new("struct kvm_reg_list *", {"n": len(listed), "reg": len(listed)})
        data, same = ffi.buffer(value.reg, 8 * len(listed)), struct.pack(f"={len(listed)}Q", *listed)
        packed = struct.pack(f"<{len(listed)}Q", *sorted(listed))

        def take(calls: object) -> Part:
            if value.n != len(listed) or data[:] != same:
                raise Stale(Refused("KVM lists other registers of this vCPU each time it is asked"))
            return packed

        return Reading([(lib.KVM_GET_REG_LIST, value, ANY)], take)

    def unreadable(self, vcpu: Vcpu, row: int, result: int) -> None:
        """E2BIG: there are more of them now."""
        if result == -errno.E2BIG:
            raise Stale(KvmError(self.get, -result))
        super().unreadable(vcpu, row, result)

    def write(self, part: Part) -> list[Row]:
        """No call."""
        identifiers(part)
        return []

    def missing(self, vcpu: Vcpu, part: Part) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Compare with what KVM lists now."""
        wanted, here = identifiers(part), set(vcpu.reg_list())
        lost = [(f"LIST.{Register(number).name}", "this KVM has no such register for this vCPU")
                for number in sorted(wanted - here)]  # fmt: skip
        return lost, [(f"LIST.{Register(number).name}", "") for number in sorted(here - wanted)]

    def describe(self, part: Part, parts: Mapping[str, Part]) -> dict[str, str]:
        """Return the ids by name."""
        return {Register(number).name: f"{number:#018x}" for number in sorted(identifiers(part))}
