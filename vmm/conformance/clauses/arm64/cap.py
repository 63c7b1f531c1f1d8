# SPDX-License-Identifier: Apache-2.0
"""KVM_CAP_ARM_SVE: who has it."""

from __future__ import annotations

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.registry import clause
from vmm.probe.arm64.facts import HWCAP_SVE


@clause("cap.sve-matches-host", arch="arm64")
def sve_matches_host(context: Context) -> None:
    """KVM_CAP_ARM_SVE is 1 exactly where the host's kernel offers SVE to its own processes, on both kinds of fd.

    Before 5.13 a KVM without VHE said 0.

    Source: arch/arm64/kvm/arm.c, kvm_vm_ioctl_check_extension (system_supports_sve).
    """
    expected = int(bool(context.host.facts.hwcap & HWCAP_SVE))
    equal("KVM_CAP_ARM_SVE on /dev/kvm", context.kvm.check_extension(lib.KVM_CAP_ARM_SVE), expected)
    equal("KVM_CAP_ARM_SVE on a VM", context.vm().check_extension(lib.KVM_CAP_ARM_SVE), expected)
