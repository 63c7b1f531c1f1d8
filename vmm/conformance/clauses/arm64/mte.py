# SPDX-License-Identifier: Apache-2.0
"""Memory tags (MTE) for a VM: when they are enabled, and which registers that brings."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import SYSTEM
from vmm.arm64.system_registers import field, replaced
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, call, plain_guest, writable
from vmm.conformance.arm64.instructions import mrs
from vmm.conformance.arm64.mte import IRG, MTE, execute, tagged, with_tag
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, refused_indicative, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.handle import Handle
from vmm.kvm.memory import PAGE_SIZE
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine

_PFR1 = "ID_AA64PFR1_EL1"
# Names, where MRS finds them, and values whose every bit the register has.
_REGISTERS = {
    "RGSR_EL1": ((3, 0, 1, 0, 5), 0xA5A507),
    "GCR_EL1": ((3, 0, 1, 0, 6), 0x1FFDF),
    "TFSR_EL1": ((3, 0, 5, 6, 0), 3),
    "TFSRE0_EL1": ((3, 0, 5, 6, 1), 3),
}
# The tag that GCR_EL1 does not exclude from random ones.
_ONLY_TAG = 5
_UNDEFINED = 0


def _enable(vm: VirtualMachine, flags: int = 0) -> None:
    vm.enable_cap(lib.KVM_CAP_ARM_MTE, flags=flags)


def _mte(vcpu: Vcpu) -> int:
    return field(_PFR1, "MTE", read(vcpu, SYSTEM[_PFR1]))


def _vcpu(context: Context, *, tags: bool) -> Vcpu:
    vm = context.vm()
    if tags:
        succeeds("KVM_CAP_ARM_MTE", _enable, vm)
    vcpu = vm.create_vcpu()
    vcpus.init(vcpu)
    return vcpu


@clause("mte.enable", arch="arm64", needs=(MTE,))
def enable(context: Context) -> None:
    """KVM_CAP_ARM_MTE is enabled before a VM's first vCPU, once or twice: later, or with a flag, it is EINVAL.

    A VM that was refused has no tags.

    Source: arch/arm64/kvm/arm.c, kvm_vm_ioctl_enable_cap; Documentation/virt/kvm/api.rst 7.28.
    """
    vm = context.vm()
    refused("a flag", errno.EINVAL, _enable, vm, 1)
    vcpu = vm.create_vcpu()
    refused("enabling it after the first vCPU", errno.EINVAL, _enable, vm)
    vcpus.init(vcpu)
    refused("enabling it after KVM_ARM_VCPU_INIT", errno.EINVAL, _enable, vm)
    equal(f"{_PFR1}.MTE of the VM that was refused", _mte(vcpu), 0)
    refused("its tags", errno.EINVAL, _tags, vm)
    vm = context.vm()
    succeeds("enabling it", _enable, vm)
    succeeds("enabling it again", _enable, vm)
    vcpus.init(vm.create_vcpu())
    refused("enabling it again after the first vCPU", errno.EINVAL, _enable, vm)
    succeeds("its tags", _tags, vm)


def _tags(vm: VirtualMachine) -> None:
    """KVM_ARM_MTE_COPY_TAGS of nothing."""
    argument = {"guest_ipa": 0, "length": 0, "flags": lib.KVM_ARM_TAGS_FROM_GUEST}
    vm.ioctl(lib.KVM_ARM_MTE_COPY_TAGS, ffi.new("struct kvm_arm_copy_mte_tags *", argument))


@clause("mte.no-aarch32", arch="arm64", needs=(MTE, capability("KVM_CAP_ARM_EL1_32BIT")))
def no_aarch32(context: Context) -> None:
    """A vCPU of AArch32 cannot be initialised where KVM_CAP_ARM_MTE is enabled: EINVAL.

    Source: Documentation/virt/kvm/api.rst 7.28; arch/arm64/kvm/arm.c, kvm_vcpu_init_check_features.
    """
    plain = context.vm().create_vcpu()
    succeeds("a vCPU of AArch32 without tags", vcpus.init, plain, Feature.EL1_32BIT)
    vm = context.vm()
    _enable(vm)
    vcpu = vm.create_vcpu()
    refused("a vCPU of AArch32 with tags", errno.EINVAL, vcpus.init, vcpu, Feature.EL1_32BIT)
    succeeds("one of AArch64 after that", vcpus.init, vcpu)
    true(f"{_PFR1}.MTE", _mte(vcpu) >= 2, _mte(vcpu), "2 or more")


@clause("mte.id-register", arch="arm64", needs=(MTE, GUEST_RUNS))
def id_register(context: Context) -> None:
    """ID_AA64PFR1_EL1.MTE is 2 or more where the capability is enabled and 0 elsewhere, and follows nothing else.

    What KVM says the guest reads.

    Source: arch/arm64/kvm/sys_regs.c, sanitise_id_aa64pfr1_el1 (before: read_id_reg).
    """
    register = SYSTEM[_PFR1]
    for guest, tags in ((tagged(context), True), (plain_guest(context), False)):
        value = read(guest.vcpu, register)
        expected = "2 or more" if tags else "0"
        true(f"{_PFR1}.MTE {'with' if tags else 'without'} tags", (_mte(guest.vcpu) >= 2) == tags
             and (tags or not _mte(guest.vcpu)), _mte(guest.vcpu), expected)  # fmt: skip
        call(context, guest, f"MRS {_PFR1}", "execute", mrs(3, 0, 0, 4, 1))
        equal(f"{_PFR1} in the guest", guest.mailbox.values[0], value)
    for tags in (True, False):
        vcpu = _vcpu(context, tags=tags)
        value = read(vcpu, register)
        other = replaced(_PFR1, "MTE", value, 0 if tags else 2)
        if not field(_PFR1, "MTE", writable(context, context.vm()).get(register, 0)):
            refused_indicative(
                context, f"{_PFR1}.MTE = {0 if tags else 2}", errno.EINVAL, write, vcpu, register, other
            )
            equal(_PFR1, read(vcpu, register), value)


@clause("mte.registers", arch="arm64", needs=(MTE, GUEST_RUNS))
def registers(context: Context) -> None:
    """With tags RGSR_EL1, GCR_EL1, TFSR_EL1 and TFSRE0_EL1 are listed, kept, and what the guest has; without, hidden.

    Where they are hidden KVM_GET_ONE_REG does not know them and the guest's MRS is undefined.

    Source: arch/arm64/kvm/sys_regs.c, MTE_REG, mte_visibility; arch/arm64/include/asm/kvm_mte.h;
    arch/arm64/kvm/hyp/include/hyp/sysreg-sr.h.
    """
    guest = tagged(context)
    listed = set(guest.vcpu.reg_list())
    for name, (encoding, value) in _REGISTERS.items():
        succeeds(f"writing {name}", write, guest.vcpu, SYSTEM[name], value)
        equal(f"{name} in the guest", execute(context, guest, f"MRS {name}", mrs(*encoding)).value, value)
        equal(f"{name} after the guest has run", read(guest.vcpu, SYSTEM[name]), value)
    made = execute(context, guest, "IRG", IRG, with_tag(0, 3)).value
    equal("a random tag, of those that GCR_EL1 leaves", made, with_tag(0, _ONLY_TAG))
    other = plain_guest(context)
    brought = sorted(str(register) for register in map(SYSTEM.__getitem__, _REGISTERS)
                     if register in listed - set(other.vcpu.reg_list()))  # fmt: skip
    equal("registers that only tags bring", brought, sorted(_REGISTERS))
    for name, (encoding, _) in _REGISTERS.items():
        refused_indicative(context, f"{name} without tags", errno.ENOENT, read, other.vcpu, SYSTEM[name])
        call(context, other, f"MRS {name}", "execute", mrs(*encoding))
        equal(f"faults of MRS {name} without tags", other.mailbox.values[15], 1)
        equal("the exception's class", other.fault().exception_class, _UNDEFINED)


@clause("mte.no-guest-memfd", arch="arm64", needs=(MTE, capability("KVM_CAP_GUEST_MEMFD"),
                                                   capability("KVM_CAP_USER_MEMORY2")))  # fmt: skip
def no_guest_memfd(context: Context) -> None:
    """Tags and guest_memfd exclude each other: EINVAL for whichever comes second.

    Source: Documentation/virt/kvm/api.rst 7.28; arch/arm64/kvm/mmu.c, kvm_arch_prepare_memory_region;
    arch/arm64/kvm/arm.c, kvm_vm_ioctl_enable_cap.
    """

    def set_memfd(vm: VirtualMachine) -> None:
        vm.ioctl(lib.KVM_SET_USER_MEMORY_REGION2, ffi.new("struct kvm_userspace_memory_region2 *", {
            "flags": lib.KVM_MEM_GUEST_MEMFD, "memory_size": PAGE_SIZE, "guest_memfd": memfds[vm.fd],
        }))  # fmt: skip

    memfds = {}
    vms = [context.vm() for _ in range(2)]
    for vm in vms:
        argument = ffi.new("struct kvm_create_guest_memfd *", {"size": PAGE_SIZE, "flags": lib.GUEST_MEMFD_FLAG_MMAP})
        memfds[vm.fd] = context.own(Handle(vm.ioctl(lib.KVM_CREATE_GUEST_MEMFD, argument))).fd
    _enable(vms[0])
    refused("guest_memfd with tags", errno.EINVAL, set_memfd, vms[0])
    set_memfd(vms[1])
    refused("tags with guest_memfd", errno.EINVAL, _enable, vms[1])
    vcpu = vms[1].create_vcpu()
    vcpus.init(vcpu)
    equal(f"{_PFR1}.MTE of the VM that was refused", _mte(vcpu), 0)
