# SPDX-License-Identifier: Apache-2.0
"""ID registers, field by field: each that KVM calls writable can be lowered, and the guest sees it."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.id_registers import REGISTERS, IdRegister
from vmm.arm64.registers import Register, sysreg
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, MASKS, SVE, again, call
from vmm.conformance.arm64.id_fields import changes, id_masks, least_of_all
from vmm.conformance.arm64.instructions import mrs
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused_indicative, succeeds
from vmm.conformance.registry import clause
from vmm.kvm.vcpu import Vcpu

_NEEDS = (MASKS, GUEST_RUNS)
# What the first run changes by itself: GIC without an interrupt controller, and since Linux 7.3 S1PIE and S1POE
# without what they stand on (arch/arm64/kvm/sys_regs.c, kvm_finalize_sys_regs).
_CHANGED = {"ID_AA64PFR0_EL1": ("GIC",), "ID_PFR1_EL1": ("GIC",), "ID_AA64MMFR3_EL1": ("S1PIE", "S1POE")}


def _register(name: str) -> Register:
    return sysreg(*REGISTERS[name].encoding)


def _kept(name: str, register: IdRegister) -> int:
    """The bits that a first run leaves as they are."""
    return ~sum(field.mask for field in register.fields if field.name in _CHANGED.get(name, ()))


def _make(context: Context, *features: Feature) -> Guest:
    return context.own(Guest(context.kvm, "hello", features=(Feature.PSCI_0_2, *features)))


def _each(context: Context, vcpu: Vcpu, name: str, mask: int) -> None:
    """Lower each field by one step and try the next value above, which is refused; then read it back.

    In each of these values the other fields are as at the start.
    """
    register = _register(name)
    now = start = read(vcpu, register)
    for field, lower, higher in changes(name, start, mask):
        if lower is not None:
            what = f"{name}.{field.name} = {field.of(lower):#x}, from {field.of(start):#x}"
            succeeds(what, write, vcpu, register, lower)
            now = lower
        if higher is not None:
            what = f"{name}.{field.name} = {field.of(higher):#x}, from {field.of(start):#x}"
            refused_indicative(context, what, errno.EINVAL, write, vcpu, register, higher)
        if lower is not None or higher is not None:
            equal(f"{name} after its {field.name} was lowered, and not raised", read(vcpu, register), now)
    if now != start:
        succeeds(f"{name} as it was", write, vcpu, register, start)


def _lowered(context: Context, guest: Guest, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Lower all fields at once; return the registers that are another now: their values before and after."""
    masks = id_masks(guest.vm)
    found = {}
    for name in names:
        start = read(guest.vcpu, _register(name))
        lower = least_of_all(name, start, masks[name])
        if lower != start:
            succeeds(f"{name} = {lower:#x}", write, guest.vcpu, _register(name), lower)
            found[name] = start, lower
    return found


def _fields(context: Context, names: Sequence[str], *features: Feature) -> None:
    """Each field alone, then all at once, which the guest has to find and a second vCPU to share."""
    guest = _make(context, *features)
    masks = id_masks(guest.vm)
    for name in names:
        _each(context, guest.vcpu, name, masks[name])
    lowered = _lowered(context, guest, names)
    if not lowered:
        values = ", ".join(f"{name} is {read(guest.vcpu, _register(name)):#x} ({masks[name]:#x})" for name in names)
        context.skip(f"no field can be lowered here: {values} writable")
    call(context, guest, "the first run", "ticks", 1)
    for name, (_, lower) in lowered.items():
        kept = _kept(name, REGISTERS[name])
        again(context, guest, f"MRS {name}", "execute", mrs(*REGISTERS[name].encoding), 0)
        equal(f"faults of MRS {name}", guest.mailbox.values[15], 0)
        equal(f"{name} in the guest", guest.mailbox.values[0] & kept, lower & kept)


@clause("id.isar-fields-lower", arch="arm64", needs=_NEEDS)
def isar(context: Context) -> None:
    """Each writable field of ID_AA64ISAR0_EL1 to ID_AA64ISAR3_EL1 can be lowered, which the guest sees, not raised.

    Source: arch/arm64/kvm/sys_regs.c, set_id_reg, arm64_check_features; Documentation/virt/kvm/api.rst, 4.139.
    """
    _fields(context, [f"ID_AA64ISAR{number}_EL1" for number in range(4)])


@clause("id.pfr-fields-lower", arch="arm64", needs=_NEEDS)
def pfr(context: Context) -> None:
    """Each writable field of ID_AA64PFR0_EL1 to ID_AA64PFR2_EL1 can be lowered, which the guest sees, not raised.

    EL0 and EL1 stay at least 1. The first run clears GIC: id.gic-changes-at-first-run.

    Source: arch/arm64/kvm/sys_regs.c, set_id_aa64pfr0_el1, set_id_aa64pfr1_el1, arm64_check_features.
    """
    _fields(context, [f"ID_AA64PFR{number}_EL1" for number in range(3)])


@clause("id.mmfr-fields-lower", arch="arm64", needs=_NEEDS)
def mmfr(context: Context) -> None:
    """Each writable field of ID_AA64MMFR0_EL1 to ID_AA64MMFR4_EL1 can be lowered, which the guest sees, not raised.

    SpecSEI the other way round: not to have it is the promise.

    Source: arch/arm64/kvm/sys_regs.c, set_id_aa64mmfr0_el1, set_id_aa64mmfr2_el1, arm64_check_features.
    """
    _fields(context, [f"ID_AA64MMFR{number}_EL1" for number in range(5)])


@clause("id.dfr-fields-lower", arch="arm64", needs=_NEEDS)
def dfr(context: Context) -> None:
    """Each writable field of ID_AA64DFR0_EL1 can be lowered, which the guest sees, and not raised.

    Its PMUVer on a vCPU with a PMU, which does not run here. DebugVer stays at least 6.

    Source: arch/arm64/kvm/sys_regs.c, set_id_aa64dfr0_el1, kvm_arm64_ftr_safe_value.
    """
    names = ("ID_AA64DFR0_EL1", "ID_AA64DFR1_EL1")
    if context.host.facts.capabilities["KVM_CAP_ARM_PMU_V3"]:
        vm = context.vm()
        vcpu = vm.create_vcpu()
        vcpus.init(vcpu, Feature.PMU_V3)
        for name in names:
            _each(context, vcpu, name, id_masks(vm)[name])
    _fields(context, names)


@clause("id.vector-fields-lower", arch="arm64", needs=(*_NEEDS, SVE))
def vectors(context: Context) -> None:
    """Each writable field of ID_AA64ZFR0_EL1 and ID_AA64FPFR0_EL1 can be lowered, which the guest sees, not raised.

    Source: arch/arm64/kvm/sys_regs.c, sys_reg_descs, arm64_check_features.
    """
    _fields(context, ("ID_AA64ZFR0_EL1", "ID_AA64FPFR0_EL1"), Feature.SVE)


@clause("id.aarch32-fields-lower", arch="arm64", needs=_NEEDS)
def aarch32(context: Context) -> None:
    """Each writable field of the ID registers of AArch32 can be lowered, which the guest sees, and not raised.

    All of their bits are writable since 6.18 (commit 3f9eacf4f070, which stable releases took too). On a CPU without
    AArch32 they are 0.

    Source: arch/arm64/kvm/sys_regs.c, AA32_ID_WRITABLE, set_id_dfr0_el1, arm64_check_features.
    """
    _fields(context, [name for name in REGISTERS if not name.startswith(("ID_AA64", "CTR"))])


@clause("id.ctr-fields-lower", arch="arm64", needs=_NEEDS)
def ctr(context: Context) -> None:
    """Each writable field of CTR_EL0 can be made safer, which the guest sees at EL1, and no less safe.

    Source: arch/arm64/kvm/sys_regs.c, set_ctr_el0, access_ctr; arch/arm64/kernel/cpufeature.c, ftr_ctr.
    """
    _fields(context, ("CTR_EL0",))


@clause("id.all-fixed-after-run", arch="arm64", needs=_NEEDS)
def fixed(context: Context) -> None:
    """After the VM's first run every lowered ID register refuses what it was before with EBUSY and keeps its value.

    Through the vCPU that ran and through another one.

    Source: arch/arm64/kvm/sys_regs.c, set_id_reg (kvm_vm_has_ran_once).
    """
    guest = _make(context)
    second = guest.vm.create_vcpu(1)
    vcpus.init(second, Feature.PSCI_0_2)
    from_first = _lowered(context, guest, REGISTERS)
    if not from_first:
        context.skip("KVM_ARM_GET_REG_WRITABLE_MASKS has no field that can be lowered here")
    call(context, guest, "the first run", "ticks", 1)
    for vcpu in (guest.vcpu, second):
        for name, (start, lower) in from_first.items():
            kept = _kept(name, REGISTERS[name])
            refused_indicative(context, f"{name} = {start:#x}", errno.EBUSY, write, vcpu, _register(name), start)
            equal(f"{name} afterwards", read(vcpu, _register(name)) & kept, lower & kept)
