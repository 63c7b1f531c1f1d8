# SPDX-License-Identifier: Apache-2.0
"""KVM_GET_REG_LIST as a contract between kernels: what older ones listed is listed still, and can be written."""

from __future__ import annotations

import errno

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import SVE as SVE_REGISTERS
from vmm.arm64.registers import VLS, Register, sysreg, v
from vmm.arm64.vcpu import Feature, read
from vmm.conformance.arm64.baseline import BASELINE, PMU
from vmm.conformance.arm64.common import COUNTERS, PAUTH, features, plain_vcpu, widest_vcpu
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused_indicative, succeeds, true
from vmm.conformance.needs import capability, kernel
from vmm.conformance.registry import clause
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.probe.host import version

_PMU = capability("KVM_CAP_ARM_PMU_V3")
# Not in BASELINE, and other clauses': what SVE brings and takes.
_VECTORS = frozenset({*(v(number) for number in range(32)), *SVE_REGISTERS, VLS, sysreg(3, 0, 1, 2, 0)})


def _names(registers: object) -> list[str]:
    return sorted(str(register) for register in registers)  # type: ignore[attr-defined]


def _listed(vcpu: Vcpu) -> set[Register]:
    return {Register(identifier) for identifier in vcpu.reg_list()}


@clause("reglist.baseline", arch="arm64")
def baseline(context: Context) -> None:
    """Every register that this kernel or an older one has listed for every vCPU is listed, with SVE and without.

    A state that an older kernel gave could not be restored otherwise. Registers of later releases are a note.

    Source: Documentation/virt/kvm/api.rst, 4.84; arch/arm64/kvm/sys_regs.c, sys_reg_descs; arch/arm64/kvm/guest.c.
    """
    wanted = {
        register
        for release, registers in BASELINE.items()
        if context.host.version >= version(release)
        for register in registers
    }
    for what, vcpu in (("with all features", widest_vcpu(context)), ("without features", plain_vcpu(context))):
        found = _listed(vcpu)
        equal(f"missing in the list of a vCPU {what}", _names(wanted - found), [])
        if more := found - wanted - _VECTORS:
            context.note(f"{what} also {', '.join(_names(more))}")


@clause("reglist.pmu-contents", arch="arm64", needs=(_PMU, kernel("6.1")))
def pmu_contents(context: Context) -> None:
    """The registers of the PMU are listed with PMU_V3, and without neither listed nor read: ENOENT.

    Source: arch/arm64/kvm/sys_regs.c, pmu_visibility.
    """
    vcpu = context.vcpu()
    vcpus.init(vcpu, Feature.PMU_V3)
    equal("missing in the list with PMU_V3", _names(PMU - _listed(vcpu)), [])
    plain = plain_vcpu(context)
    equal("of the PMU in the list without PMU_V3", _names(PMU & _listed(plain)), [])
    for register in sorted(PMU):
        refused_indicative(context, f"reading {register} without PMU_V3", errno.ENOENT, read, plain, register)


@clause("reglist.get-set-every-feature", arch="arm64", needs=(PAUTH,))
def every_feature(context: Context) -> None:
    """With pointer authentication, the PMU and SVE, where KVM has them, every listed register takes what it reads.

    Registers that are listed because of these features and change by themselves are a note.

    Source: Documentation/virt/kvm/api.rst, 4.68, 4.69 and 4.84.
    """
    chosen = [Feature.PTRAUTH_ADDRESS, Feature.PTRAUTH_GENERIC, *features(context)]
    if context.host.facts.capabilities["KVM_CAP_ARM_PMU_V3"]:
        chosen.append(Feature.PMU_V3)
    vcpu = context.vcpu()
    vcpus.init(vcpu, *chosen)
    if Feature.SVE in chosen:
        vcpus.finalize(vcpu)
    listed = _listed(vcpu) - {VLS}
    extra = listed - _listed(plain_vcpu(context)) - _VECTORS
    true("registers of these features", len(extra) >= 10, len(extra), "10 or more: those of the keys")
    moving = set()
    for register in sorted(listed):
        value = succeeds(f"reading {register}", vcpu.get_one_reg, register)
        succeeds(f"writing {register}", vcpu.set_one_reg, register, value)
        if vcpu.get_one_reg(register) != value:
            moving.add(register)
    equal("not as they were written", _names((moving - COUNTERS) & _listed(plain_vcpu(context))), [])
    if moving & extra:
        context.note(f"change by themselves: {', '.join(_names(moving & extra))}")


@clause("reglist.refused-keeps", arch="arm64")
def refused_keeps(context: Context) -> None:
    """A listed register that refuses a value keeps the one it had, and one that takes it takes the old one back.

    Written is each register's complement; the vCPU is not run.

    Source: Documentation/virt/kvm/api.rst, 4.68; arch/arm64/kvm/sys_regs.c, arch/arm64/kvm/guest.c (set_user).
    """
    vcpu = widest_vcpu(context)
    changed, lost, taken = [], [], 0
    for register in sorted(_listed(vcpu) - COUNTERS - {VLS}):
        value = vcpu.get_one_reg(register)
        try:
            vcpu.set_one_reg(register, bytes(byte ^ 0xFF for byte in value))
        except KvmError:
            if vcpu.get_one_reg(register) != value:
                changed.append(register)
            continue
        taken += 1
        succeeds(f"writing {register} as it was", vcpu.set_one_reg, register, value)
        if vcpu.get_one_reg(register) != value:
            lost.append(register)
    true("registers that took another value", taken > 40, taken, "more than 40")
    equal("changed by a refused write", _names(changed), [])
    equal("not as they were when written back", _names(lost), [])
