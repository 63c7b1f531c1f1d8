# SPDX-License-Identifier: Apache-2.0
"""The PMU as a feature of VCPU_INIT."""

from __future__ import annotations

import errno

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import sysreg
from vmm.arm64.vcpu import GENERIC_V8, Feature, read
from vmm.conformance.arm64.common import enter
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.needs import Need, capability
from vmm.conformance.registry import clause
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.probe.host import Host

_PMU = capability("KVM_CAP_ARM_PMU_V3")
_STRICT = 9  # KVM_ARM_VCPU_PMU_V3_STRICT
_PMMIR = sysreg(3, 0, 9, 14, 6)


def _no_pmu(host: Host) -> tuple[bool, str]:
    value = host.facts.capabilities["KVM_CAP_ARM_PMU_V3"]
    return value == 0, f"KVM_CAP_ARM_PMU_V3 is {value}"


def _init(vcpu: Vcpu, *bits: int) -> None:
    vcpus.init_raw(vcpu, GENERIC_V8, [sum(1 << bit for bit in bits)])


@clause("init.pmu-unsupported", arch="arm64", needs=(Need("a host without a PMU for guests", _no_pmu),))
def unsupported(context: Context) -> None:
    """VCPU_INIT with PMU_V3 fails with EINVAL where KVM_CAP_ARM_PMU_V3 is 0, and the vCPU can do without.

    Source: arch/arm64/kvm/arm.c, system_supported_vcpu_features; Documentation/virt/kvm/api.rst, 4.82.
    """
    vcpu = context.vcpu()
    refused("VCPU_INIT with PMU_V3", errno.EINVAL, _init, vcpu, Feature.PMU_V3)
    succeeds("VCPU_INIT without it", _init, vcpu)


@clause("init.pmu-needs-set-up", arch="arm64", needs=(_PMU,))
def needs_set_up(context: Context) -> None:
    """A vCPU with PMU_V3 whose PMU was not set up by KVM_ARM_VCPU_PMU_V3_INIT cannot run: EINVAL; one without can.

    Source: arch/arm64/kvm/pmu-emul.c, kvm_arm_pmu_v3_enable; Documentation/virt/kvm/devices/vcpu.rst, 1.2.
    """
    vcpu = context.vcpu()
    succeeds("VCPU_INIT with PMU_V3", _init, vcpu, Feature.PMU_V3)
    refused("KVM_RUN", errno.EINVAL, enter, vcpu)
    other = context.vcpu()
    succeeds("VCPU_INIT without PMU_V3", _init, other)
    succeeds("KVM_RUN without PMU_V3", enter, other)


@clause("init.pmu-strict", arch="arm64", needs=(_PMU,))
def strict(context: Context) -> None:
    """PMU_V3_STRICT comes with PMU_V3 or is EINVAL; with it PMMIR_EL1 is listed, and 0 until a PMU is chosen.

    Before Linux 7.3 it is not known: ENOENT, and this clause is left out.

    Source: arch/arm64/include/uapi/asm/kvm.h, KVM_ARM_VCPU_PMU_V3_STRICT; commit ad220e275c39; Linux 7.3.
    """
    vcpu = context.vcpu()
    try:
        _init(vcpu, Feature.PMU_V3, _STRICT)
    except KvmError as error:
        if error.errno != errno.ENOENT:
            raise
        context.skip("VCPU_INIT with feature 9, PMU_V3_STRICT, is ENOENT: this KVM does not know it")
    refused("PMU_V3_STRICT alone", errno.EINVAL, _init, context.vcpu(), _STRICT)
    equal("PMMIR_EL1 in the list", _PMMIR in vcpu.reg_list(), True)
    equal("PMMIR_EL1", read(vcpu, _PMMIR), 0)
