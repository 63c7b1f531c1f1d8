# SPDX-License-Identifier: Apache-2.0
"""KVM_GET_ONE_REG and KVM_SET_ONE_REG for MSRs, and the answer where KVM does not have them."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, refused_indicative, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import STRICT_MSRS, configured
from vmm.conformance.x86.shadow import UNKNOWN_ID
from vmm.conformance.x86.state import VOLATILE_MSRS
from vmm.kvm.vcpu import register_size
from vmm.x86 import msr
from vmm.x86.msr import UNKNOWN_MSR, msr_id
from vmm.x86.msr_names import Msr

_ONE_REG = capability("KVM_CAP_ONE_REG")


@clause("onereg.cap", arch="x86")
def one_reg_capability(context: Context) -> None:
    """KVM_CAP_ONE_REG tells whether KVM_GET_ONE_REG works: where it is 0 the call is refused.

    Linux has both since 6.18.

    Source: arch/x86/kvm/x86.c, kvm_vm_ioctl_check_extension, kvm_arch_vcpu_ioctl (KVM_GET_ONE_REG).
    """
    vcpu = configured(context)
    value = context.kvm.check_extension(lib.KVM_CAP_ONE_REG)
    if value:
        read = succeeds("KVM_GET_ONE_REG of IA32_PAT", vcpu.get_one_reg, msr_id(Msr.PAT))
        equal("IA32_PAT by KVM_GET_ONE_REG", int.from_bytes(read, "little"), msr.get_msr(vcpu, Msr.PAT))
    else:
        refused("KVM_GET_ONE_REG", (errno.EINVAL, errno.ENOTTY), vcpu.get_one_reg, msr_id(Msr.PAT))


@clause("onereg.id-validation", arch="x86", needs=(_ONE_REG, STRICT_MSRS))
def identifiers_validated(context: Context) -> None:
    """A register id of another architecture, size or type, or of an unknown MSR is refused; a bad address is EFAULT.

    The code returns EINVAL for all of them, the documentation lists ENOENT for an unknown register and calls its
    errnos indicative: another one is recorded.

    Source: arch/x86/kvm/x86.c, kvm_get_set_one_reg; Documentation/virt/kvm/api.rst 4.68; Linux 6.18.
    """
    vcpu = configured(context)
    good = msr_id(Msr.PAT)
    succeeds("the right id", vcpu.get_one_reg, good)
    size_u32 = good & ~lib.KVM_REG_SIZE_MASK | lib.KVM_REG_SIZE_U32
    wrong = {
        "arm64": good & ~lib.KVM_REG_ARCH_MASK | lib.KVM_REG_ARM64,
        "a size of 32 bits": size_u32,
        "a reserved bit": good | 1 << 40,
        "type 0": good & ~(0xFF << 32),
        # The highest numbers, because a later kernel may give the next ones a meaning.
        "type 255": good & ~(0xFF << 32) | 0xFF << 32,
        "an unknown KVM register": UNKNOWN_ID,
        "an unknown MSR": msr_id(UNKNOWN_MSR),
    }
    for name, identifier in wrong.items():
        refused_indicative(context, f"GET of {name}", errno.EINVAL, vcpu.get_one_reg, identifier)
        value = bytes(register_size(identifier))
        refused_indicative(context, f"SET of {name}", errno.EINVAL, vcpu.set_one_reg, identifier, value)
    bad_address = ffi.new("struct kvm_one_reg *", {"id": good, "addr": 0x10})
    for request in (lib.KVM_GET_ONE_REG, lib.KVM_SET_ONE_REG):
        refused("a bad address", errno.EFAULT, vcpu.ioctl, request, bad_address)


@clause("onereg.equals-msrs", arch="x86", needs=(_ONE_REG,))
def equals_msrs(context: Context) -> None:
    """For every MSR of KVM's list the two ways to read agree, and a write by either is read by the other.

    An MSR that changes by itself is told by a second KVM_GET_MSRS, and not compared.

    Source: arch/x86/kvm/x86.c, kvm_get_one_msr, kvm_set_one_msr; Linux 6.18.
    """
    vcpu = configured(context)
    for index in msr.index_list(context.kvm):
        value = msr.try_get(vcpu, index)
        if value is None or index in VOLATILE_MSRS:
            continue
        read = succeeds(f"KVM_GET_ONE_REG of {msr.name(index)}", vcpu.get_one_reg, msr_id(index))
        seen = int.from_bytes(read, "little")
        if seen != value != msr.get_msr(vcpu, index):
            context.note(f"{msr.name(index)} changes by itself")
        else:
            equal(msr.name(index), seen, value)
    first, second = 0x0006040600070406, 0x0004040400070406
    succeeds("KVM_SET_ONE_REG of IA32_PAT", vcpu.set_one_reg, msr_id(Msr.PAT), first.to_bytes(8, "little"))
    equal("IA32_PAT set by ONE_REG, read by KVM_GET_MSRS", msr.get_msr(vcpu, Msr.PAT), first)
    equal("KVM_SET_MSRS of IA32_PAT", msr.set_msr(vcpu, Msr.PAT, second), True)
    read = vcpu.get_one_reg(msr_id(Msr.PAT))
    equal("IA32_PAT set by KVM_SET_MSRS, read by ONE_REG", int.from_bytes(read, "little"), second)
