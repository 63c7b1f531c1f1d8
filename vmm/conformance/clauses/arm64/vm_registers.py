# SPDX-License-Identifier: Apache-2.0
"""What a guest is told of its CPU and its clocks: identities, timers, keys, and what is undefined without a vGIC."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import SYSTEM, firmware, sysreg
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, PAUTH, call, plain_guest, plain_vcpu
from vmm.conformance.arm64.instructions import mrs
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, refused_indicative, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.vm import VirtualMachine

_MIDR, _MPIDR, _REVIDR, _AIDR = (3, 0, 0, 0, 0), (3, 0, 0, 0, 5), (3, 0, 0, 0, 6), (3, 1, 0, 0, 7)
_CNTVCT = mrs(3, 3, 14, 0, 2)
_ENABLE, _MASKED, _ISTATUS = 1, 2, 4
_FAR = 1 << 62
_OFFSET = 1 << 50
# APIA, APIB, APDA, APDB and APGA, each in two halves.
_KEYS = [sysreg(3, 0, 2, crm, op2) for crm, count in ((1, 4), (2, 4), (3, 2)) for op2 in range(count)]
_LEVELS = {0: "not available", 1: "available", 2: "not required"}
_GIC = {
    "ICC_PMR_EL1": (3, 0, 4, 6, 0), "ICC_IAR1_EL1": (3, 0, 12, 12, 0), "ICC_CTLR_EL1": (3, 0, 12, 12, 4),
    "ICC_IGRPEN1_EL1": (3, 0, 12, 12, 7),
}  # fmt: skip


@clause("vm.mpidr", arch="arm64", needs=(GUEST_RUNS,))
def mpidr(context: Context) -> None:
    """MPIDR_EL1 is each vCPU's own: it begins with the vCPU's number, can be written, and is what the guest reads.

    The number's low four bits are affinity 0, the next eight affinity 1. Hosts without GICv3 have few numbers.

    Source: arch/arm64/kvm/sys_regs.c, reset_mpidr; arch/arm64/kvm/hyp/include/hyp/sysreg-sr.h.
    """
    guest = plain_guest(context)
    number, own = (0x21, 0x201) if context.host.facts.capabilities["KVM_CAP_MAX_VCPUS"] > 0x21 else (5, 5)
    second = guest.vm.create_vcpu(number)
    vcpus.init(second, Feature.PSCI_0_2)
    for vcpu, affinity in ((guest.vcpu, 0), (second, own)):
        equal(f"MPIDR_EL1 of vCPU {vcpu.identifier:#x}", read(vcpu, sysreg(*_MPIDR)) & 0xFFFFFF, affinity)
    chosen = 1 << 31 | 0x030201
    succeeds("writing MPIDR_EL1", write, guest.vcpu, sysreg(*_MPIDR), chosen)
    call(context, guest, "MRS MPIDR_EL1", "execute", mrs(*_MPIDR))
    equal("MPIDR_EL1 in the guest", guest.mailbox.values[0], chosen)
    equal("MPIDR_EL1 of the other vCPU", read(second, sysreg(*_MPIDR)) & 0xFFFFFF, own)


@clause("vm.implementation-ids", arch="arm64", needs=(GUEST_RUNS,))
def implementation_ids(context: Context) -> None:
    """MIDR_EL1, REVIDR_EL1 and AIDR_EL1 take their own value and, if nothing was enabled, no other: EINVAL.

    The guest reads the same; where CPUs differ it reads what the one has that it runs on, and is not asked.

    Source: arch/arm64/kvm/sys_regs.c, set_imp_id_reg, access_imp_id_reg (before 6.15 kvm_set_invariant_sys_reg).
    """
    guest, kinds = plain_guest(context), context.host.facts.midrs
    if len(kinds) > 1:
        context.note(f"the host's CPUs differ: MIDR_EL1 is {', '.join(f'{midr:#x}' for midr in kinds)}")
    for encoding in (_MIDR, _REVIDR, _AIDR):
        register = sysreg(*encoding)
        value = read(guest.vcpu, register)
        succeeds(f"writing what {register} reads", write, guest.vcpu, register, value)
        refused_indicative(context, f"another {register}", errno.EINVAL, write, guest.vcpu, register, value ^ 1)
        equal(register.name, read(guest.vcpu, register), value)
        if len(kinds) <= 1:
            call(context, guest, f"MRS {register}", "execute", mrs(*encoding))
            equal(f"{register} in the guest", guest.mailbox.values[0], value)


@clause("vm.pauth-keys", arch="arm64", needs=(PAUTH,))
def pauth_keys(context: Context) -> None:
    """The ten halves of the pointer authentication keys keep their values, and exist only with the feature.

    Source: arch/arm64/kvm/sys_regs.c, ptrauth_visibility.
    """
    vcpu = context.vcpu()
    vcpus.init(vcpu, Feature.PTRAUTH_ADDRESS, Feature.PTRAUTH_GENERIC)
    listed = set(vcpu.reg_list())
    equal("keys in the list", [str(key) for key in _KEYS if key not in listed], [])
    for number, key in enumerate(_KEYS):
        succeeds(f"writing {key}", write, vcpu, key, 0x1111111111111111 * (number + 1))
    for number, key in enumerate(_KEYS):
        equal(key.name, read(vcpu, key), 0x1111111111111111 * (number + 1))
    without = plain_vcpu(context)
    listed = set(without.reg_list())
    equal("keys in the list without the feature", [str(key) for key in _KEYS if key in listed], [])
    for key in _KEYS:
        refused_indicative(context, f"reading {key}", errno.ENOENT, read, without, key)


@clause("vm.workaround-levels", arch="arm64")
def workaround_levels(context: Context) -> None:
    """A mitigation's level may be lowered and not be raised above the host's: EINVAL keeps a guest from a worse host.

    Source: arch/arm64/kvm/hypercalls.c, kvm_arm_set_fw_reg; Documentation/virt/kvm/arm/fw-pseudo-registers.rst.
    """
    vcpu = plain_vcpu(context)
    listed = set(vcpu.reg_list())
    for register in (firmware(1), firmware(3)):
        if register not in listed:  # WORKAROUND_3 is of 5.18 and of the stable releases that took its mitigation
            context.note(f"{register} is not listed")
            continue
        level = succeeds(f"reading {register}", read, vcpu, register)
        context.note(f"{register} is {level} ({_LEVELS.get(level, 'unknown')})")
        for lower in range(level + 1):
            succeeds(f"{register} = {lower}", write, vcpu, register, lower)
        for higher in (*range(level + 1, 4), 0x10, 1 << 63):
            refused_indicative(context, f"{register} = {higher:#x}", errno.EINVAL, write, vcpu, register, higher)


@clause("vm.timer-istatus", arch="arm64")
def timer_istatus(context: Context) -> None:
    """ISTATUS of a timer's control register cannot be written: it says whether the comparator has been passed.

    Source: arch/arm64/kvm/sys_regs.c, arch_timer_set_user; Arm ARM, D23 "CNTV_CTL_EL0".
    """
    vcpu = plain_vcpu(context)
    control = SYSTEM["CNTV_CTL_EL0"]
    write(vcpu, SYSTEM["CNTV_CVAL_EL0"], _FAR)
    for value in (_ENABLE | _MASKED | _ISTATUS, _MASKED | _ISTATUS, _ISTATUS, 0):
        succeeds(f"{control} = {value}", write, vcpu, control, value)
        equal(f"{control} written as {value}", read(vcpu, control), value & ~_ISTATUS)


def _set_offset(vm: VirtualMachine, offset: int, reserved: int = 0) -> None:
    value = {"counter_offset": offset, "reserved": reserved}
    vm.ioctl(lib.KVM_ARM_SET_COUNTER_OFFSET, ffi.new("struct kvm_arm_counter_offset *", value))


@clause("vm.timer-offset", arch="arm64", needs=(capability("KVM_CAP_COUNTER_OFFSET"), GUEST_RUNS))
def timer_offset(context: Context) -> None:
    """KVM_ARM_SET_COUNTER_OFFSET moves all of a VM's counters at once; writing one then succeeds and does nothing.

    Source: arch/arm64/kvm/arch_timer.c, kvm_vm_ioctl_set_counter_offset; Documentation/virt/kvm/api.rst, 4.138;
    Linux 6.4.
    """
    guest = plain_guest(context)
    counter = SYSTEM["CNTVCT_EL0"]
    refused("a reserved field", errno.EINVAL, _set_offset, guest.vm, 0, 1)
    write(guest.vcpu, counter, 0)
    # The host's own counter may have come far: with 1 GHz it takes 13 days to 2^50.
    succeeds("no offset", _set_offset, guest.vm, 0)
    first = read(guest.vcpu, counter) + _OFFSET
    succeeds("an offset of minus 2^50", _set_offset, guest.vm, (1 << 64) - _OFFSET)
    start = read(guest.vcpu, counter)
    what = "CNTVCT_EL0 with an offset of minus 2^50"
    true(what, first <= start < first + _OFFSET, start, f"2^50 more than without one: {first:#x} or a little more")
    succeeds("CNTVCT_EL0 = 0", write, guest.vcpu, counter, 0)
    call(context, guest, "MRS CNTVCT_EL0", "execute", _CNTVCT)
    value = guest.mailbox.values[0]
    true("CNTVCT_EL0 in the guest afterwards", start <= value < first + _OFFSET, value, f"{start:#x} or more")


@clause("vm.no-vgic-undefined", arch="arm64", needs=(GUEST_RUNS,))
def no_vgic(context: Context) -> None:
    """Without an interrupt controller its system registers are undefined for the guest, ICC_SRE_EL1 excepted.

    Source: arch/arm64/kvm/sys_regs.c, kvm_calculate_traps; arch/arm64/kvm/vgic/vgic-v3.c (traps without an irqchip).
    """
    guest = plain_guest(context)
    for name, encoding in _GIC.items():
        call(context, guest, f"MRS {name}", "execute", mrs(*encoding))
        equal(f"faults of MRS {name}", guest.mailbox.values[15], 1)
        equal(f"the exception class of MRS {name}", guest.fault().exception_class, 0)
