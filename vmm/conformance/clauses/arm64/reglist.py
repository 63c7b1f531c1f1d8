# SPDX-License-Identifier: Apache-2.0
"""KVM_GET_REG_LIST: what it lists, and that all of it can be read and written back."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.arm64.registers import FPCR, FPSR, SYSTEM, VLS, Group, Register, v
from vmm.arm64.registers import SVE as SVE_REGISTERS
from vmm.arm64.system_registers import field, replaced
from vmm.arm64.vcpu import read, write
from vmm.conformance.arm64.common import (
    COUNTERS,
    MASKS,
    SVE,
    enter,
    features,
    plain_vcpu,
    sve_vcpu,
    widest_vcpu,
    writable,
)
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, refused_indicative, succeeds, true
from vmm.conformance.registry import clause
from vmm.kvm.vcpu import Vcpu

_BEHIND_FFR = 0x620
# The registers that a field of ID_AA64MMFR3_EL1 brings along.
_BY_FIELD = {"TCRX": ("TCR2_EL1",), "S1PIE": ("PIR_EL1", "PIRE0_EL1"), "SCTLRX": ("SCTLR2_EL1",)}
_SME = ("SVCR", "SMCR_EL1", "SMPRI_EL1", "TPIDR2_EL0")


def listed(vcpu: Vcpu) -> list[Register]:
    """The registers that KVM lists, in its order."""
    return [Register(identifier) for identifier in vcpu.reg_list()]


def _names(registers: object) -> list[str]:
    return sorted(str(register) for register in registers)  # type: ignore[attr-defined]


def _list_into(vcpu: Vcpu, room: int) -> tuple[int, list[int]]:
    """KVM_GET_REG_LIST with place for ``room`` ids and 8 poisoned ones after them; returns n and all places."""
    value = ffi.new("struct kvm_reg_list *", {"n": room, "reg": room + 8})
    for index in range(room + 8):
        value.reg[index] = 0xAAAA
    vcpu.ioctl(lib.KVM_GET_REG_LIST, value)
    return int(value.n), list(value.reg[0 : room + 8])


def _needed(vcpu: Vcpu, room: int) -> int:
    """Return the n that KVM_GET_REG_LIST reports when there is too little room."""
    value = ffi.new("struct kvm_reg_list *", {"n": room, "reg": room})
    refused(f"a list of {room}", errno.E2BIG, vcpu.ioctl, lib.KVM_GET_REG_LIST, value)
    return int(value.n)


@clause("reglist.e2big", arch="arm64")
def too_small(context: Context) -> None:
    """A list that is too short fails with E2BIG and says how long it has to be; with that length it succeeds.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl; Documentation/virt/kvm/api.rst, 4.84.
    """
    vcpu = plain_vcpu(context)
    count = _needed(vcpu, 0)
    true("registers", count > 100, count, "more than 100")
    equal("the length for a list that is one short", _needed(vcpu, count - 1), count)
    found, places = succeeds("a list that is long enough", _list_into, vcpu, count)
    equal("n", found, count)
    equal("what lies beyond the list", places[count:], [0xAAAA] * 8)
    true("ids", 0xAAAA not in places[:count], places[:count].count(0xAAAA), "all of the list written")
    more, places = succeeds("a longer list", _list_into, vcpu, count + 5)
    equal("n of a longer list", more, count)
    equal("what lies beyond the longer list", places[count:], [0xAAAA] * 13)


@clause("reglist.sve-contents", arch="arm64", needs=(SVE,))
def sve_contents(context: Context) -> None:
    """With SVE the list has the vector lengths, Z, P, FFR and ZCR_EL1 instead of V; without SVE it has none of them.

    FPSR and FPCR are in both. Registers that are unknown to these clauses and in only one list are a note.

    Source: arch/arm64/kvm/guest.c, copy_sve_reg_indices, copy_core_reg_indices; Documentation/virt/kvm/api.rst, 4.68.
    """
    vectors = {v(n) for n in range(32)}
    wanted = {VLS, *SVE_REGISTERS, SYSTEM["ZCR_EL1"]}
    with_sve, without = set(listed(sve_vcpu(context))), set(listed(plain_vcpu(context)))
    equal("listed with SVE", _names(with_sve & (wanted | vectors)), _names(wanted))
    equal("listed without SVE", _names(without & (wanted | vectors)), _names(vectors))
    if others := (with_sve ^ without) - wanted - vectors:
        context.note(f"in only one of the lists: {', '.join(_names(others))}")
    true("FPSR and FPCR", {FPSR, FPCR} <= with_sve & without, "missing", "in both lists")


@clause("reglist.no-surplus", arch="arm64", needs=(SVE,))
def no_surplus(context: Context) -> None:
    """No slice of Z, P and FFR other than the first is listed.

    Source: arch/arm64/kvm/guest.c, copy_sve_reg_indices.
    """
    found = [r for r in listed(sve_vcpu(context)) if r.group == Group.SVE and r & 0xFFFF < _BEHIND_FFR]
    equal("SVE registers", len(found), len(SVE_REGISTERS))
    equal("other slices", _names(r for r in found if r.slice), [])


@clause("reglist.unique", arch="arm64")
def unique(context: Context) -> None:
    """No id is listed twice, and each is arm64's.

    Source: arch/arm64/kvm/guest.c, kvm_arm_copy_reg_indices.
    """
    found = listed(widest_vcpu(context))
    equal("listed twice", _names({r for r in found if found.count(r) > 1}), [])
    equal("not of arm64", _names(r for r in found if r >> 56 != 0x60), [])


@clause("reglist.order", arch="arm64", needs=(SVE,))
def order(context: Context) -> None:
    """The vector lengths come before Z, P and FFR: in the order of the list they could be restored.

    The list cannot be replayed as it is all the same: FINALIZE belongs between the vector lengths and Z0. Whether
    core registers come first, and Z, P and FFR in ascending order, is a note.

    Source: arch/arm64/kvm/guest.c, copy_sve_reg_indices (its comment), kvm_arm_copy_reg_indices.
    """
    found = listed(sve_vcpu(context))
    places = {register: at for at, register in enumerate(found)}
    missing = _names(register for register in (VLS, *SVE_REGISTERS) if register not in places)
    equal("SVE registers that are not listed", missing, [])
    earlier = [register for register in SVE_REGISTERS if places[register] < places[VLS]]
    equal("listed before the vector lengths", _names(earlier), [])
    last_core = max(at for register, at in places.items() if register.group == Group.CORE)
    first = "first" if last_core < places[VLS] else "not first"
    ascending = [places[register] for register in SVE_REGISTERS]
    context.note(f"core registers come {first}; Z, P, FFR ascend: {ascending == sorted(ascending)}")


@clause("reglist.get-set-all", arch="arm64", timeout=30)
def get_set_all(context: Context) -> None:
    """Every listed register can be read, and written with what was read, which then reads the same.

    With SVE, where KVM has it, and without. The vector lengths cannot be written after FINALIZE, and counters keep
    counting; what else changes by itself is a note.

    Source: Documentation/virt/kvm/api.rst, 4.68, 4.69 and 4.84.
    """
    for vcpu in (*([sve_vcpu(context)] if features(context) else []), plain_vcpu(context)):
        values = {r: succeeds(f"reading {r}", vcpu.get_one_reg, r) for r in listed(vcpu)}
        moving = {r for r, value in values.items() if vcpu.get_one_reg(r) != value} - COUNTERS
        if moving:
            context.note(f"change by themselves: {', '.join(_names(moving))}")
        for register, value in values.items():
            if register == VLS:
                refused_indicative(context, "writing VLS", errno.EPERM, vcpu.set_one_reg, register, value)
            else:
                succeeds(f"writing {register}", vcpu.set_one_reg, register, value)
        for register in values.keys() - COUNTERS - moving:
            equal(f"{register} written with what it read", vcpu.get_one_reg(register), values[register])


@clause("reglist.depends-on-idregs", arch="arm64", needs=(MASKS,))
def depends_on_idregs(context: Context) -> None:
    """Clearing a field of ID_AA64MMFR3_EL1 takes the registers of that feature from the list.

    So a restore has to write the ID registers before it compares lists.

    Source: arch/arm64/kvm/sys_regs.c, tcr2_visibility, s1pie_visibility, sctlr2_visibility.
    """
    name = "ID_AA64MMFR3_EL1"
    mask, value = writable(context, context.vm())[SYSTEM[name]], read(plain_vcpu(context), SYSTEM[name])
    chosen = [one for one in _BY_FIELD if field(name, one, value) and field(name, one, mask) == 0xF]
    if not chosen:
        context.skip(f"{name} is {value:#x}, {mask:#x} writable: none of {', '.join(_BY_FIELD)}")
    for feature in chosen:
        vcpu, registers = plain_vcpu(context), _BY_FIELD[feature]
        wanted = {SYSTEM[register] for register in registers}
        equal(f"listed with {feature}", _names(wanted & set(listed(vcpu))), _names(wanted))
        write(vcpu, SYSTEM[name], replaced(name, feature, value, 0))
        equal(f"listed without {feature}", _names(wanted & set(listed(vcpu))), [])
        for register in sorted(wanted):
            refused_indicative(context, f"reading {register}", errno.ENOENT, read, vcpu, register)


@clause("reglist.same-for-all-vcpus", arch="arm64")
def same_for_all(context: Context) -> None:
    """The list is the same for all vCPUs of a VM, and KVM_RUN does not change it.

    Source: arch/arm64/kvm/guest.c, kvm_arm_copy_reg_indices; arch/arm64/kvm/sys_regs.c, sysreg_hidden.
    """
    vm = context.vm()
    made = [widest_vcpu(context, vm, number) for number in range(2)]
    first, second = (vcpu.reg_list() for vcpu in made)
    equal("the second vCPU's list", second, first)
    enter(made[0])
    for vcpu in made:
        equal("the list after KVM_RUN", vcpu.reg_list(), first)


@clause("reglist.no-sme", arch="arm64")
def no_sme(context: Context) -> None:
    """Nothing of SME is listed but ID_AA64SMFR0_EL1, which is 0.

    Source: arch/arm64/kvm/sys_regs.c, sys_reg_descs (undef_access, sme_visibility).
    """
    vcpu = plain_vcpu(context)
    found = set(listed(vcpu))
    equal("SME's registers in the list", _names({SYSTEM[name] for name in _SME} & found), [])
    for name in _SME:
        refused_indicative(context, f"reading {name}", errno.ENOENT, read, vcpu, SYSTEM[name])
    true("ID_AA64SMFR0_EL1", SYSTEM["ID_AA64SMFR0_EL1"] in found, "missing", "in the list")
    equal("ID_AA64SMFR0_EL1", read(vcpu, SYSTEM["ID_AA64SMFR0_EL1"]), 0)
