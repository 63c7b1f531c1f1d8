# SPDX-License-Identifier: Apache-2.0
"""KVM_ARM_PREFERRED_TARGET and KVM_ARM_VCPU_INIT."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import PC, PSTATE, SYSTEM, Register, core, v, x
from vmm.arm64.registers import SVE as SVE_REGISTERS
from vmm.arm64.vcpu import GENERIC_V8, Feature, read, write
from vmm.conformance.arm64.common import NO_SVE, PAUTH, SVE, enter, lengths, plain_vcpu, sve_vcpu
from vmm.conformance.arm64.psci import RUNNABLE, STOPPED
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.registry import clause
from vmm.kvm.vcpu import Vcpu

_EL1H_MASKED = 0x3C5
_SCTLR_ON = {"M, the MMU": 0, "C, data caches": 2, "I, instruction caches": 12}


@clause("init.preferred-target", arch="arm64")
def preferred_target(context: Context) -> None:
    """KVM_ARM_PREFERRED_TARGET writes all of what VCPU_INIT takes, and does not recommend SVE.

    A vCPU with SVE cannot run without FINALIZE, of which no old VMM knows.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vm_ioctl; Documentation/virt/kvm/api.rst, 4.83.
    """
    vm = context.vm()
    value = succeeds("KVM_ARM_PREFERRED_TARGET", vcpus.preferred_target, vm)
    words = list(value.features)
    context.note(f"target {value.target}, features {' '.join(f'{word:#x}' for word in words)}")
    equal("SVE among the recommended features", words[0] >> Feature.SVE & 1, 0)
    succeeds("VCPU_INIT with it", vcpus.init_raw, vm.create_vcpu(), value.target, words)


@clause("init.target-einval", arch="arm64")
def target(context: Context) -> None:
    """VCPU_INIT with a target that does not exist fails with EINVAL and leaves the vCPU uninitialised.

    Source: arch/arm64/kvm/arm.c, kvm_vcpu_set_target.
    """
    vcpu = context.vcpu()
    for number in (99, 0xFFFFFFFF):
        refused(f"target {number}", errno.EINVAL, vcpus.init, vcpu, target=number)
    refused("KVM_GET_ONE_REG afterwards", errno.ENOEXEC, read, vcpu, PC)
    succeeds("VCPU_INIT with the generic target", vcpus.init, vcpu)


@clause("init.unknown-feature-enoent", arch="arm64")
def unknown_feature(context: Context) -> None:
    """VCPU_INIT with an undefined feature bit, in any word of the array, fails with ENOENT.

    Source: arch/arm64/kvm/arm.c, kvm_vcpu_init_check_features.
    """
    vcpu = context.vcpu()
    for word, bit in ((0, 31), (0, 20), *((word, 0) for word in range(1, 7)), (6, 31)):
        words = [0] * 7
        words[word] = 1 << bit
        refused(f"features[{word}] bit {bit}", errno.ENOENT, vcpus.init_raw, vcpu, GENERIC_V8, words)
    refused("KVM_GET_ONE_REG afterwards", errno.ENOEXEC, read, vcpu, PC)


@clause("init.sve-unsupported-einval", arch="arm64", needs=(NO_SVE,))
def sve_unsupported(context: Context) -> None:
    """VCPU_INIT with SVE fails with EINVAL where KVM_CAP_ARM_SVE is 0.

    Source: arch/arm64/kvm/arm.c, system_supported_vcpu_features.
    """
    refused("VCPU_INIT with SVE", errno.EINVAL, vcpus.init, context.vcpu(), Feature.SVE)


@clause("init.pauth-pair", arch="arm64", needs=(PAUTH,))
def pauth_pair(context: Context) -> None:
    """Pointer authentication comes with both its features or fails with EINVAL, and needs no FINALIZE.

    Source: arch/arm64/kvm/arm.c, kvm_vcpu_init_check_features; arch/arm64/kvm/reset.c, kvm_arm_vcpu_finalize.
    """
    pair = Feature.PTRAUTH_ADDRESS, Feature.PTRAUTH_GENERIC
    for one in pair:
        refused(f"{one.name} alone", errno.EINVAL, vcpus.init, context.vcpu(), one)
    vcpu = context.vcpu()
    succeeds("both", vcpus.init, vcpu, *pair)
    succeeds("KVM_RUN", enter, vcpu)


def _uninitialised_calls() -> dict[str, int]:
    return {
        "KVM_GET_ONE_REG": lib.KVM_GET_ONE_REG,
        "KVM_SET_ONE_REG": lib.KVM_SET_ONE_REG,
        "KVM_GET_REG_LIST": lib.KVM_GET_REG_LIST,
        "KVM_ARM_VCPU_FINALIZE": lib.KVM_ARM_VCPU_FINALIZE,
    }


@clause("init.before-init-enoexec", arch="arm64")
def before_init(context: Context) -> None:
    """Before VCPU_INIT register calls, FINALIZE and KVM_RUN fail with ENOEXEC, whatever their argument.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl, kvm_arch_vcpu_run_pid_change.
    """
    vcpu = context.vcpu()
    buffer = ffi.new("uint8_t[]", 4096)
    for name, request in _uninitialised_calls().items():
        refused(f"{name} with a buffer", errno.ENOEXEC, vcpu.ioctl, request, buffer)
        refused(f"{name} without one", errno.ENOEXEC, vcpu.ioctl, request, ffi.NULL)
    refused("KVM_RUN", errno.ENOEXEC, vcpu.run, context.timeout)


@clause("init.events-before-init-enoexec", arch="arm64")
def events_before_init(context: Context) -> None:
    """Before VCPU_INIT KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS fail with ENOEXEC.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl.
    """
    vcpu = context.vcpu()
    events = ffi.new("struct kvm_vcpu_events *")
    for name in ("KVM_GET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS"):
        refused(name, errno.ENOEXEC, vcpu.ioctl, getattr(lib, name), events)
    vcpus.init(vcpu)
    succeeds("KVM_GET_VCPU_EVENTS after VCPU_INIT", vcpu.ioctl, lib.KVM_GET_VCPU_EVENTS, events)


@clause("init.vm-wide-features", arch="arm64", needs=(SVE,))
def vm_wide_features(context: Context) -> None:
    """All vCPUs of a VM have the features of the first: VCPU_INIT with others fails with EINVAL.

    Source: arch/arm64/kvm/arm.c, __kvm_vcpu_set_target, kvm_vcpu_init_changed.
    """
    for first, second in (((Feature.SVE,), ()), ((), (Feature.SVE,))):
        vm = context.vm()
        vcpus.init(vm.create_vcpu(0), *first)
        other = vm.create_vcpu(1)
        what = f"{'with' if second else 'without'} SVE after a vCPU {'with' if first else 'without'}"
        refused(what, errno.EINVAL, vcpus.init, other, *second)
        succeeds("the features of the first", vcpus.init, other, *first)


@clause("init.reinit-same-ok", arch="arm64", needs=(SVE,))
def reinit_same(context: Context) -> None:
    """VCPU_INIT may be repeated with the same features, also after FINALIZE and KVM_RUN; with others it is EINVAL.

    Source: Documentation/virt/kvm/api.rst, 4.82; arch/arm64/kvm/arm.c, kvm_vcpu_set_target.
    """
    vcpu = context.vcpu()
    succeeds("the first VCPU_INIT", vcpus.init, vcpu, Feature.SVE)
    vcpus.finalize(vcpu)
    succeeds("after FINALIZE", vcpus.init, vcpu, Feature.SVE)
    succeeds("KVM_RUN after it", enter, vcpu)
    succeeds("after KVM_RUN", vcpus.init, vcpu, Feature.SVE)
    refused("without SVE", errno.EINVAL, vcpus.init, vcpu)
    refused("with 32-bit EL1", errno.EINVAL, vcpus.init, vcpu, Feature.SVE, Feature.EL1_32BIT)
    succeeds("KVM_RUN after all of it", enter, vcpu)


@clause("init.poweroff-ephemeral", arch="arm64")
def poweroff(context: Context) -> None:
    """POWER_OFF decides the MP state after the VCPU_INIT that carries it, and is not a feature to be repeated.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl_vcpu_init.
    """
    vcpu = context.vcpu()
    succeeds("VCPU_INIT with it", vcpus.init, vcpu, Feature.POWER_OFF)
    equal("MP state with POWER_OFF", vcpu.mp_state, STOPPED)
    succeeds("VCPU_INIT again without it", vcpus.init, vcpu)
    equal("MP state without it", vcpu.mp_state, RUNNABLE)
    succeeds("VCPU_INIT again with it", vcpus.init, vcpu, Feature.POWER_OFF)
    equal("MP state with it again", vcpu.mp_state, STOPPED)


def _zero_at_reset() -> list[Register]:
    names = ["SP", "PC", "SP_EL1", "ELR_EL1", "SPSR_EL1", "FPSR", "FPCR"]
    return [*(x(n) for n in range(31)), *(core(name) for name in names), SYSTEM["CPACR_EL1"]]


@clause("init.reset-values", arch="arm64")
def reset_values(context: Context) -> None:
    """After VCPU_INIT the general and vector registers are 0; the vCPU is at EL1, all masked, MMU and caches off.

    Source: arch/arm64/kvm/reset.c, kvm_reset_vcpu; arch/arm64/kvm/sys_regs.c, sys_reg_descs.
    """
    vcpu = plain_vcpu(context)
    for register in (*_zero_at_reset(), *(v(n) for n in range(32))):
        equal(register.name, read(vcpu, register), 0)
    equal("PSTATE", read(vcpu, PSTATE), _EL1H_MASKED)
    control = read(vcpu, SYSTEM["SCTLR_EL1"])
    context.note(f"SCTLR_EL1 is {control:#x}")
    for name, bit in _SCTLR_ON.items():
        equal(f"SCTLR_EL1.{name}", control >> bit & 1, 0)


def _fill(vcpu: Vcpu) -> None:
    for register in SVE_REGISTERS:
        vcpu.set_one_reg(register, b"\xa5" * register.size)


@clause("init.reinit-zeroes-sve", arch="arm64", needs=(SVE,))
def reinit_zeroes(context: Context) -> None:
    """VCPU_INIT of a finalized vCPU makes Z, P, FFR, ZCR_EL1, FPSR and FPCR 0; it stays finalized with its lengths.

    Source: arch/arm64/kvm/reset.c, kvm_vcpu_reset_sve.
    """
    least = lengths(context).up_to(min(lengths(context)))
    vcpu = sve_vcpu(context, least)
    _fill(vcpu)
    others = core("FPSR"), core("FPCR"), SYSTEM["ZCR_EL1"], x(0), PC
    for register in others:
        write(vcpu, register, 1)
    succeeds("VCPU_INIT", vcpus.init, vcpu, Feature.SVE)
    for register in (*SVE_REGISTERS, *others):
        equal(register.name, vcpu.get_one_reg(register), bytes(register.size))
    equal("vector lengths", vcpus.get_vls(vcpu), least)
    refused("another FINALIZE", errno.EPERM, vcpus.finalize, vcpu)
    succeeds("KVM_RUN", enter, vcpu)


@clause("init.no-regs-ioctls", arch="arm64")
def no_regs_ioctls(context: Context) -> None:
    """The structure-based state calls of other architectures do not exist: registers go by KVM_*_ONE_REG.

    They fail with EINVAL, or as what the kernel does not know.

    Source: arch/arm64/kvm/guest.c, kvm_arch_vcpu_ioctl_get_regs and following; Documentation/virt/kvm/api.rst, 4.11.
    """
    vcpu = plain_vcpu(context)
    buffer = ffi.new("uint8_t[]", 8192)
    for name in ("GET_REGS", "SET_REGS", "GET_SREGS", "SET_SREGS", "GET_FPU", "SET_FPU", "TRANSLATE"):
        refused(f"KVM_{name}", (errno.EINVAL, errno.ENOTTY), vcpu.ioctl, getattr(lib, f"KVM_{name}"), buffer)
