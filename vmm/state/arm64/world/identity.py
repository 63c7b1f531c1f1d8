# SPDX-License-Identifier: Apache-2.0
"""The rows of IDREGS: every field of every ID register, and the registers that say which CPU this is.

A field of an ID register is called ``REGISTER.FIELD``. It may have its own value, and if KVM says that it is writable
(KVM_ARM_GET_REG_WRITABLE_MASKS) what the rules of vmm.arm64.id_registers call safe.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from functools import cache

from vmm.arm64.id_registers import BY_ENCODING, REGISTERS, Field, Rule, mask_index
from vmm.arm64.registers import SYSTEM, Group, Register, sysreg
from vmm.arm64.vcpu import Feature
from vmm.kvm.vcpu import Vcpu
from vmm.state.architecture import pieces
from vmm.state.arm64.world.facts import ALL, every_cache, has, has_aarch32, masks
from vmm.state.piece import RegisterSet, registers
from vmm.state.value import Part
from vmm.state.world.row import After, Free, Fresh, Of, Refusal, Row, Untold
from vmm.state.world.table import Table

__all__ = ["IDREGS", "FieldCodec", "beside"]

# Fields that KVM does not let go below a value that is not 0: a guest without AArch64 or without debug registers.
# arch/arm64/kvm/sys_regs.c, set_id_aa64pfr0_el1, set_id_aa64dfr0_el1, set_id_dfr0_el1.
_LEAST = {
    ("ID_AA64PFR0_EL1", "EL0"): 1, ("ID_AA64PFR0_EL1", "EL1"): 1, ("ID_AA64PFR0_EL1", "EL2"): 1,
    ("ID_AA64DFR0_EL1", "DebugVer"): 6, ("ID_DFR0_EL1", "CopDbg"): 6,
    # 1 and 2 are PMUs before version 3, which nothing emulates.
    ("ID_DFR0_EL1", "PerfMon"): 3,
}  # fmt: skip
_STEPS = {Rule.LOWER: 1, Rule.HIGHER: -1}


def beside(name: str, field: Field, value: int) -> tuple[int | None, int | None]:
    """Return the nearest value that KVM takes instead of ``value``, and the nearest that it refuses.

    None stands for what there is not: a field at its end, one that the rules do not know.
    """
    if field.rule is Rule.EXACT:
        other = field.safe if value != field.safe else None
        return other, next((new for new in range(1 << field.width) if new not in (value, field.safe)), None)
    if field.rule not in _STEPS:
        return None, None
    step = _STEPS[field.rule]
    lower = None if value == _LEAST.get((name, field.name)) else _next(field, value, -step)
    return lower, _next(field, value, step)


def _next(field: Field, value: int, step: int) -> int | None:
    """Return the value that lies so many steps from another one, as the field's numbers are ordered."""
    top, shift = (1 << field.width) - 1, 1 << field.width - 1 if field.signed else 0
    place = (value + shift & top) + step
    return place - shift & top if 0 <= place <= top else None


class FieldCodec:
    """IDREGS as the fields of its registers; a register without fields is one itself.

    Bits that belong to no field that this version knows are ``REGISTER.unknown``, where there are any.
    """

    def __init__(self, piece: RegisterSet) -> None:
        self._piece = piece

    def names(self) -> Iterable[str]:
        """Return the fields and the registers without fields that this version knows."""
        return [field for name in REGISTERS for field in ([one[0] for one in _FIELDS.get(name, ())] or [name])]

    def bits(self, field: str) -> int:
        """Return how wide a field is."""
        return _PLACES[field].width if field in _PLACES else 64

    def split(self, part: Part) -> dict[str, int]:
        """Return the fields by their names."""
        found: dict[str, int] = {}
        for at, value in registers(self._piece.name, part).items():
            name, number = _name(at), int.from_bytes(value, "little")
            fields = _FIELDS.get(name)
            if fields is None:
                found[name] = number
                continue
            for label, low, mask in fields:
                found[label] = number >> low & mask
            if rest := number & ~REGISTERS[name].named & ~_ONES.get(name, 0):
                found[f"{name}.unknown"] = rest
        return found

    def join(self, part: Part, values: Mapping[str, int]) -> Part:
        """Return the registers of which a field gets another value."""
        own = registers(self._piece.name, part)
        changed: dict[int, int] = {}
        for label, value in values.items():
            name, _, field = label.partition(".")
            at = int(_register(name))
            if not field:
                changed[at] = value
            elif field != "unknown":
                place = _PLACES[label]
                now = changed[at] if at in changed else int.from_bytes(own[at], "little")
                changed[at] = now & ~place.mask | value << place.low
        return {at: value.to_bytes(8, "little") for at, value in changed.items()}


_PLACES = {f"{name}.{field.name}": field for name, register in REGISTERS.items() for field in register.fields}
_FIELDS = {
    name: [(f"{name}.{field.name}", field.low, (1 << field.width) - 1) for field in register.fields]
    for name, register in REGISTERS.items()
}
# Bits that read as 1 whatever the CPU is.
_ONES = {"CTR_EL0": 1 << 31}


@cache
def _name(at: int) -> str:
    register = Register(at)
    if register.group != Group.SYSREG:
        return register.name
    return BY_ENCODING.get(register.encoding, register.name)


@cache
def _register(name: str) -> Register:
    """Return a register by its name, or by its encoding as S3_0_C0_C4_3."""
    if name in REGISTERS:
        return sysreg(*REGISTERS[name].encoding)
    if name in SYSTEM:
        return SYSTEM[name]
    op0, op1, crn, crm, op2 = (int(part.lstrip("SC")) for part in name.split("_"))
    return sysreg(op0, op1, crn, crm, op2)


# --- fields ---

_RULES = "arch/arm64/kvm/sys_regs.c, set_id_reg, arm64_check_features; arch/arm64/kernel/cpufeature.c, arm64_ftr_regs"
# What no guest has, whatever the CPU. arch/arm64/kvm/sys_regs.c, __kvm_read_sanitised_id_reg and sanitise_id_*.
_NEVER = {
    "ID_AA64PFR0_EL1": ("AMU", "MPAM", "RME"),
    "ID_AA64PFR1_EL1": ("RNDR_trap", "CSV2_frac", "THE", "MTEX", "PFAR", "SME", "NMI", "MPAM_frac"),
    "ID_AA64DFR0_EL1": ("TraceVer", "PMSVer", "TraceFilt", "TraceBuffer", "MTPMU", "BRBE", "ExtTrcBuff", "SEBEP"),
}
_ALWAYS_0 = "arch/arm64/kvm/sys_regs.c, kvm_read_sanitised_id_reg, sanitise_id_aa64pfr0_el1, sanitise_id_aa64dfr0_el1"
# What the first run changes. arch/arm64/kvm/sys_regs.c, kvm_finalize_sys_regs; S1PIE and S1POE since Linux 7.3.
_CHANGES = {"ID_AA64PFR0_EL1": ("GIC",), "ID_PFR1_EL1": ("GIC",), "ID_AA64MMFR3_EL1": ("S1PIE", "S1POE")}
_CHANGED = Untold("the first run clears what there is nothing for: id.gic-changes-at-first-run")
_OWN = "the field is the CPU's own, as far as KVM shows it"


def _writable(name: str, field: Field, vcpu: Vcpu) -> bool:
    known = masks(vcpu)
    return bool(known) and known[mask_index(REGISTERS[name].encoding)] & field.mask == field.mask


def _fit(name: str, field: Field) -> Callable[[Vcpu, int, int], int | None]:
    """Return what gives a value so many steps safer than the fresh one, if KVM says that the field is writable."""

    def fit(vcpu: Vcpu, steps: int, fresh: int) -> int | None:
        if not _writable(name, field, vcpu):
            return None
        for _ in range(steps):
            lower = beside(name, field, fresh)[0]
            fresh = fresh if lower is None else lower
        return fresh

    return fit


def _unsafe(name: str, field: Field) -> Callable[[Vcpu, int], int | None]:
    """Return what gives a value that KVM refuses: one that is less safe than the fresh one, or any if it is fixed."""

    def unsafe(vcpu: Vcpu, fresh: int) -> int | None:
        # What is written to the ID registers of AArch32 is ignored without it: aa32_id_visibility.
        if not name.startswith(("ID_AA64", "CTR")) and not has_aarch32(vcpu):
            return None
        if _writable(name, field, vcpu):
            return beside(name, field, fresh)[1]
        # Before 6.7 these could be chosen, though nothing says so: set_id_aa64pfr0_el1.
        return None if name == "ID_AA64PFR0_EL1" and field.name in ("CSV2", "CSV3") else fresh ^ 1

    return unsafe


def _field_row(name: str, field: Field) -> Row:
    never = field.name in _NEVER.get(name, ())
    fresh: Fresh | Callable[[Vcpu], Fresh] = 0 if never else Untold(_OWN)
    source = f"{_ALWAYS_0}; {_RULES}" if never else _RULES
    if (name, field.name) in _DECIDED:
        fresh, source = _DECIDED[name, field.name]
    kept = _CHANGED if field.name in _CHANGES.get(name, ()) else After.KEPT
    return Row(f"{name}.{field.name}", source, kept=kept, fresh=fresh, values=Of(1, 2), init=After.KEPT, runs=False,
               fit=_fit(name, field), refused=[Refusal(_unsafe(name, field), errno.EINVAL)])  # fmt: skip


def _if(feature: Feature, otherwise: str) -> Callable[[Vcpu], Fresh]:
    """A field is 0 without the feature, and the CPU's own with it."""
    return lambda vcpu: Untold(otherwise) if has(feature)(vcpu) else 0


# Fields that the features of VCPU_INIT decide.
_SVE = "arch/arm64/kvm/sys_regs.c, sanitise_id_aa64pfr0_el1 (SVE); sve_visibility, sys_reg_descs (ID_AA64ZFR0_EL1)"
_KEYS = "arch/arm64/kvm/sys_regs.c, __kvm_read_sanitised_id_reg (pointer authentication)"
_DECIDED: dict[tuple[str, str], tuple[Fresh | Callable[[Vcpu], Fresh], str]] = {
    ("ID_AA64PFR0_EL1", "SVE"): (lambda vcpu: int(has(Feature.SVE)(vcpu)), _SVE),
    **{("ID_AA64ZFR0_EL1", field.name): (_if(Feature.SVE, _OWN), _SVE)
       for field in REGISTERS["ID_AA64ZFR0_EL1"].fields},
    **{("ID_AA64SMFR0_EL1", field.name): (0, "arch/arm64/kvm/sys_regs.c, sys_reg_descs (ID_HIDDEN)")
       for field in REGISTERS["ID_AA64SMFR0_EL1"].fields},
    **{("ID_AA64ISAR1_EL1", name): (_if(Feature.PTRAUTH_ADDRESS, _OWN), _KEYS)
       for name in ("APA", "API", "GPA", "GPI")},
    **{("ID_AA64ISAR2_EL1", name): (_if(Feature.PTRAUTH_ADDRESS, _OWN), _KEYS) for name in ("APA3", "GPA3")},
    ("ID_AA64DFR0_EL1", "PMUVer"): (_if(Feature.PMU_V3, _OWN), "arch/arm64/kvm/sys_regs.c, sanitise_id_aa64dfr0_el1"),
    ("ID_DFR0_EL1", "PerfMon"): (_if(Feature.PMU_V3, _OWN), "arch/arm64/kvm/sys_regs.c, read_sanitised_id_dfr0_el1"),
}  # fmt: skip

# --- whole registers ---


def _affinity(vcpu: Vcpu) -> int:
    """Return MPIDR_EL1 of a vCPU's number. arch/arm64/kvm/sys_regs.c, reset_mpidr."""
    number = vcpu.identifier
    return 1 << 31 | number & 0xF | (number >> 4 & 0xFF) << 8 | (number >> 12 & 0xFF) << 16


def _identity(name: str) -> Row:
    """A register of the CPU's own, which takes only what it is."""
    return Row(name, "arch/arm64/kvm/sys_regs.c, set_imp_id_reg (before 6.15 set_invariant_sys_reg)",
               fresh=Untold("it is the CPU's own"), values=Of(0, 0), fit=lambda vcpu, _, fresh: fresh,
               init=After.KEPT,
               refused=[Refusal(lambda _, fresh: fresh ^ 1, errno.EINVAL)])  # fmt: skip


_BOUNDARY = 3 << 30  # CLIDR_EL1.ICB, which nothing depends on


def _clidr(vcpu: Vcpu, boundary: int, fresh: int) -> int | None:
    """Return CLIDR_EL1 with another inner cache boundary, where it can be written."""
    return fresh & ~_BOUNDARY | boundary if every_cache(vcpu) else None


_PIECE = pieces("arm64")["IDREGS"]
assert isinstance(_PIECE, RegisterSet)
IDREGS = Table(
    "idregs",
    _PIECE,
    FieldCodec(_PIECE),
    [
        *(_field_row(name, field) for name, register in REGISTERS.items() for field in register.fields),
        _identity("MIDR_EL1"), _identity("REVIDR_EL1"), _identity("AIDR_EL1"),
        Row("MPIDR_EL1", "arch/arm64/kvm/sys_regs.c, reset_mpidr", fresh=_affinity,
            values=Free(0xFF_00FF_FFFF, 1 << 31), runs=False, init=After.EITHER),
        Row("CLIDR_EL1", "arch/arm64/kvm/sys_regs.c, reset_clidr, set_clidr",
            fresh=Untold("it tells of the CPU's caches"), values=Of(1 << 30, 2 << 30, 3 << 30, 0), fit=_clidr,
            init=After.KEPT, runs=False,
            refused=[Refusal(lambda _, fresh: fresh | 1 << 63, errno.EINVAL)]),
        # Not allocated, or of a kind that no guest has: read as 0, written with 0.
        Row("S3_0_C0_C*", "arch/arm64/kvm/sys_regs.c, ID_UNALLOCATED, ID_HIDDEN", fresh=0, values=Of(0, 0),
            init=After.KEPT, refused=[Refusal(1, errno.EINVAL), Refusal(ALL, errno.EINVAL)]),
    ],
)  # fmt: skip
