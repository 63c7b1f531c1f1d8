# SPDX-License-Identifier: Apache-2.0
"""The x86 vCPUs of the generated clauses: with all that KVM supports, tiles too, and a local APIC in the kernel."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.world.ground import Ground
from vmm.conformance.x86.apic import with_local_apics
from vmm.kvm.vcpu import Vcpu
from vmm.state.x86.unsettled import before
from vmm.x86.cpuid import set_cpuid, supported
from vmm.x86.guest import Guest

__all__ = ["GROUND"]


def _vcpu(context: Context) -> Vcpu:
    before(context.kvm)
    vm = context.vm()
    if context.host.facts.capabilities["KVM_CAP_SPLIT_IRQCHIP"]:
        with_local_apics(vm)
    vcpu = vm.create_vcpu()
    set_cpuid(vcpu, supported(context.kvm))
    return vcpu


def _guest(context: Context) -> Guest:
    before(context.kvm)
    guest = context.own(Guest(context.kvm, "hello"))
    guest.prepare(guest.payload.entry)
    return guest


GROUND = Ground("x86", _vcpu, _guest)
