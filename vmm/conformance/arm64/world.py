# SPDX-License-Identifier: Apache-2.0
"""The arm64 vCPUs of the generated clauses: with SVE, keys and a PMU where KVM has them, and without anything."""

from __future__ import annotations

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.vcpu import Feature
from vmm.conformance.context import Context
from vmm.conformance.world.ground import Ground
from vmm.kvm.vcpu import Vcpu
from vmm.state.arm64.world.facts import remember_aarch32, remember_masks

__all__ = ["GROUND", "PLAIN", "widest"]

_KEYS = (Feature.PTRAUTH_ADDRESS, Feature.PTRAUTH_GENERIC)


def widest(context: Context) -> tuple[Feature, ...]:
    """Everything that a vCPU can have here and run with: PSCI, SVE, pointer authentication."""
    known = context.host.facts.capabilities
    sve = (Feature.SVE,) if known["KVM_CAP_ARM_SVE"] else ()
    keys = _KEYS if known["KVM_CAP_ARM_PTRAUTH_ADDRESS"] and known["KVM_CAP_ARM_PTRAUTH_GENERIC"] else ()
    return (Feature.PSCI_0_2, *sve, *keys)


def _make(context: Context, *features: Feature) -> Vcpu:
    vm = context.vm()
    vcpu = vm.create_vcpu()
    vcpus.init(vcpu, *features)
    if Feature.SVE in features:
        vcpus.finalize(vcpu)
    remember_aarch32(vcpu)
    if context.host.facts.capabilities["KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES"]:
        remember_masks(vcpu, vcpus.writable_masks(vm))
    return vcpu


def _vcpu(context: Context) -> Vcpu:
    pmu = (Feature.PMU_V3,) if context.host.facts.capabilities["KVM_CAP_ARM_PMU_V3"] else ()
    return _make(context, *widest(context), *pmu)


def _plain(context: Context) -> Vcpu:
    return _make(context, Feature.PSCI_0_2)


def _guest(context: Context, payload: str = "hello") -> Guest:
    return context.own(Guest(context.kvm, payload, features=widest(context)))


def _plain_guest(context: Context) -> Guest:
    return context.own(Guest(context.kvm, "hello", features=(Feature.PSCI_0_2,)))


def _again(vcpu: Vcpu) -> None:
    vcpus.init(vcpu, *vcpus.features(vcpu))


GROUND = Ground("arm64", _vcpu, _guest, Context.vcpu, _again)
PLAIN = Ground("arm64", _plain, _plain_guest, Context.vcpu, _again)
