# SPDX-License-Identifier: Apache-2.0
"""The x86 vCPUs of the generated clauses: with all that KVM supports, tiles too, and a local APIC in the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.world.ground import Ground
from vmm.conformance.x86.apic import with_local_apics
from vmm.conformance.x86.common import XSAVE2
from vmm.conformance.x86.still import still_guest
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.state.x86.unsettled import before
from vmm.state.x86.world.lapic import X2_IDENTIFIER
from vmm.state.x86.world.msr_row import KVM_PAGES, KVM_PAGES_SIZE
from vmm.state.x86.world.msrs_unlisted import BANKS, MCG_CTL_P
from vmm.state.x86.world.vectors import XSAVE
from vmm.x86.cpuid import enlightened, get_cpuid, set_cpuid, supported
from vmm.x86.registers import get_sregs, set_sregs
from vmm.x86.xsave import INITIAL_FCW, INITIAL_MXCSR

__all__ = [
    "DEVICE_GROUND",
    "GROUND",
    "HYPERV_GROUND",
    "MACHINE",
    "MSR_GROUND",
    "WITH_CHIPS",
    "WITH_EVENTS",
    "WITH_VECTORS",
    "X2APIC",
    "Equipped",
]

_USE_32BIT_IDS = 1  # KVM_X2APIC_API_USE_32BIT_IDS
_MCE_FEATURES = MCG_CTL_P | 1 << 10  # of MCG_CAP: MCG_CTL, and interrupts by corrected errors
_X2APIC_MODE = 1 << 10  # of IA32_APIC_BASE


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipped(Ground):
    """A ground whose vCPUs have more than all: ``equip`` gives it to one."""

    equip: Callable[[Context, Vcpu], None]


def _vm(context: Context) -> VirtualMachine:
    before(context.kvm)
    vm = context.vm()
    if context.host.facts.capabilities["KVM_CAP_SPLIT_IRQCHIP"]:
        with_local_apics(vm)
    return vm


def _vcpu(context: Context, vm: VirtualMachine, identifier: int = 0) -> Vcpu:
    vcpu = vm.create_vcpu(identifier)
    set_cpuid(vcpu, supported(context.kvm))
    return vcpu


def _with_events(context: Context) -> Vcpu:
    """A vCPU whose events tell an exception's payload and a pending triple fault."""
    vm = _vm(context)
    vm.enable_cap(lib.KVM_CAP_EXCEPTION_PAYLOAD, 1)
    vm.enable_cap(lib.KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)
    return _vcpu(context, vm)


def _with_vectors(context: Context) -> Vcpu:
    """A vCPU that uses x87 and XMM registers: of one that does not, no call shows them."""
    vcpu = _vcpu(context, _vm(context))
    XSAVE.write(vcpu, {"FP.FCW": INITIAL_FCW, "SSE.MXCSR": INITIAL_MXCSR})
    return vcpu


def _with_pages(context: Context) -> Vcpu:
    """A vCPU in a VM with memory where the values of MSRs have KVM write."""
    vm = _vm(context)
    vm.add_memory(KVM_PAGES_SIZE, KVM_PAGES)
    return _vcpu(context, vm)


def _equip(context: Context, vcpu: Vcpu) -> None:
    """Set up machine checks, and Hyper-V's synthetic interrupts where KVM has them."""
    offered = ffi.new("uint64_t *")
    context.kvm.ioctl(lib.KVM_X86_GET_MCE_CAP_SUPPORTED, offered)
    vcpu.ioctl(lib.KVM_X86_SETUP_MCE, ffi.new("uint64_t *", offered[0] & _MCE_FEATURES | BANKS))
    if context.kvm.check_extension(lib.KVM_CAP_HYPERV_SYNIC2):
        vcpu.ioctl(lib.KVM_ENABLE_CAP, ffi.new("struct kvm_enable_cap *", {"cap": lib.KVM_CAP_HYPERV_SYNIC2}))


def _enlighten(context: Context, vcpu: Vcpu) -> None:
    """Tell a guest with all that KVM supports that it runs below Hyper-V, and that KVM is there as well."""
    if not context.kvm.check_extension(lib.KVM_CAP_SYS_HYPERV_CPUID):
        context.skip("needs KVM_CAP_SYS_HYPERV_CPUID: it is 0")
    _equip(context, vcpu)
    set_cpuid(vcpu, enlightened(context.kvm))


def _with_devices(context: Context) -> Vcpu:
    vcpu = _with_pages(context)
    _equip(context, vcpu)
    return vcpu


def _x2apic(context: Context) -> Vcpu:
    """A vCPU whose APIC is in x2APIC mode, and is shown in that mode's format."""
    if not context.kvm.check_extension(lib.KVM_CAP_X2APIC_API):
        context.skip("needs KVM_CAP_X2APIC_API: it is 0")
    vm = _vm(context)
    vm.enable_cap(lib.KVM_CAP_X2APIC_API, _USE_32BIT_IDS)
    vcpu = _vcpu(context, vm, X2_IDENTIFIER)
    if not get_cpuid(vcpu).has("X2APIC"):
        context.skip("needs X2APIC for guests: KVM_GET_SUPPORTED_CPUID does not have it")
    sregs = get_sregs(vcpu)
    sregs.apic_base |= _X2APIC_MODE
    set_sregs(vcpu, sregs)
    return vcpu


def _chips(context: Context) -> Vcpu:
    """A VM with KVM's own PICs, IOAPIC and PIT. Their calls are its, as others are a vCPU's."""
    vm = context.vm()
    if not vm.check_extension(lib.KVM_CAP_PIT2):
        context.skip("needs KVM_CAP_PIT2: it is 0")
    vm.ioctl_value(lib.KVM_CREATE_IRQCHIP)
    vm.ioctl(lib.KVM_CREATE_PIT2, ffi.new("struct kvm_pit_config *"))
    return cast(Vcpu, vm)


def _machine(context: Context) -> Vcpu:
    """A VM without any. Its calls are its, as others are a vCPU's."""
    return cast(Vcpu, context.vm())


GROUND = Ground("x86", lambda context: _vcpu(context, _vm(context)), still_guest, moves=(XSAVE2,))
MSR_GROUND = replace(GROUND, vcpu=_with_pages)
DEVICE_GROUND = Equipped("x86", _with_devices, still_guest, equip=_equip)
HYPERV_GROUND = Equipped("x86", _with_devices, still_guest, equip=_enlighten)
WITH_EVENTS = replace(GROUND, vcpu=_with_events)
WITH_VECTORS = replace(GROUND, vcpu=_with_vectors)
WITH_CHIPS = replace(GROUND, vcpu=_chips)
MACHINE = replace(GROUND, vcpu=_machine)
X2APIC = replace(GROUND, vcpu=_x2apic)
