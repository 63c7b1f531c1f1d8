# SPDX-License-Identifier: Apache-2.0
"""The closed world: which machine-check banks a vCPU has, and what else follows from that."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86.apic import LOCAL_APICS
from vmm.conformance.x86.world import GROUND
from vmm.kvm.vcpu import Vcpu
from vmm.state.x86.world.lapic import LAPIC
from vmm.x86.msr import get_msr

_CAP, _CTL, _BANKS = 0x179, 0x17B, 0x400  # IA32_MCG_CAP, IA32_MCG_CTL, IA32_MC0_CTL
_CTL_P, _CMCI_P = 1 << 8, 1 << 10  # in IA32_MCG_CAP
_ONES, _MASKED = (1 << 64) - 1, 1 << 16


def _set_up(vcpu: Vcpu, value: int) -> None:
    vcpu.ioctl(lib.KVM_X86_SETUP_MCE, ffi.new("uint64_t *", value))


@clause("world.mce-kept", arch="x86", needs=(LOCAL_APICS,))
def kept(context: Context) -> None:
    """KVM_X86_SETUP_MCE gives a vCPU the banks and features that it names, IA32_MCG_CTL and IA32_MCi_CTL all ones.

    With MCG_CMCI_P its APIC has an LVT entry more, masked. No bank, more than KVM_CAP_MCE says and features that
    KVM_X86_GET_MCE_CAP_SUPPORTED lacks are EINVAL, and change nothing.

    Source: Documentation/virt/kvm/api.rst, 4.104, 4.105; arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_setup_mce;
    arch/x86/kvm/lapic.c, kvm_apic_after_set_mcg_cap; Intel SDM volume 3, 16.3.1, 16.3.2.
    """
    most = context.kvm.check_extension(lib.KVM_CAP_MCE)
    if not most:
        context.skip("needs KVM_CAP_MCE: it is 0")
    supported = ffi.new("uint64_t *")
    context.kvm.ioctl(lib.KVM_X86_GET_MCE_CAP_SUPPORTED, supported)
    vcpu, features = GROUND.vcpu(context), int(supported[0]) & ~0xFF
    unknown = 1 << 63 | 1
    for value in (1, most | features):
        succeeds(f"KVM_X86_SETUP_MCE of {value:#x}", _set_up, vcpu, value)
        _agrees(vcpu, value)
        for wrong in (features, most + 1, unknown):
            refused(f"KVM_X86_SETUP_MCE of {wrong:#x}", errno.EINVAL, _set_up, vcpu, wrong)
        _agrees(vcpu, value)


def _agrees(vcpu: Vcpu, value: int) -> None:
    """The MSRs and the APIC say what was set up."""
    equal(f"IA32_MCG_CAP after {value:#x}", get_msr(vcpu, _CAP), value)
    if value & _CTL_P:
        equal(f"IA32_MCG_CTL after {value:#x}", get_msr(vcpu, _CTL), _ONES)
    for bank in {0, (value & 0xFF) - 1}:
        equal(f"IA32_MC{bank}_CTL after {value:#x}", get_msr(vcpu, _BANKS + 4 * bank), _ONES)
    page, entries = LAPIC.read(vcpu), 6 + (value & _CMCI_P != 0)
    equal(f"LVT entries by the APIC's version after {value:#x}", page["VERSION"] >> 16 & 0xFF, entries - 1)
    if value & _CMCI_P:
        equal(f"LVT CMCI after {value:#x}", page["LVT_CMCI"], _MASKED)
