# SPDX-License-Identifier: Apache-2.0
"""The state of an arm64 vCPU: its steps, in the order of a restore, and the names inside its parts."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import cache

from vmm._kvm import ffi, lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import FPCR, FPSR, VLS, Register
from vmm.arm64.system_registers import FIELDS, fields
from vmm.arm64.vcpu import Feature
from vmm.arm64.vls import VectorLengths
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.state.errors import StateRefused
from vmm.state.step import Follows, Policy, Step
from vmm.state.value import Part, Registers, VcpuState

__all__ = [
    "CAPABILITIES",
    "CAPTURE_ORDER",
    "STEPS",
    "about",
    "capture_machine",
    "check_complete",
    "describe",
    "different",
    "explain",
    "group_of",
    "permit",
    "restore_machine",
    "why",
]

# What a state may have enabled on its VM: nothing yet.
CAPABILITIES: frozenset[int] = frozenset()
_INIT = struct.Struct("<8I")
_CORE, _DEMUX, _SYSREG, _FW, _SVE, _BITMAP = 0x10, 0x11, 0x13, 0x14, 0x15, 0x16
_COUNTERS = {"CNTVCT_EL0", "CNTPCT_EL0"}


@cache
def group_of(identifier: int) -> str:
    """Return the step that a register of KVM_GET_REG_LIST belongs to; StateRefused for an unknown group."""
    register = Register(identifier)
    if identifier == VLS:
        return "VLS"
    if register.group == _SYSREG:
        op0, op1, crn, crm, _ = register.encoding
        if (op0, crn) == (3, 0) and ((op1 == 0 and crm < 8) or op1 in (1, 3)):
            return "IDREGS"
        return "COUNTERS" if register.name in _COUNTERS else "SYSREGS"
    if register.group == _CORE:
        return "VECTORS" if register.name.startswith("V") or register in (FPSR, FPCR) else "CORE"
    found = {_DEMUX: "CACHES", _FW: "FIRMWARE", _BITMAP: "FIRMWARE", _SVE: "VECTORS"}.get(register.group)
    if found is None:
        raise StateRefused(
            f"KVM lists register {identifier:#x} of a group unknown to this version: "
            "a state without it would be incomplete"
        )
    return found


def _bytes(name: str, part: Part, size: int) -> bytes:
    if not isinstance(part, bytes) or len(part) != size:
        raise StateRefused(f"{name} has to be {size} bytes: the state is damaged")
    return part


def _registers(name: str, part: Part) -> Registers:
    if isinstance(part, bytes):
        raise StateRefused(f"{name} has to be a set of registers: the state is damaged")
    return part


# --- set-up ---------------------------------------------------------------------------------------


def _restore_init(vcpu: Vcpu, part: Part, policy: Policy) -> None:
    target, *words = _INIT.unpack(_bytes("INIT", part, _INIT.size))
    vcpus.init_raw(vcpu, target, words)


def _has_sve(vcpu: Vcpu) -> bool:
    return Feature.SVE in vcpus.features(vcpu)


def _capture_vls(vcpu: Vcpu) -> Part | None:
    return vcpu.get_one_reg(VLS) if _has_sve(vcpu) else None


def _restore_vls(vcpu: Vcpu, part: Part, policy: Policy) -> None:
    wanted = VectorLengths.decode(_bytes("VLS", part, VLS.size))
    offered = vcpus.get_vls(vcpu)
    try:
        vcpu.set_one_reg(VLS, wanted.encode())
    except KvmError as error:
        raise StateRefused(
            f"VLS: the guest's vector lengths {wanted} are refused with {error.errno_name}, this host has {offered}: "
            "it needs all of them and no other below the largest"
        ) from error


def _restore_finalize(vcpu: Vcpu, part: Part, policy: Policy) -> None:
    done = int.from_bytes(_bytes("FINALIZE", part, 4), "little")
    for feature in range(32):
        if done >> feature & 1:
            vcpus.finalize(vcpu, feature)


# --- registers ------------------------------------------------------------------------------------


def _capture_registers(name: str) -> Callable[[Vcpu], Part | None]:
    def capture(vcpu: Vcpu) -> Part | None:
        chosen = [identifier for identifier in vcpu.reg_list() if group_of(identifier) == name]
        return {identifier: vcpu.get_one_reg(identifier) for identifier in chosen} or None

    return capture


def _restore_registers(name: str) -> Callable[[Vcpu, Part, Policy], None]:
    def restore(vcpu: Vcpu, part: Part, policy: Policy) -> None:
        refusals = []
        for identifier, value in _registers(name, part).items():
            try:
                vcpu.set_one_reg(identifier, value)
            except KvmError as error:
                refusals.append((f"{name}.{Register(identifier).name}", _refusal(vcpu, identifier, value, error)))
        policy.refuse_all(refusals)

    return restore


def _refusal(vcpu: Vcpu, identifier: int, value: bytes, error: KvmError) -> str:
    """Say how the value that KVM refuses differs from its own, field by field where they have names."""
    try:
        own = vcpu.get_one_reg(identifier)
    except KvmError:
        return f"this vCPU has no such register ({error.errno_name})"
    theirs, ours = int.from_bytes(value, "little"), int.from_bytes(own, "little")
    names = _changed_fields(Register(identifier).name, theirs, ours)
    return f"KVM refused {theirs:#x} with {error.errno_name}, its own value is {ours:#x}{names}"


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


def _capture_list(vcpu: Vcpu) -> Part | None:
    return struct.pack(f"<{len(ids)}Q", *ids) if (ids := sorted(vcpu.reg_list())) else None


def _identifiers(part: Part) -> set[int]:
    if not isinstance(part, bytes) or len(part) % 8:
        raise StateRefused("LIST has to be a number of register ids: the state is damaged")
    return set(struct.unpack(f"<{len(part) // 8}Q", part))


def _compare_list(vcpu: Vcpu, part: Part, policy: Policy) -> None:
    """Nothing is written: what the state has and this vCPU has not could only be lost."""
    wanted, here = _identifiers(part), set(vcpu.reg_list())
    policy.refuse_all(
        (f"LIST.{Register(identifier).name}", "this KVM has no such register for this vCPU")
        for identifier in sorted(wanted - here)
    )
    policy.missing((f"LIST.{Register(identifier).name}", "") for identifier in sorted(here - wanted))


# --- structures -----------------------------------------------------------------------------------


def _structure(name: str, suffix: str, kind: str, after: tuple[Follows, ...]) -> Step:
    size = ffi.sizeof(f"struct {kind}")
    get, put = getattr(lib, f"KVM_GET_{suffix}"), getattr(lib, f"KVM_SET_{suffix}")

    def capture(vcpu: Vcpu) -> Part | None:
        return bytes(ffi.buffer(vcpu.get(get, kind)))

    def restore(vcpu: Vcpu, part: Part, policy: Policy) -> None:
        value = ffi.new(f"struct {kind} *")
        ffi.memmove(value, _bytes(name, part, size), size)
        vcpu.ioctl(put, value)

    return Step(name, f"KVM_GET_{suffix}", f"KVM_SET_{suffix}", capture, restore, after)


# --- the steps ------------------------------------------------------------------------------------


def _one_regs(name: str, *after: Follows) -> Step:
    read, write = _capture_registers(name), _restore_registers(name)
    return Step(name, "KVM_GET_ONE_REG", "KVM_SET_ONE_REG", read, write, after)


_API = "Documentation/virt/kvm/api.rst, 4.82 KVM_ARM_VCPU_INIT and 4.119 KVM_ARM_VCPU_FINALIZE"
_FEATURES = "Documentation/virt/kvm/arm/vcpu-features.rst"
_AFTER_INIT = Follows("INIT", "an uninitialised vCPU has no registers", _API)
_AFTER_FINALIZE = Follows("FINALIZE", "SVE registers exist when the vector lengths are final", _API)
_AFTER_IDREGS = Follows("IDREGS", "the ID registers decide which other registers and bits exist", _FEATURES)

STEPS: tuple[Step, ...] = (
    Step("INIT", "none: the VMM chose it", "KVM_ARM_VCPU_INIT", lambda vcpu: vcpu.chosen.get("INIT"), _restore_init),
    Step("VLS", "KVM_GET_ONE_REG", "KVM_SET_ONE_REG", _capture_vls, _restore_vls, (
        Follows("INIT", "INIT resets the vector lengths", "arch/arm64/kvm/reset.c, kvm_vcpu_enable_sve"),
    )),
    Step("FINALIZE", "none: the VMM chose it", "KVM_ARM_VCPU_FINALIZE",
         lambda vcpu: vcpu.chosen.get("FINALIZE"), _restore_finalize, (
        _AFTER_INIT,
        Follows("VLS", "the vector lengths can no longer change", _API),
    )),
    _one_regs("IDREGS", _AFTER_INIT, _AFTER_FINALIZE),
    _one_regs("FIRMWARE", _AFTER_INIT, _AFTER_IDREGS),
    Step("LIST", "KVM_GET_REG_LIST", "KVM_GET_REG_LIST", _capture_list, _compare_list, (
        Follows("IDREGS", "which registers exist depends on them", "arch/arm64/kvm/sys_regs.c, walk_one_sys_reg"),
        _AFTER_FINALIZE,
    )),
    _one_regs("CORE", _AFTER_INIT, _AFTER_IDREGS),
    _one_regs("VECTORS", _AFTER_INIT, _AFTER_FINALIZE, _AFTER_IDREGS),
    _one_regs("SYSREGS", _AFTER_INIT, _AFTER_FINALIZE, _AFTER_IDREGS),
    _one_regs("COUNTERS", _AFTER_INIT),
    _one_regs("CACHES", _AFTER_INIT, _AFTER_IDREGS),
    _structure("EVENTS", "VCPU_EVENTS", "kvm_vcpu_events", (
        _AFTER_INIT,
        Follows("CORE", "a pending abort may change PC and PSTATE at once",
                "arch/arm64/kvm/guest.c, __kvm_arm_vcpu_set_events"),
        Follows("SYSREGS", "and ESR_EL1 and FAR_EL1", "arch/arm64/kvm/guest.c, __kvm_arm_vcpu_set_events"),
    )),
    _structure("MP_STATE", "MP_STATE", "kvm_mp_state", (_AFTER_INIT,)),
)  # fmt: skip

CAPTURE_ORDER = (
    "INIT", "MP_STATE", "VLS", "FINALIZE", "LIST", "IDREGS", "FIRMWARE", "CORE", "VECTORS", "SYSREGS", "CACHES",
    "EVENTS", "COUNTERS",
)  # fmt: skip
_REQUIRED = ("INIT", "LIST", "IDREGS", "FIRMWARE", "CORE", "VECTORS", "SYSREGS", "EVENTS", "MP_STATE")


# --- a state as a whole ---------------------------------------------------------------------------


def check_complete(parts: Mapping[str, Part]) -> None:
    """Raise StateRefused if a part is missing, or a register that the state itself lists."""
    if missing := [name for name in _REQUIRED if name not in parts]:
        raise StateRefused(f"the state is incomplete, it lacks {', '.join(missing)}")
    words = _INIT.unpack(_bytes("INIT", parts["INIT"], _INIT.size))
    if words[1] >> Feature.SVE & 1 and ("VLS" not in parts or "FINALIZE" not in parts):
        raise StateRefused("the state is incomplete, it lacks VLS or FINALIZE of a guest with SVE")
    held: set[int] = {VLS} if "VLS" in parts else set()
    for part in parts.values():
        if not isinstance(part, bytes):
            held |= set(part)
    listed = _identifiers(parts["LIST"])
    if missing := [f"{group_of(number)}.{Register(number).name}" for number in sorted(listed ^ held)]:
        raise StateRefused(f"the state and its own register list do not agree about {', '.join(missing)}")


def permit(vcpu: VcpuState) -> None:
    """Nothing: arm64 has no permissions to request."""


def capture_machine(vm: VirtualMachine) -> Mapping[str, Part]:
    """Return the parts that belong to the VM: none, its ID registers come with the vCPU."""
    return {}


def restore_machine(vm: VirtualMachine, parts: Mapping[str, Part]) -> None:
    """Write the parts that belong to the VM; StateRefused if there are any."""
    if parts:
        raise StateRefused(f"the state has VM-wide parts that are not known: {', '.join(parts)}")


def about() -> dict[str, str]:
    """Return what a state says about its host: the frequency of the counter, which no KVM can change."""
    return {"counter_hz": str(lib.vmm_host_cntfrq())}


def why(step: str, state: VcpuState, error: KvmError) -> str:
    """Return the likely cause of a refusal in the terms of the state, or nothing."""
    if step == "INIT":
        words = _INIT.unpack(_bytes("INIT", state.parts["INIT"], _INIT.size))
        names = [feature.name for feature in Feature if words[1] >> feature & 1]
        return f": target {words[0]} with {', '.join(names) or 'no features'}, of which this host lacks some"
    return ""


# --- names ----------------------------------------------------------------------------------------


def explain(name: str, parts: Mapping[str, Part]) -> dict[str, str]:
    """Return what a part of a vCPU or VM holds, with values by register or field name."""
    return describe(name, parts[name])


def describe(name: str, part: Part) -> dict[str, str]:
    """Return what a part holds, value by register or field name."""
    if name == "INIT":
        target, *words = _INIT.unpack(_bytes(name, part, _INIT.size))
        return {"target": str(target), "features": " ".join(f"{word:#x}" for word in words)}
    if name == "VLS":
        return {"VLS": str(VectorLengths.decode(_bytes(name, part, VLS.size)))}
    if name == "LIST":
        return {Register(number).name: f"{number:#018x}" for number in sorted(_identifiers(part))}
    if isinstance(part, bytes):
        return {name: part.hex()}
    return {Register(number).name: _text(Register(number), value) for number, value in part.items()}


def _text(register: Register, value: bytes) -> str:
    if len(value) > 8:
        return value.hex()
    number = int.from_bytes(value, "little")
    named = " ".join(f"{field}={bits:#x}" for field, bits in fields(register.name, number).items())
    return f"{number:#x}" + (f" ({named})" if named else "")


def different(name: str, ours: Part, theirs: Part, parts: Mapping[str, Part]) -> list[tuple[str, str]]:
    """Return (register or field, both values) for what differs between two parts of this name.

    ``parts`` are those beside the first.
    """
    if isinstance(ours, bytes) or isinstance(theirs, bytes):
        first, second = describe(name, ours), describe(name, theirs)
        keys = [key for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)]
        return [(key, f"{first.get(key, 'absent')}, {second.get(key, 'absent')}") for key in keys]
    found = []
    for number in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(number), theirs.get(number)
        if a != b:
            found.append((Register(number).name, _both(Register(number), a, b)))
    return found


def _both(register: Register, first: bytes | None, second: bytes | None) -> str:
    """Both values of a register; of a long one the first byte that differs."""
    if first is None or second is None or len(first) <= 8 or len(first) != len(second):
        return ", ".join("absent" if value is None else _text(register, value) for value in (first, second))
    at = [index for index in range(len(first)) if first[index] != second[index]]
    return f"{len(at)} bytes, the first is byte {at[0]}: {first[at[0]]:02x}, {second[at[0]]:02x}"
