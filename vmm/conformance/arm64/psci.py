# SPDX-License-Identifier: Apache-2.0
"""PSCI: a second vCPU, and how the first one switches it on."""

from __future__ import annotations

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.registers import SYSTEM
from vmm.arm64.vcpu import Feature, read
from vmm.conformance.arm64.common import call
from vmm.conformance.context import Context
from vmm.kvm.vcpu import Vcpu

__all__ = ["CONTEXT", "RUNNABLE", "STOPPED", "SUSPENDED", "VERSION", "secondary", "switch_on"]

# Calls of PSCI, and MP states.
VERSION, _CPU_ON = 0x84000000, 0xC4000003
RUNNABLE, STOPPED, SUSPENDED = 0, 5, 10
# What a vCPU that is switched on finds in X0.
CONTEXT = 0x1122334455667788
_AFFINITY = 0xFF00FFFFFF


def secondary(guest: Guest, *, finalized: bool = True) -> Vcpu:
    """A second vCPU with SVE, which is switched off."""
    vcpu = guest.vm.create_vcpu(1)
    vcpus.init(vcpu, Feature.PSCI_0_2, Feature.SVE, Feature.POWER_OFF)
    if finalized:
        vcpus.finalize(vcpu)
    return vcpu


def switch_on(context: Context, guest: Guest, vcpu: Vcpu, entry: str = "secondary") -> int:
    """The first vCPU calls CPU_ON for the second, to begin at ``entry``; returns what PSCI answers.

    Nothing asks the second vCPU for anything after the call.
    """
    target = read(vcpu, SYSTEM["MPIDR_EL1"]) & _AFFINITY
    call(context, guest, "CPU_ON", "hvc", _CPU_ON, target, guest.payload.symbol(entry), CONTEXT)
    return guest.mailbox.values[0]
