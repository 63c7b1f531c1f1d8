# SPDX-License-Identifier: Apache-2.0
"""KVM_ARM_VCPU_FINALIZE: what it allows, what it freezes, and what works before it."""

from __future__ import annotations

import errno
import threading

from vmm._kvm import ffi, lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import FPCR, FPSR, PC, SYSTEM, VLS, firmware, x
from vmm.arm64.registers import SVE as SVE_REGISTERS
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import (
    GUEST_RUNS,
    SEVERAL,
    SVE,
    call,
    enter,
    get_bad,
    lengths,
    plain_vcpu,
    set_bad,
    sve_guest,
    sve_vcpu,
)
from vmm.conformance.arm64.psci import VERSION, secondary, switch_on
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, refused_indicative, succeeds
from vmm.conformance.registry import clause
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu

# Seconds for a run that must not begin: if it does, how it ends does not matter.
_SHORT = 0.2


def _errno_in_thread(vcpu: Vcpu) -> int:
    """Return the errno of KVM_RUN in another thread, 0 for none."""
    found: list[int] = []

    def run() -> None:
        try:
            vcpu.run(_SHORT)
            found.append(0)
        except KvmError as error:
            found.append(error.errno or 0)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@clause("sve.finalize.run-before-eperm", arch="arm64", needs=(SVE,))
def run_before(context: Context) -> None:
    """KVM_RUN of a vCPU with SVE before FINALIZE fails with EPERM, every time and in every thread, and runs nothing.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_run_pid_change; Documentation/virt/kvm/api.rst, 4.10.
    """
    vcpu = sve_vcpu(context, finalized=False)
    write(vcpu, PC, 0x1000)
    for attempt in ("first", "second"):
        refused(f"the {attempt} KVM_RUN", errno.EPERM, vcpu.run, _SHORT)
    equal("errno of KVM_RUN in another thread", _errno_in_thread(vcpu), errno.EPERM)
    equal("PC", read(vcpu, PC), 0x1000)
    succeeds("FINALIZE", vcpus.finalize, vcpu)
    succeeds("KVM_RUN after FINALIZE", enter, vcpu)


@clause("sve.finalize.reglist-before-eperm", arch="arm64", needs=(SVE,))
def reglist_before(context: Context) -> None:
    """KVM_GET_REG_LIST before FINALIZE fails with EPERM, before its argument is looked at.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl; Documentation/virt/kvm/api.rst, 4.119.
    """
    vcpu = sve_vcpu(context, finalized=False)
    refused("with n = 0", errno.EPERM, vcpu.reg_list)
    refused("without a list", errno.EPERM, vcpu.ioctl, lib.KVM_GET_REG_LIST, ffi.NULL)
    succeeds("FINALIZE", vcpus.finalize, vcpu)
    succeeds("KVM_GET_REG_LIST after FINALIZE", vcpu.reg_list)


@clause("sve.finalize.zpf-before-eperm", arch="arm64", needs=(SVE,))
def vectors_before(context: Context) -> None:
    """Reading and writing Z, P and FFR before FINALIZE fails with EPERM.

    Source: arch/arm64/kvm/guest.c, get_sve_reg, set_sve_reg; Documentation/virt/kvm/api.rst, 4.119.
    """
    vcpu = sve_vcpu(context, finalized=False)
    for register in SVE_REGISTERS:
        refused_indicative(context, f"reading {register}", errno.EPERM, vcpu.get_one_reg, register)
        value = bytes(register.size)
        refused_indicative(context, f"writing {register}", errno.EPERM, vcpu.set_one_reg, register, value)
    succeeds("FINALIZE", vcpus.finalize, vcpu)
    for register in SVE_REGISTERS:
        what = f"{register} after FINALIZE"
        equal(what, succeeds(f"reading {what}", vcpu.get_one_reg, register), bytes(register.size))


@clause("sve.finalize.core-sysreg-before-ok", arch="arm64", needs=(SVE,))
def others_before(context: Context) -> None:
    """Core, system and firmware registers can be read and written before FINALIZE: EPERM is for Z, P and FFR only.

    The documentation says without exception that the ONE_REG calls fail before FINALIZE; the code never did so.

    Source: arch/arm64/kvm/guest.c (only the SVE functions look at finalized); Documentation/virt/kvm/api.rst, 4.119.
    """
    vcpu = sve_vcpu(context, finalized=False)
    values = {
        x(0): 0x1122334455667788, x(30): 0x8877665544332211, PC: 0x123450, FPCR: 0x00400000, FPSR: 0x08000000,
        SYSTEM["ZCR_EL1"]: 1, SYSTEM["TPIDR_EL1"]: 0xABCDEF,
    }  # fmt: skip
    for register, value in values.items():
        succeeds(f"writing {register}", write, vcpu, register, value)
        equal(register.name, succeeds(f"reading {register}", read, vcpu, register), value)
    succeeds("reading ID_AA64ZFR0_EL1", read, vcpu, SYSTEM["ID_AA64ZFR0_EL1"])
    level = firmware(1)
    succeeds("writing WORKAROUND_1", write, vcpu, level, succeeds("reading WORKAROUND_1", read, vcpu, level))
    vcpus.finalize(vcpu)
    for register, value in values.items():
        equal(f"{register} after FINALIZE", read(vcpu, register), value)


@clause("sve.finalize.vls-readable-always", arch="arm64", needs=(SVE,))
def lengths_readable(context: Context) -> None:
    """The vector lengths can be read before and after FINALIZE, and FINALIZE does not change them.

    Source: arch/arm64/kvm/guest.c, get_sve_vls; Documentation/virt/kvm/api.rst, 4.68.
    """
    vcpu = sve_vcpu(context, finalized=False)
    first = succeeds("before FINALIZE", vcpus.get_vls, vcpu)
    equal("vector lengths of a fresh vCPU", first, lengths(context))
    vcpus.finalize(vcpu)
    equal("vector lengths after FINALIZE", succeeds("after FINALIZE", vcpus.get_vls, vcpu), first)


@clause("sve.finalize.twice-eperm", arch="arm64", needs=(SVE,))
def twice(context: Context) -> None:
    """A second FINALIZE fails with EPERM and changes nothing.

    Source: arch/arm64/kvm/reset.c, kvm_arm_vcpu_finalize; Documentation/virt/kvm/api.rst, 4.119.
    """
    vcpu = sve_vcpu(context)
    register = SVE_REGISTERS[3]
    value = bytes(range(16)).ljust(register.size, b"\0")
    vcpu.set_one_reg(register, value)
    refused("the second FINALIZE", errno.EPERM, vcpus.finalize, vcpu)
    equal(f"{register} afterwards", vcpu.get_one_reg(register), value)
    succeeds("KVM_RUN", enter, vcpu)


@clause("sve.finalize.nonsve-einval", arch="arm64")
def without_sve(context: Context) -> None:
    """FINALIZE of SVE on a vCPU without it fails with EINVAL; the documentation says EPERM.

    Source: arch/arm64/kvm/reset.c, kvm_arm_vcpu_finalize; Documentation/virt/kvm/api.rst, 4.119.
    """
    vcpu = plain_vcpu(context)
    refused_indicative(context, "FINALIZE", errno.EINVAL, vcpus.finalize, vcpu)
    succeeds("KVM_RUN", enter, vcpu)


@clause("sve.finalize.unknown-einval", arch="arm64", needs=(SVE,))
def unknown(context: Context) -> None:
    """FINALIZE takes the number of a feature that can be finalized, only SVE: all else is EINVAL.

    1 << 4 would be the mask that VCPU_INIT takes.

    Source: arch/arm64/kvm/reset.c, kvm_arm_vcpu_finalize; Documentation/virt/kvm/api.rst, 4.119.
    """
    vcpu = sve_vcpu(context, finalized=False)
    for number in (0, 3, 5, 6, 7, -1, 1 << 4, 0x7FFFFFFF):
        refused(f"FINALIZE of {number}", errno.EINVAL, vcpus.finalize, vcpu, number)
    refused("KVM_RUN afterwards", errno.EPERM, vcpu.run, _SHORT)


@clause("sve.finalize.efault", arch="arm64", needs=(SVE,))
def bad_pointer(context: Context) -> None:
    """FINALIZE with a bad pointer fails with EFAULT and does not finalize.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl.
    """
    vcpu = sve_vcpu(context, finalized=False)
    refused("FINALIZE without a number", errno.EFAULT, vcpu.ioctl, lib.KVM_ARM_VCPU_FINALIZE, ffi.NULL)
    refused("KVM_RUN afterwards", errno.EPERM, vcpu.run, _SHORT)
    succeeds("FINALIZE", vcpus.finalize, vcpu)


@clause("sve.finalize.vls-immutable", arch="arm64", needs=(SVE,))
def lengths_immutable(context: Context) -> None:
    """After FINALIZE every write of the vector lengths is EPERM: the same value, a smaller one, a bad pointer.

    Source: arch/arm64/kvm/guest.c, set_sve_vls; Documentation/virt/kvm/api.rst, 4.68.
    """
    vcpu = sve_vcpu(context)
    full = vcpus.get_vls(vcpu)
    for value in (full, full.up_to(min(full))):
        refused_indicative(context, f"writing {value}", errno.EPERM, vcpus.set_vls, vcpu, value)
    refused_indicative(context, "writing from a bad address", errno.EPERM, set_bad, vcpu, VLS)
    equal("vector lengths afterwards", vcpus.get_vls(vcpu), full)
    refused_indicative(context, "reading to a bad address", errno.EFAULT, get_bad, vcpu, VLS)


@clause("sve.finalize.reinit-before-finalize-resets-vls", arch="arm64", needs=(SVE, SEVERAL))
def reinit_before(context: Context) -> None:
    """VCPU_INIT before FINALIZE forgets the vector lengths chosen so far: the vCPU has all again.

    No document says so; a VMM that chooses lengths and then resets the vCPU enlarges its guest's vectors.

    Source: arch/arm64/kvm/reset.c, kvm_reset_vcpu, kvm_vcpu_enable_sve.
    """
    full = lengths(context)
    least = full.up_to(min(full))
    vcpu = sve_vcpu(context, least, finalized=False)
    equal("vector lengths as chosen", vcpus.get_vls(vcpu), least)
    vcpus.init(vcpu, Feature.SVE)
    equal("vector lengths after VCPU_INIT", vcpus.get_vls(vcpu), full)
    vcpus.finalize(vcpu)
    equal("vector lengths after FINALIZE", vcpus.get_vls(vcpu), full)


@clause("sve.finalize.per-vcpu", arch="arm64", needs=(SVE,))
def per_vcpu(context: Context) -> None:
    """FINALIZE is each vCPU's own: one that is finalized runs while another of its VM gets EPERM.

    Source: arch/arm64/kvm/arm.c, kvm_arm_vcpu_is_finalized.
    """
    vm = context.vm()
    first, second = vm.create_vcpu(0), vm.create_vcpu(1)
    for vcpu in (first, second):
        vcpus.init(vcpu, Feature.SVE)
    vcpus.finalize(first)
    succeeds("KVM_RUN of the finalized one", enter, first)
    refused("KVM_RUN of the other", errno.EPERM, second.run, _SHORT)
    refused_indicative(context, "Z0 of the other", errno.EPERM, second.get_one_reg, SVE_REGISTERS[0])
    vcpus.finalize(second)
    succeeds("KVM_RUN of the other after FINALIZE", enter, second)


@clause("sve.finalize.psci-cpu-on", arch="arm64", needs=(SVE, GUEST_RUNS))
def not_finalized(context: Context) -> None:
    """A vCPU that was never finalized can be switched on by PSCI, and its KVM_RUN is EPERM; the first one runs on.

    Source: arch/arm64/kvm/psci.c, kvm_psci_vcpu_on; arch/arm64/kvm/arm.c, kvm_arch_vcpu_run_pid_change.
    """
    guest = sve_guest(context, payload="hello")
    second = secondary(guest, finalized=False)
    equal("what CPU_ON answers", switch_on(context, guest, second), 0)
    refused("KVM_RUN of the second vCPU", errno.EPERM, second.run, _SHORT)
    call(context, guest, "the first vCPU afterwards", "hvc", VERSION)
