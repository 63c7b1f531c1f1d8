# SPDX-License-Identifier: Apache-2.0
"""The closed world: calls that change a vCPU's state beside its setters, or show what follows from it."""

from __future__ import annotations

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.apic import LOCAL_APICS
from vmm.conformance.x86.world import X2APIC
from vmm.state.x86.world.lapic import LAPIC
from vmm.state.x86.world.modes import SREGS_1
from vmm.x86 import msr

_VECTOR = 0x51


@clause("world.events-called", arch="x86")
def events_called(context: Context) -> None:
    """KVM_INTERRUPT leaves its vector in SREGS too; KVM_NMI and KVM_SMI leave in EVENTS what they ask for.

    Source: Documentation/virt/kvm/api.rst, 4.16 (KVM_INTERRUPT), 4.64 (KVM_NMI), KVM_SMI; arch/x86/kvm/x86.c,
    kvm_inject_nmi, __get_sregs, kvm_vcpu_ioctl_x86_get_vcpu_events (process_nmi, process_smi).
    """
    vcpu = context.vm().create_vcpu()
    with judged("KVM_INTERRUPT"):
        vcpu.ioctl(lib.KVM_INTERRUPT, ffi.new("struct kvm_interrupt *", {"irq": _VECTOR}))
    bitmap = SREGS_1.read(vcpu)
    equal("interrupt_bitmap[1]", bitmap[f"interrupt_bitmap[{_VECTOR // 64}]"], 1 << _VECTOR % 64)
    injected = {"interrupt.injected": 1, "interrupt.nr": _VECTOR}
    state.hold("after KVM_INTERRUPT", vcpu.get_events(), injected | {"nmi.pending": 0, "smi.pending": 0})
    succeeds("KVM_NMI", vcpu.ioctl_value, lib.KVM_NMI)
    state.hold("after KVM_NMI", vcpu.get_events(), injected | {"nmi.pending": 1, "nmi.injected": 0, "smi.pending": 0})
    if context.host.facts.capabilities["KVM_CAP_X86_SMM"]:
        succeeds("KVM_SMI", vcpu.ioctl_value, lib.KVM_SMI)
        state.hold("after KVM_SMI", vcpu.get_events(), injected | {"smi.pending": 1, "smi.smm": 0, "nmi.pending": 1})


# What has no meaning to an x2APIC, or may not be written there: registers by their MSRs.
_NOT_READ = (0x800, 0x804, 0x80E, 0x831, 0x83F + 1)
_NOT_WRITTEN = {
    0x800: 0, 0x802: 0x25, 0x803: 0x14, 0x80D: 1, 0x80E: 0, 0x80F: 1 << 32 | 0x1FF, 0x808: 1 << 32, 0x828: 1,
    0x831: 0, 0x832: 1 << 63 | 0x10030, 0x838: 1 << 32, 0x83F: 0x100,
    **{0x830 | bit << 32: 1 << bit for bit in (13, 16, 17, 20, 31)},
}  # fmt: skip


@clause("world.lapic-x2-msrs", arch="x86", needs=(LOCAL_APICS,))
def x2apic_msrs(context: Context) -> None:
    """KVM_GET_MSRS and KVM_SET_MSRS refuse what an x2APIC has no register for, and reserved bits of those it has.

    The local APIC's page does not change.

    Source: arch/x86/kvm/lapic.c, kvm_x2apic_msr_read, kvm_lapic_reg_read, kvm_lapic_msr_write, kvm_lapic_reg_write,
    kvm_x2apic_icr_write; Intel SDM volume 3, 11.12.1.2, table 11-6.
    """
    vcpu = X2APIC.vcpu(context)
    before = LAPIC.read(vcpu)
    taken = [f"{index:#x}" for index in _NOT_READ if msr.try_get(vcpu, index) is not None]
    equal("MSRs that are read and are none", taken, [])
    pairs = [(key & 0xFFFF, value) for key, value in _NOT_WRITTEN.items()]
    taken = [f"{index:#x} = {value:#x}" for index, value in pairs if msr.set_msr(vcpu, index, value)]
    equal("values that are taken and are reserved", taken, [])
    after = LAPIC.read(vcpu)
    changed = [name for name, value in before.items() if after[name] != value]
    true("the page after the refusals", not changed, changed, "as before")
