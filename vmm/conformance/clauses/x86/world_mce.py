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
from vmm.x86.msr import get_msr, get_msrs, set_msr
from vmm.x86.registers import get_sregs, set_sregs

_CAP, _CTL, _BANKS = 0x179, 0x17B, 0x400  # IA32_MCG_CAP, IA32_MCG_CTL, IA32_MC0_CTL
_CTL_P, _CMCI_P = 1 << 8, 1 << 10  # in IA32_MCG_CAP
_ONES, _MASKED = (1 << 64) - 1, 1 << 16
# In IA32_MCi_STATUS: valid, another one was lost, uncorrected, reported by the bank, signalled.
_VALID, _LOST, _UNCORRECTED, _ENABLED, _SIGNALLED = 1 << 63, 1 << 62, 1 << 61, 1 << 60, 1 << 56
_STATUS, _IN_PROGRESS = 0x17A, 1 << 2  # IA32_MCG_STATUS, and MCIP in it
_MACHINE_CHECK, _CR4_MCE = 18, 1 << 6


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


def _report(vcpu: Vcpu, bank: int, *values: int) -> None:
    """KVM_X86_SET_MCE of struct kvm_x86_mce: status, address, miscellaneous, IA32_MCG_STATUS; then the bank."""
    vcpu.ioctl(lib.KVM_X86_SET_MCE, ffi.new("uint64_t[8]", [*values, bank, 0, 0, 0]))


def _bank(vcpu: Vcpu, bank: int) -> list[int]:
    """Return a bank's status, address and what else there is."""
    return get_msrs(vcpu, [_BANKS + 4 * bank + at for at in (1, 2, 3)])


@clause("world.mce-reported", arch="x86")
def reported(context: Context) -> None:
    """KVM_X86_SET_MCE puts an error into its bank; one that is not corrected is #MC as well, if CR4.MCE is set.

    A second error sets OVER. A bank that there is not and an error that is not valid are EINVAL; while MCG_CTL or the
    bank's MCi_CTL is not all ones an uncorrected error is not reported.

    Source: Documentation/virt/kvm/api.rst, 4.106; arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_mce; Intel SDM volume 3,
    16.3.2.
    """
    if not context.kvm.check_extension(lib.KVM_CAP_MCE):
        context.skip("needs KVM_CAP_MCE: it is 0")
    vcpu = GROUND.vcpu(context)
    _set_up(vcpu, 4 | _CTL_P)
    for what, bank, status in (("bank 4 of 4", 4, _VALID), ("an invalid error", 0, _ENABLED)):
        refused(what, errno.EINVAL, _report, vcpu, bank, status, 1, 2, 0)
        equal(f"bank 0 after {what} was refused", _bank(vcpu, 0), [0, 0, 0])
    first, second = [_VALID | _ENABLED | 0x150, 0x1234_5000, 0x86], [_VALID | 0x151, 0x2345_6000, 0x8C]
    succeeds("a corrected error", _report, vcpu, 3, *first, 0)
    equal("bank 3 after a corrected error", _bank(vcpu, 3), first)
    succeeds("a second one", _report, vcpu, 3, *second, 0)
    equal("bank 3 after a second one", _bank(vcpu, 3), [second[0] | _LOST, *second[1:]])
    equal("the other banks", [_bank(vcpu, bank) for bank in range(3)], [[0, 0, 0]] * 3)
    equal("an exception after corrected errors", _exception(vcpu), (0, 0))
    _uncorrected(vcpu)


def _exception(vcpu: Vcpu) -> tuple[int, int]:
    """Return whether an exception waits or is delivered, and its number."""
    exception = vcpu.get_events().exception
    return int(exception.injected or exception.pending), int(exception.nr)


def _uncorrected(vcpu: Vcpu) -> None:
    sregs = get_sregs(vcpu)
    sregs.cr4 |= _CR4_MCE
    set_sregs(vcpu, sregs)
    values = [_VALID | _UNCORRECTED | _ENABLED | _SIGNALLED | 0x134, 0x3456_7000, 0x8C]
    for index in (_CTL, _BANKS):
        equal(f"MSR {index:#x} = 0 accepted", set_msr(vcpu, index, 0), True)
        succeeds(f"an uncorrected error while MSR {index:#x} is 0", _report, vcpu, 0, *values, _IN_PROGRESS)
        equal(f"bank 0, while MSR {index:#x} is 0", _bank(vcpu, 0), [0, 0, 0])
        equal(f"MSR {index:#x} = all ones accepted", set_msr(vcpu, index, _ONES), True)
    equal("an exception that is not reported", _exception(vcpu), (0, 0))
    succeeds("an uncorrected error", _report, vcpu, 0, *values, _IN_PROGRESS)
    equal("bank 0 after an uncorrected error", _bank(vcpu, 0), values)
    equal("IA32_MCG_STATUS after an uncorrected error", get_msr(vcpu, _STATUS), _IN_PROGRESS)
    equal("the exception", _exception(vcpu), (1, _MACHINE_CHECK))
