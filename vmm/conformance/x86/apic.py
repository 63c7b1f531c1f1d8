# SPDX-License-Identifier: Apache-2.0
"""Local APICs in the kernel, and INIT, which is sent to a vCPU through them."""

from __future__ import annotations

from vmm._kvm import ffi, lib
from vmm.conformance.expect import equal, succeeds
from vmm.conformance.needs import capability
from vmm.kvm.exits import Deadline
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine

__all__ = [
    "INIT_BY_MESSAGE",
    "LOCAL_APICS",
    "SPLIT",
    "make_runnable",
    "send_init",
    "signal_init",
    "signal_sipi",
    "with_local_apics",
]

LOCAL_APICS = capability("KVM_CAP_SPLIT_IRQCHIP")
# For who sends INIT.
INIT_BY_MESSAGE = (LOCAL_APICS, capability("KVM_CAP_SIGNAL_MSI"))
_IOAPIC_PINS = 24
# For a Guest: local APICs in the kernel, and nothing else of KVM_CREATE_IRQCHIP.
SPLIT = {int(lib.KVM_CAP_SPLIT_IRQCHIP): (_IOAPIC_PINS,)}
_DELIVER_INIT, _DELIVER_SIPI = 5 << 8 | 1 << 14, 6 << 8 | 1 << 14  # delivery mode, assert


def with_local_apics(vm: VirtualMachine) -> VirtualMachine:
    """Give a VM that has no vCPU yet local APICs in the kernel, and nothing else of KVM_CREATE_IRQCHIP.

    An IOAPIC there makes closing the VM take a grace period of the host's kernel, some 15 ms.
    Source: Documentation/virt/kvm/api.rst, KVM_CAP_SPLIT_IRQCHIP.
    """
    vm.enable_cap(lib.KVM_CAP_SPLIT_IRQCHIP, _IOAPIC_PINS)
    return vm


def make_runnable(vcpu: Vcpu) -> None:
    """Have a vCPU other than the first no longer wait for INIT, and be one that a message finds."""
    vcpu.mp_state = lib.KVM_MP_STATE_RUNNABLE
    # A vCPU is not yet in the map of APIC ids when its own APIC is reset; writing the APIC makes KVM look again.
    vcpu.ioctl(lib.KVM_SET_LAPIC, vcpu.get(lib.KVM_GET_LAPIC, "kvm_lapic_state"))


def signal_init(vm: VirtualMachine, vcpu: Vcpu) -> None:
    """Send INIT to a runnable vCPU other than the first, as a message-signalled interrupt. Nothing takes it yet."""
    _signal(vm, vcpu, _DELIVER_INIT)


def signal_sipi(vm: VirtualMachine, vcpu: Vcpu, page: int) -> None:
    """Send SIPI, with the page where it begins as its vector, to a vCPU that has taken INIT; nothing takes it yet."""
    _signal(vm, vcpu, _DELIVER_SIPI | page)


def _signal(vm: VirtualMachine, vcpu: Vcpu, data: int) -> None:
    address = 0xFEE00000 | vcpu.identifier << 12
    vm.ioctl(lib.KVM_SIGNAL_MSI, ffi.new("struct kvm_msi *", {"address_lo": address, "data": data}))


def send_init(vm: VirtualMachine, vcpu: Vcpu) -> None:
    """Send INIT to a vCPU other than the first, as a message-signalled interrupt, and have KVM_RUN take it."""
    make_runnable(vcpu)
    signal_init(vm, vcpu)
    exit = succeeds("KVM_RUN of a vCPU that waits for SIPI", vcpu.run, 0.05)
    equal("the exit of a vCPU that waits for SIPI", exit, Deadline())
    equal("mp_state after INIT", vcpu.mp_state, lib.KVM_MP_STATE_INIT_RECEIVED)
