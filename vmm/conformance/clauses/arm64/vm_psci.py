# SPDX-License-Identifier: Apache-2.0
"""PSCI: a guest's calls, and MP states."""

from __future__ import annotations

import errno

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import firmware
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, call, plain_guest, plain_vcpu
from vmm.conformance.arm64.psci import RUNNABLE, STOPPED, SUSPENDED, VERSION
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, refused_indicative, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.kvm.exits import SystemEvent

_SYSTEM_OFF, _SYSTEM_RESET, _UNKNOWN_CALL = 0x84000008, 0x84000009, 0x84FF0000
_NOT_SUPPORTED = (1 << 64) - 1
_SHUTDOWN, _RESET = 1, 2


@clause("vm.psci-version", arch="arm64", needs=(GUEST_RUNS,))
def psci_version(context: Context) -> None:
    """PSCI_VERSION in the guest is the firmware register's, which can be set to older versions and not to 0.1.

    Source: arch/arm64/kvm/hypercalls.c, kvm_arm_set_fw_reg; Documentation/virt/kvm/arm/fw-pseudo-registers.rst.
    """
    guest = plain_guest(context)
    start = read(guest.vcpu, firmware(0))
    context.note(f"PSCI {start >> 16}.{start & 0xFFFF}")
    # Before 1.1 was known (Linux 5.10, say) it is newer than the kernel's own version.
    older = [version for version in (0x10001, 0x10000, 0x2) if version < start]
    for version in (start, *older, start):
        succeeds(f"PSCI_VERSION {version:#x}", write, guest.vcpu, firmware(0), version)
        call(context, guest, "a guest that asks for PSCI_VERSION", "hvc", VERSION)
        equal("PSCI_VERSION in the guest", guest.mailbox.values[0], version)
    for version in (1, start + 1, start + 0x10000):
        what = f"PSCI_VERSION {version:#x}"
        refused_indicative(context, what, errno.EINVAL, write, guest.vcpu, firmware(0), version)


@clause("vm.psci-unknown", arch="arm64", needs=(GUEST_RUNS,))
def psci_unknown(context: Context) -> None:
    """An unknown call answers -1 and does not leave the guest.

    Source: arch/arm64/kvm/hypercalls.c, kvm_smccc_call_handler; Arm DEN0028 (SMCCC), 5.2.
    """
    guest = plain_guest(context)
    for number in (_UNKNOWN_CALL, 0x1234, 0xC4FF0000):
        call(context, guest, f"a guest that calls {number:#x}", "hvc", number)
        equal(f"what {number:#x} answers", guest.mailbox.values[0], _NOT_SUPPORTED)


@clause("vm.psci-off", arch="arm64", needs=(GUEST_RUNS,))
def psci_off(context: Context) -> None:
    """SYSTEM_OFF and SYSTEM_RESET leave with KVM_EXIT_SYSTEM_EVENT and stop every vCPU of the VM.

    Source: arch/arm64/kvm/psci.c, kvm_prepare_system_event; Documentation/virt/kvm/api.rst, KVM_EXIT_SYSTEM_EVENT.
    """
    for function, kind in ((_SYSTEM_OFF, _SHUTDOWN), (_SYSTEM_RESET, _RESET)):
        guest = plain_guest(context)
        second = guest.vm.create_vcpu(1)
        vcpus.init(second, Feature.PSCI_0_2)
        guest.prepare("hvc", function)
        exit = succeeds(f"KVM_RUN with {function:#x}", guest.resume, context.timeout)
        equal(f"the exit of {function:#x}", exit, SystemEvent(kind))
        for number, vcpu in enumerate((guest.vcpu, second)):
            equal(f"MP state of vCPU {number} after {function:#x}", vcpu.mp_state, STOPPED)
        guest.close()


@clause("vm.mpstate", arch="arm64", needs=(capability("KVM_CAP_MP_STATE"),))
def mp_state(context: Context) -> None:
    """The MP state may be RUNNABLE or STOPPED, and with KVM_CAP_ARM_SYSTEM_SUSPEND SUSPENDED; others are EINVAL.

    A refused one changes nothing.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl_set_mpstate; Documentation/virt/kvm/api.rst, 4.39.
    """
    vcpu = plain_vcpu(context)
    equal("MP state", vcpu.mp_state, RUNNABLE)
    suspend = context.host.facts.capabilities["KVM_CAP_ARM_SYSTEM_SUSPEND"]
    for state in (STOPPED, RUNNABLE, *([SUSPENDED, RUNNABLE] if suspend else [])):
        succeeds(f"MP state {state}", setattr, vcpu, "mp_state", state)
        equal("MP state", vcpu.mp_state, state)
    for state in (1, 2, 3, 4, 6, 99):
        refused(f"MP state {state}", errno.EINVAL, setattr, vcpu, "mp_state", state)
        equal(f"MP state after the refused {state}", vcpu.mp_state, RUNNABLE)
