# SPDX-License-Identifier: Apache-2.0
"""ID registers of a VM: which fields may be written, until when, and what the guest reads."""

from __future__ import annotations

import errno

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import SYSTEM, sysreg
from vmm.arm64.system_registers import FEATURES, FIELDS, NAMES, field, fields, replaced
from vmm.arm64.vcpu import read, write
from vmm.conformance.arm64.common import (
    GUEST_RUNS,
    MASKS,
    SVE,
    call,
    enter,
    features,
    guests,
    plain_vcpu,
    sve_guest,
    sve_vcpu,
    widest_vcpu,
    writable,
)
from vmm.conformance.arm64.instructions import mrs
from vmm.conformance.context import Context
from vmm.conformance.expect import Skipped, equal, refused, refused_indicative, succeeds, true
from vmm.conformance.registry import clause
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.probe.arm64.facts import HWCAP2_SVE2

_PFR0, _ZFR0, _ISAR0 = "ID_AA64PFR0_EL1", "ID_AA64ZFR0_EL1", "ID_AA64ISAR0_EL1"


@clause("id.pfr0-sve", arch="arm64", needs=(SVE, GUEST_RUNS))
def pfr0_sve(context: Context) -> None:
    """ID_AA64PFR0_EL1.SVE is 1 or more for a vCPU with SVE and 0 without, by ioctl and in the guest.

    Source: arch/arm64/kvm/sys_regs.c, sanitise_id_aa64pfr0_el1.
    """
    for guest, has in zip(guests(context), (True, False), strict=True):
        call(context, guest, f"MRS {_PFR0}", "execute", mrs(3, 0, 0, 4, 0))
        for who, value in (("KVM", read(guest.vcpu, SYSTEM[_PFR0])), ("the guest", guest.mailbox.values[0])):
            sve = field(_PFR0, "SVE", value)
            true(f"{_PFR0}.SVE by {who}", (sve > 0) == has, sve, "1 or more" if has else "0")


@clause("id.pfr0-sve-not-writable", arch="arm64", needs=(SVE,))
def pfr0_not_writable(context: Context) -> None:
    """ID_AA64PFR0_EL1.SVE, FP and AdvSIMD cannot be written: only VCPU_INIT chooses SVE.

    FP and AdvSIMD are left out where KVM says that they can.

    Source: arch/arm64/kvm/sys_regs.c, sys_reg_descs (ID_AA64PFR0_EL1's mask), arm64_check_features.
    """
    mask = writable(context, context.vm()).get(SYSTEM[_PFR0], 0)
    fixed = ["SVE", *(name for name in ("FP", "AdvSIMD") if not field(_PFR0, name, mask))]
    for vcpu in (sve_vcpu(context), plain_vcpu(context)):
        value = read(vcpu, SYSTEM[_PFR0])
        succeeds("writing what it reads", write, vcpu, SYSTEM[_PFR0], value)
        for name in fixed:
            for new in {0, 1, 15} - {field(_PFR0, name, value)}:
                what = f"{_PFR0}.{name} = {new}"
                changed = replaced(_PFR0, name, value, new)
                refused_indicative(context, what, errno.EINVAL, write, vcpu, SYSTEM[_PFR0], changed)
        equal(_PFR0, read(vcpu, SYSTEM[_PFR0]), value)


@clause("id.zfr0-raz-nonsve", arch="arm64")
def zfr0_without_sve(context: Context) -> None:
    """Without SVE ID_AA64ZFR0_EL1 is listed and 0; 0 may be written and nothing else.

    From 5.2 to 5.10 it was hidden then (fixed by commit f81cb2c3ad41), which made lists incompatible.

    Source: arch/arm64/kvm/sys_regs.c, sys_reg_descs.
    """
    vcpu = plain_vcpu(context)
    true(_ZFR0, SYSTEM[_ZFR0] in vcpu.reg_list(), "missing", "in the list")
    equal(_ZFR0, read(vcpu, SYSTEM[_ZFR0]), 0)
    succeeds("writing 0", write, vcpu, SYSTEM[_ZFR0], 0)
    for value in (1, 1 << 32, (1 << 64) - 1):
        refused_indicative(context, f"writing {value:#x}", errno.EINVAL, write, vcpu, SYSTEM[_ZFR0], value)
    equal(f"{_ZFR0} afterwards", read(vcpu, SYSTEM[_ZFR0]), 0)


@clause("id.zfr0-downgrade", arch="arm64", needs=(SVE,))
def zfr0_downgrade(context: Context) -> None:
    """A field of ID_AA64ZFR0_EL1 that KVM says is writable may be lowered before the first run; none may be raised.

    Its SVEver is not 0 exactly where the host has SVE2: on a CPU with only SVE there is nothing to lower. Before 6.7
    (commit f89fbb350dd7) nothing but its own value could be written.

    Source: arch/arm64/kvm/sys_regs.c, sys_reg_descs, arm64_check_features; arch/arm64/kernel/cpufeature.c.
    """
    vm = context.vm()
    mask = writable(context, vm).get(SYSTEM[_ZFR0], 0)
    start = read(widest_vcpu(context, vm), SYSTEM[_ZFR0])
    sve2 = bool(context.host.facts.hwcap2 & HWCAP2_SVE2)
    version = field(_ZFR0, "SVEver", start)
    true(f"{_ZFR0}.SVEver", (version > 0) == sve2, version, "1 or more, as the host has SVE2" if sve2 else "0")
    if not start:
        context.note(f"{_ZFR0} is 0: there is nothing to lower")
    for name, number in fields(_ZFR0, start).items():
        vcpu = sve_vcpu(context)
        lower = replaced(_ZFR0, name, start, number - 1)
        what = f"{_ZFR0}.{name} = {number - 1}"
        if not field(_ZFR0, name, mask):
            refused_indicative(context, what, errno.EINVAL, write, vcpu, SYSTEM[_ZFR0], lower)
        else:
            succeeds(what, write, vcpu, SYSTEM[_ZFR0], lower)
            equal(what, read(vcpu, SYSTEM[_ZFR0]), lower)
            succeeds("back to the host's", write, vcpu, SYSTEM[_ZFR0], start)
    vcpu = sve_vcpu(context)
    for name in FIELDS[_ZFR0]:
        higher = replaced(_ZFR0, name, start, 15)
        what = f"{_ZFR0}.{name} = 15"
        refused_indicative(context, what, errno.EINVAL, write, vcpu, SYSTEM[_ZFR0], higher)
    equal(f"{_ZFR0} afterwards", read(vcpu, SYSTEM[_ZFR0]), start)


@clause("id.immutable-after-run", arch="arm64")
def immutable(context: Context) -> None:
    """After the VM's first KVM_RUN an ID register takes its own value and refuses any other with EBUSY.

    Where KVM does not say what is writable (before 6.7) another value is EINVAL at any time.

    Source: arch/arm64/kvm/sys_regs.c, set_id_reg.
    """
    vm = context.vm()
    first, second = (widest_vcpu(context, vm, number) for number in range(2))
    enter(first)
    number = errno.EBUSY if writable(context, vm) else errno.EINVAL
    for vcpu in (first, second):
        for name in (_ZFR0, _ISAR0):
            value = read(vcpu, SYSTEM[name])
            succeeds(f"writing what {name} reads", write, vcpu, SYSTEM[name], value)
            changed = value & (value - 1) if value else 1
            refused_indicative(context, f"another {name}", number, write, vcpu, SYSTEM[name], changed)
            equal(f"{name} afterwards", read(vcpu, SYSTEM[name]), value)


def _lowered(context: Context, vm: VirtualMachine, vcpu: Vcpu) -> tuple[str, int]:
    """Lower an ID register of a VM whose fields all may be lowered to 0; its name and what it was before."""
    masks = writable(context, vm)
    values = {name: read(vcpu, SYSTEM[name]) for name in (_ZFR0, _ISAR0)}
    for name, value in values.items():
        if value & masks[SYSTEM[name]]:
            write(vcpu, SYSTEM[name], value & ~masks[SYSTEM[name]])
            return name, value
    found = [f"{name} is {value:#x} ({masks[SYSTEM[name]]:#x} writable)" for name, value in values.items()]
    raise Skipped(f"no ID register can be lowered here: {' and '.join(found)}")


@clause("id.vm-scoped", arch="arm64", needs=(MASKS,))
def vm_scoped(context: Context) -> None:
    """ID registers belong to the VM: what is written through one vCPU is read through the others, and by no other VM.

    Source: arch/arm64/kvm/sys_regs.c, __vm_id_reg (kvm_read_vm_id_reg); Linux 6.7.
    """
    vm = context.vm()
    first, second = (widest_vcpu(context, vm, number) for number in range(2))
    name, start = _lowered(context, vm, first)
    equal(f"{name} of the other vCPU", read(second, SYSTEM[name]), read(first, SYSTEM[name]))
    true(f"{name} of the other vCPU", read(second, SYSTEM[name]) != start, start, "lowered too")
    equal(f"{name} of another VM", read(widest_vcpu(context), SYSTEM[name]), start)


@clause("id.reinit-preserves", arch="arm64", needs=(MASKS,))
def reinit_preserves(context: Context) -> None:
    """VCPU_INIT again, before and after a run, keeps the ID registers as they were written.

    Source: arch/arm64/kvm/sys_regs.c, kvm_reset_sys_regs, reset_vm_ftr_id_reg.
    """
    vm = context.vm()
    vcpu = widest_vcpu(context, vm)
    name, start = _lowered(context, vm, vcpu)
    lowered = read(vcpu, SYSTEM[name])
    true(name, lowered != start, start, "lowered")
    for when in ("before", "after"):
        succeeds(f"VCPU_INIT {when} a run", vcpus.init, vcpu, *features(context))
        equal(f"{name} after VCPU_INIT {when} a run", read(vcpu, SYSTEM[name]), lowered)
        enter(vcpu)


@clause("id.guest-equals-user", arch="arm64", needs=(GUEST_RUNS,), timeout=30)
def guest_equals_user(context: Context) -> None:
    """The guest's MRS of every AArch64 feature register reads what KVM_GET_ONE_REG says after the first run.

    Source: arch/arm64/kvm/sys_regs.c, access_id_reg.
    """
    for guest in guests(context):
        for encoding in FEATURES:
            name = NAMES.get(encoding, str(sysreg(*encoding)))
            call(context, guest, f"MRS {name}", "execute", mrs(*encoding))
            equal(f"faults of MRS {name}", guest.mailbox.values[15], 0)
            equal(f"{name} in the guest", guest.mailbox.values[0], read(guest.vcpu, sysreg(*encoding)))


@clause("id.gic-changes-at-first-run", arch="arm64")
def gic_changes(context: Context) -> None:
    """Without an interrupt controller ID_AA64PFR0_EL1.GIC is 0 from the first run on, whatever it was before.

    So states saved before and after a first run differ in it.

    Source: arch/arm64/kvm/sys_regs.c, kvm_finalize_sys_regs.
    """
    vcpu = plain_vcpu(context)
    start = read(vcpu, SYSTEM[_PFR0])
    context.note(f"{_PFR0}.GIC is {field(_PFR0, 'GIC', start)} before the first run")
    enter(vcpu)
    value = read(vcpu, SYSTEM[_PFR0])
    equal(f"{_PFR0}.GIC after the first run", field(_PFR0, "GIC", value), 0)
    equal(f"the rest of {_PFR0}", value, replaced(_PFR0, "GIC", start, 0))
    if start != value:
        refused_indicative(context, "the value from before", errno.EBUSY, write, vcpu, SYSTEM[_PFR0], start)


@clause("id.writable-masks", arch="arm64", needs=(MASKS,), timeout=60)
def writable_masks(context: Context) -> None:
    """KVM_ARM_GET_REG_WRITABLE_MASKS is true: outside of a feature register's mask no bit can be changed.

    ID_AA64ZFR0_EL1 has a mask, ID_AA64PFR0_EL1's leaves SVE out. Ranges that the capability lacks are refused, and so
     are reserved fields that are not 0.

    Source: arch/arm64/kvm/sys_regs.c, kvm_vm_ioctl_get_reg_writable_masks; Documentation/virt/kvm/api.rst, 4.139;
    Linux 6.7.
    """
    vcpu, vm = widest_vcpu(context), context.vm()
    masks = succeeds("KVM_ARM_GET_REG_WRITABLE_MASKS", writable, context, vm)
    ranges = context.host.facts.capabilities["KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES"]
    unknown = next(number for number in range(64) if not ranges >> number & 1)
    refused(f"range {unknown}", errno.EINVAL, vcpus.writable_masks, vm, region=unknown)
    refused("a reserved field", errno.EINVAL, vcpus.writable_masks, vm, reserved=1)
    true(f"the mask of {_ZFR0}", masks[SYSTEM[_ZFR0]] != 0, 0, "some bits")
    equal(f"SVE in the mask of {_PFR0}", field(_PFR0, "SVE", masks[SYSTEM[_PFR0]]), 0)
    changed = []
    for register, mask in masks.items():
        value = read(vcpu, register)
        for bit in range(64):
            if not mask >> bit & 1:
                try:
                    write(vcpu, register, value ^ 1 << bit)
                except KvmError:
                    continue
                if read(vcpu, register) != value:
                    changed.append(f"{register} bit {bit}")
                    write(vcpu, register, value)
    equal("bits outside of the masks that could be changed", changed, [])


_BFDOT = 0x64608000  # BFDOT Z0.S, Z0.H, Z0.H


@clause("id.zfr0-is-advisory", arch="arm64", needs=(SVE, MASKS, GUEST_RUNS), info=True)
def zfr0_advisory(context: Context) -> None:
    """A feature that ID_AA64ZFR0_EL1 is told to hide works in the guest all the same: nothing can trap it.

    So a guest's baseline is what it is told, and no more.

    Source: Arm ARM, D23 "ID_AA64ZFR0_EL1"; arch/arm64/kvm/sys_regs.c (the mask of writable fields); Linux 6.7.
    """
    guest = sve_guest(context, payload="hello")
    name = "ID_AA64ZFR0_EL1"
    value = read(guest.vcpu, SYSTEM[name])
    if not field(name, "BF16", value):
        context.skip(f"{name}.BF16 is {field(name, 'BF16', value)}: no field whose instructions are known here")
    write(guest.vcpu, SYSTEM[name], replaced(name, "BF16", value, 0))
    call(context, guest, "a guest's BFDOT", "execute", _BFDOT)
    does = "works" if guest.mailbox.values[15] == 0 else "is undefined"
    context.note(f"BFDOT {does} for a guest with {name}.BF16 = 0")
