# SPDX-License-Identifier: Apache-2.0
"""KVM_GET_ONE_REG and KVM_SET_ONE_REG of what names nothing: other architectures, hidden registers, random ids."""

from __future__ import annotations

import errno
import random

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import PC, SYSTEM, Group, Register, sysreg, x
from vmm.arm64.vcpu import write
from vmm.conformance.arm64.common import enter, features, get_bad, plain_vcpu, set_bad, warnings
from vmm.conformance.context import Context
from vmm.conformance.expect import Violation, refused_indicative, succeeds
from vmm.conformance.registry import clause
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu


@clause("onereg.arch-field-einval", arch="arm64")
def arch_field(context: Context) -> None:
    """An id of another architecture, or with reserved bits set, is refused with EINVAL.

    Source: arch/arm64/kvm/guest.c, kvm_arm_get_reg, kvm_arm_set_reg.
    """
    vcpu = plain_vcpu(context)
    low = x(0) & 0x00F0_0000_FFFF_FFFF
    for name, top in (("32-bit Arm", 0x4 << 60), ("x86", 0x2 << 60), ("none", 0), ("RISC-V", 0x8 << 60)):
        register = Register(top | low)
        refused_indicative(context, f"reading X0 of {name}", errno.EINVAL, vcpu.get_one_reg, register)
        refused_indicative(context, f"writing X0 of {name}", errno.EINVAL, vcpu.set_one_reg, register, bytes(8))
    for bit in (32, 40, 51, 57):
        register = Register(x(0) | 1 << bit)
        refused_indicative(context, f"reading X0 with bit {bit}", errno.EINVAL, get_bad, vcpu, register)


@clause("onereg.sysreg-errors", arch="arm64")
def sysreg_errors(context: Context) -> None:
    """A system register that does not exist, is hidden, or is named with another size than 64 bits is ENOENT.

    Source: arch/arm64/kvm/sys_regs.c, kvm_sys_reg_get_user, kvm_sys_reg_set_user, index_to_params.
    """
    vcpu = plain_vcpu(context)
    known = SYSTEM["TPIDR_EL1"]
    wrong = {
        "no register": sysreg(3, 7, 15, 15, 7),
        "a register of EL3": sysreg(3, 6, 1, 0, 0),
        "ZCR_EL1 without SVE": SYSTEM["ZCR_EL1"],
        "TPIDR_EL1 in 32 bits": Register(known & ~(0xF << 52) | 2 << 52),
        "TPIDR_EL1 in 128 bits": Register(known & ~(0xF << 52) | 4 << 52),
    }
    for what, register in wrong.items():
        refused_indicative(context, f"reading {what}", errno.ENOENT, vcpu.get_one_reg, register)
        value = bytes(register.size)
        refused_indicative(context, f"writing {what}", errno.ENOENT, vcpu.set_one_reg, register, value)
    refused_indicative(context, "reading TPIDR_EL1 to a bad address", errno.EFAULT, get_bad, vcpu, known)
    refused_indicative(context, "writing TPIDR_EL1 from a bad address", errno.EFAULT, set_bad, vcpu, known)


# The documentation calls the errnos of these calls indicative, so that any may come. But these cannot be about an id
# or a value: the VM is dead, the call does not exist.
_BROKEN = {errno.EIO, errno.ENOTTY, errno.ENOSYS, errno.EBADF}


_FUZZED, _FUZZED_EXHAUSTIVE = 3000, 300_000


_GROUPS = tuple(Group)


def _fuzz(vcpu: Vcpu, source: random.Random, count: int) -> None:
    for _ in range(count):
        identifier = 6 << 60 | source.randrange(10) << 52 | source.choice(_GROUPS) << 16 | source.getrandbits(16)
        if source.random() < 0.1:
            identifier ^= 1 << source.randrange(64)
        register = Register(identifier)
        try:
            if source.random() < 0.5:
                vcpu.get_one_reg(register)
            else:
                vcpu.set_one_reg(register, source.randbytes(register.size))
        except KvmError as error:
            if error.errno in _BROKEN:
                raise Violation(
                    f"errno for {register:#x}", "one that is about the id or the value", error.errno_name
                ) from error


@clause("onereg.fuzz-no-oops", arch="arm64", timeout=120)
def fuzz(context: Context) -> None:
    """Random ids and values are refused or taken, in every stage of a vCPU, and leave the vCPU able to run.

    Where the kernel's log can be read it has no new warning of KVM's afterwards.

    Source: Documentation/virt/kvm/api.rst, 4.68 and 4.69.
    """
    source = random.Random(context.options.seed)
    count = _FUZZED_EXHAUSTIVE if context.options.exhaustive else _FUZZED
    no_warnings, chosen = warnings(context), features(context)
    vcpu = context.vcpu()
    _fuzz(vcpu, source, count // 10)
    vcpus.init(vcpu, *chosen)
    _fuzz(vcpu, source, count // 3)
    if chosen:
        vcpus.init(vcpu, *chosen)  # the lengths may be any by now
        vcpus.finalize(vcpu)
    _fuzz(vcpu, source, count // 3)
    succeeds("KVM_RUN", enter, vcpu)
    _fuzz(vcpu, source, count // 3)
    vcpus.init(vcpu, *chosen)
    write(vcpu, PC, 0)
    succeeds("KVM_RUN at last", enter, vcpu)
    no_warnings()
