# SPDX-License-Identifier: Apache-2.0
"""Core registers: their ids, and what PSTATE may be."""

from __future__ import annotations

import errno

from vmm.arm64.registers import FPSR, PSTATE, Register, v, x
from vmm.arm64.vcpu import read, write
from vmm.conformance.arm64.common import plain_vcpu
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused_indicative, succeeds
from vmm.conformance.registry import clause

_AA32_MODES = {"FIQ": 0x11, "IRQ": 0x12, "SVC": 0x13, "ABT": 0x17, "UND": 0x1B, "SYS": 0x1F}


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
