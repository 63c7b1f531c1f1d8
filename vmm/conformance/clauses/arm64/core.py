# SPDX-License-Identifier: Apache-2.0
"""Core registers, FPSIMD registers, and ids that name nothing."""

from __future__ import annotations

import errno
import random

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import FPCR, FPSR, PC, PSTATE, SYSTEM, Register, sysreg, v, x
from vmm.arm64.vcpu import read, write
from vmm.arm64.vector import FPCR_BITS, FPSR_BITS, VectorState, differences
from vmm.conformance.arm64.common import (
    GUEST_RUNS,
    SVE,
    call,
    enter,
    features,
    get_bad,
    hold,
    plain_guest,
    plain_vcpu,
    set_bad,
    sve_guest,
    sve_vcpu,
    verify,
    warnings,
)
from vmm.conformance.context import Context
from vmm.conformance.expect import Violation, equal, judged, no_difference, refused_indicative, succeeds
from vmm.conformance.registry import clause
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu

_MRS_FPSR, _MRS_FPCR = 0xD53B4420, 0xD53B4400
_AA32_MODES = {"FIQ": 0x11, "IRQ": 0x12, "SVC": 0x13, "ABT": 0x17, "UND": 0x1B, "SYS": 0x1F}


@clause("fp.vregs-on-sve-einval", arch="arm64", needs=(SVE,))
def v_with_sve(context: Context) -> None:
    """A vCPU with SVE has no V registers: reading and writing them is EINVAL before and after FINALIZE.

    Their bits are the low ones of Z. A VMM that saves them from every vCPU fails here.

    Source: arch/arm64/kvm/guest.c, core_reg_size_from_offset; Documentation/virt/kvm/api.rst, 4.68.
    """
    vcpu = sve_vcpu(context, finalized=False)
    for when in ("before", "after"):
        for number in range(32):
            what = f"V{number} {when} FINALIZE"
            refused_indicative(context, f"reading {what}", errno.EINVAL, vcpu.get_one_reg, v(number))
            refused_indicative(context, f"writing {what}", errno.EINVAL, vcpu.set_one_reg, v(number), bytes(16))
        if when == "before":
            vcpus.finalize(vcpu)


@clause("fp.fpsr-fpcr-on-sve", arch="arm64", needs=(SVE, GUEST_RUNS))
def fpsr_fpcr(context: Context) -> None:
    """FPSR and FPCR are 32-bit core registers of a vCPU with SVE too, and what is written is what the guest reads.

    Source: arch/arm64/kvm/guest.c, core_reg_size_from_offset; Documentation/virt/kvm/api.rst, 4.68.
    """
    guest = sve_guest(context)
    for fpsr, fpcr in ((FPSR_BITS, 0), (0, FPCR_BITS), (0x08000000, 0x00400000)):
        guest.prepare("store")
        for register, value in ((FPSR, fpsr), (FPCR, fpcr)):
            succeeds(f"writing {register}", write, guest.vcpu, register, value)
            equal(f"{register} read back", succeeds(f"reading {register}", read, guest.vcpu, register), value)
        for name, instruction, value in (("FPSR", _MRS_FPSR, fpsr), ("FPCR", _MRS_FPCR, fpcr)):
            call(context, guest, f"MRS {name}", "execute", instruction)
            equal(f"{name} in the guest", guest.mailbox.values[0], value)


def _equal(what: str, found: VectorState, expected: VectorState) -> None:
    no_difference(what, differences(expected.image(), found.image()))


@clause("fp.vregs-nonsve-roundtrip", arch="arm64", needs=(GUEST_RUNS,))
def v_without_sve(context: Context) -> None:
    """A vCPU without SVE has V0 to V31 in 16 bytes each: written, read back, seen by the guest and kept over exits.

    Source: arch/arm64/kvm/guest.c, get_core_reg, set_core_reg; arch/arm64/kvm/fpsimd.c.
    """
    guest = plain_guest(context, "fpsimd")
    first, second = (VectorState.random(16, context.options.seed + n, sve=False) for n in range(2))
    with judged("writing and reading V0 to V31, FPSR and FPCR"):
        first.set_fpsimd(guest.vcpu)
        found = VectorState.get_fpsimd(guest.vcpu)
    _equal("the state read back", found, first)
    verify(context, guest, "what the guest finds", first)
    hold(context, guest, "what the guest keeps over exits", second)
    _equal("the state after the guest ran", VectorState.get_fpsimd(guest.vcpu), second)


@clause("fp.fpcr-raw", arch="arm64", info=True)
def fpcr_raw(context: Context) -> None:
    """FPSR and FPCR are stored as they are written, reserved bits included, until the guest runs with them loaded.

    A comparison of states from before and after a run may differ in them.

    Source: arch/arm64/kvm/guest.c, set_core_reg.
    """
    vcpu = plain_vcpu(context)
    for register in (FPSR, FPCR):
        write(vcpu, register, 0xFFFFFFFF)
        context.note(f"{register} written as 0xffffffff reads {read(vcpu, register):#x}")


@clause("core.bad-offset", arch="arm64")
def bad_offset(context: Context) -> None:
    """Core registers are named by where they begin and their size; all else is EINVAL, beyond the end ENOENT.

    Source: arch/arm64/kvm/guest.c, get_core_reg, core_reg_size_from_offset; Documentation/virt/kvm/api.rst, 4.68.
    """
    vcpu = plain_vcpu(context)
    write(vcpu, x(0), 0x1122334455667788)
    wrong = {
        "the second half of X0": (x(0) + 1, errno.EINVAL),
        "X0 in 32 bits": (x(0) & ~(0xF << 52) | 2 << 52, errno.EINVAL),
        "X0 in 128 bits": (x(0) & ~(0xF << 52) | 4 << 52, errno.EINVAL),
        "FPSR in 64 bits": (FPSR & ~(0xF << 52) | 3 << 52, errno.EINVAL),
        "V0 in 64 bits": (v(0) & ~(0xF << 52) | 3 << 52, errno.EINVAL),
        "the second word of V0": (v(0) + 1, errno.EINVAL),
        "beyond the structure": (x(0) | 0xD8, errno.ENOENT),
        "far beyond it": (x(0) | 0x7FFE, errno.ENOENT),
        "across its end": (x(0) | 0xD7, errno.ENOENT),
    }
    for what, (identifier, number) in wrong.items():
        register = Register(identifier)
        refused_indicative(context, f"reading {what}", number, vcpu.get_one_reg, register)
        refused_indicative(context, f"writing {what}", number, vcpu.set_one_reg, register, bytes(register.size))
    equal("X0 afterwards", read(vcpu, x(0)), 0x1122334455667788)


@clause("core.pstate-validate", arch="arm64")
def pstate(context: Context) -> None:
    """PSTATE of a 64-bit vCPU without EL2 takes EL0 and EL1; AArch32 modes, EL2 and what is not a mode are refused.

    A KVM that took EL2 here gave its guest the hypervisor's level (CVE-2018-18021).

    Source: arch/arm64/kvm/guest.c, set_core_reg.
    """
    vcpu = plain_vcpu(context)
    start = read(vcpu, PSTATE)
    rejected = {f"AArch32 {name}": mode for name, mode in _AA32_MODES.items()}
    rejected |= {"EL2t": 8, "EL2h": 9, "EL3t": 12, "EL3h": 13, "no mode": 2}
    for name, mode in rejected.items():
        refused_indicative(context, f"PSTATE of {name}", errno.EINVAL, write, vcpu, PSTATE, 0x3C0 | mode)
        equal(f"PSTATE after {name}", read(vcpu, PSTATE), start)
    for name, mode in {"EL0t": 0, "EL1t": 4, "EL1h": 5}.items():
        succeeds(f"PSTATE of {name}", write, vcpu, PSTATE, 0x3C0 | mode)
        equal(f"PSTATE after {name}", read(vcpu, PSTATE), 0x3C0 | mode)


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
_GROUPS = (0x10, 0x11, 0x13, 0x14, 0x15, 0x16)


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
