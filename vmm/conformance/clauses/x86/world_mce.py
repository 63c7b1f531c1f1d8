# SPDX-License-Identifier: Apache-2.0
"""The closed world: which machine-check banks a vCPU has, and what else follows from that."""

from __future__ import annotations

import errno

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.apic import LOCAL_APICS
from vmm.conformance.x86.world import GROUND, WITH_EVENTS
from vmm.kvm.vcpu import Vcpu
from vmm.state.x86.world.lapic import LAPIC
from vmm.x86.msr import get_msr, set_msr
from vmm.x86.registers import set_cr4_bits

_CAP, _CTL, _BANKS = 0x179, 0x17B, 0x400  # IA32_MCG_CAP, IA32_MCG_CTL, IA32_MC0_CTL
_CTL_P, _CMCI_P = 1 << 8, 1 << 10  # in IA32_MCG_CAP
_AMD = 0x1FF  # svm.c, svm_setup_mce: the number of banks and MCG_CTL_P
_ONES, _MASKED = (1 << 64) - 1, 1 << 16
_STATUS = 0x17A  # IA32_MCG_STATUS
# In IA32_MCi_STATUS: valid, overflow, uncorrected, context corrupt. In IA32_MCG_STATUS: restart, in progress.
_VAL, _OVER, _UC, _PCC = (1 << bit for bit in (63, 62, 61, 57))
_RIPV, _MCIP = 1, 4
_CR4_MCE, _MC = 1 << 6, 18


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
    cap = get_msr(vcpu, _CAP)
    true(f"IA32_MCG_CAP after {value:#x}", cap in (value, value & _AMD), cap, f"{value:#x}, or of it what AMD has")
    if value & _CTL_P:
        equal(f"IA32_MCG_CTL after {value:#x}", get_msr(vcpu, _CTL), _ONES)
    for bank in {0, (value & 0xFF) - 1}:
        equal(f"IA32_MC{bank}_CTL after {value:#x}", get_msr(vcpu, _BANKS + 4 * bank), _ONES)
    page, entries = LAPIC.read(vcpu), 6 + (value & _CMCI_P != 0)
    equal(f"LVT entries by the APIC's version after {value:#x}", page["VERSION"] >> 16 & 0xFF, entries - 1)
    if value & _CMCI_P:
        equal(f"LVT CMCI after {value:#x}", page["LVT_CMCI"], _MASKED)


def _report(vcpu: Vcpu, **fields: int) -> None:
    vcpu.ioctl(lib.KVM_X86_SET_MCE, ffi.new("struct kvm_x86_mce *", fields))


def _bank(vcpu: Vcpu, bank: int) -> list[int]:
    """IA32_MCi_STATUS, _ADDR and _MISC."""
    return [get_msr(vcpu, _BANKS + 4 * bank + at) for at in (1, 2, 3)]


@clause(
    "world.mce-reported",
    arch="x86",
    needs=(capability("KVM_CAP_EXCEPTION_PAYLOAD"), capability("KVM_CAP_X86_TRIPLE_FAULT_EVENT")),
)
def reported(context: Context) -> None:
    """KVM_X86_SET_MCE puts an error into its bank; an uncorrected one is #MC, and a second one before it a shutdown.

    A second error in a bank sets IA32_MCi_STATUS.OVER. Without IA32_MCG_CTL nothing uncorrected is reported. A bank
    that there is not, and an error that is not valid, are EINVAL.

    Source: Documentation/virt/kvm/api.rst, 4.106; arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_mce; Intel SDM volume 3,
    16.3.1.2, 16.3.2.2.
    """
    if not context.kvm.check_extension(lib.KVM_CAP_MCE):
        context.skip("needs KVM_CAP_MCE: it is 0")
    vcpu = WITH_EVENTS.vcpu(context)
    set_cr4_bits(vcpu, _CR4_MCE, on=True)
    _set_up(vcpu, 3 | _CTL_P)
    error = {"bank": 1, "addr": 0x1234_5000, "misc": 0x86, "status": _VAL | 0x151}
    for change in ({"bank": 3}, {"bank": 0xFF}, {"status": 0x151}):
        refused(f"KVM_X86_SET_MCE with {change}", errno.EINVAL, _report, vcpu, **error | change)
    equal("bank 1 after the refusals", _bank(vcpu, 1), [0, 0, 0])
    for over in (0, _OVER):
        succeeds("KVM_X86_SET_MCE of a corrected error", _report, vcpu, **error)
        equal("bank 1", _bank(vcpu, 1), [error["status"] | over, error["addr"], error["misc"]])
    worse = error | {"bank": 2, "status": _VAL | _UC | _PCC | 0x151, "mcg_status": _MCIP | _RIPV}
    set_msr(vcpu, _CTL, 0)
    succeeds("KVM_X86_SET_MCE of an uncorrected error without IA32_MCG_CTL", _report, vcpu, **worse)
    equal("bank 2 without IA32_MCG_CTL", _bank(vcpu, 2), [0, 0, 0])
    set_msr(vcpu, _CTL, _ONES)
    succeeds("KVM_X86_SET_MCE of an uncorrected error", _report, vcpu, **worse)
    equal("bank 2", _bank(vcpu, 2), [worse["status"], worse["addr"], worse["misc"]])
    equal("bank 1 beside it", _bank(vcpu, 1)[1:], [error["addr"], error["misc"]])
    equal("IA32_MCG_STATUS", get_msr(vcpu, _STATUS), worse["mcg_status"])
    pending = {"exception.pending": 1, "exception.nr": _MC}
    state.hold("after an uncorrected error", vcpu.get_events(), {**pending, "triple_fault.pending": 0})
    succeeds("KVM_X86_SET_MCE of another", _report, vcpu, **worse)
    state.hold("after another", vcpu.get_events(), {**pending, "triple_fault.pending": 1})
