# SPDX-License-Identifier: Apache-2.0
"""The x86 vCPUs of the generated clauses: with all that KVM supports, tiles too, and a local APIC in the kernel."""

from __future__ import annotations

from dataclasses import replace

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.world.ground import Ground
from vmm.conformance.x86.apic import with_local_apics
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.state.x86.unsettled import before
from vmm.x86.cpuid import set_cpuid, supported
from vmm.x86.guest import Guest

__all__ = ["GROUND", "WITH_EVENTS"]


def _vm(context: Context) -> VirtualMachine:
    before(context.kvm)
    vm = context.vm()
    if context.host.facts.capabilities["KVM_CAP_SPLIT_IRQCHIP"]:
        with_local_apics(vm)
    return vm


def _vcpu(context: Context, vm: VirtualMachine) -> Vcpu:
    vcpu = vm.create_vcpu()
    set_cpuid(vcpu, supported(context.kvm))
    return vcpu


def _guest(context: Context) -> Guest:
    before(context.kvm)
    guest = context.own(Guest(context.kvm, "hello"))
    guest.prepare(guest.payload.entry)
    return guest


def _with_events(context: Context) -> Vcpu:
    """A vCPU whose events tell an exception's payload and a pending triple fault."""
    vm = _vm(context)
    vm.enable_cap(lib.KVM_CAP_EXCEPTION_PAYLOAD, 1)
    vm.enable_cap(lib.KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)
    return _vcpu(context, vm)


GROUND = Ground("x86", lambda context: _vcpu(context, _vm(context)), _guest)
WITH_EVENTS = replace(GROUND, vcpu=_with_events)
