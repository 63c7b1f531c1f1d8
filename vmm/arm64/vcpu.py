# SPDX-License-Identifier: Apache-2.0
"""Setting a vCPU up: VCPU_INIT with features, FINALIZE, vector lengths, and registers as numbers.

The order matters: init, then vector lengths, then finalize, then the rest. Source: Documentation/virt/kvm/api.rst,
4.82 KVM_ARM_VCPU_INIT and 4.119 KVM_ARM_VCPU_FINALIZE.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any

from vmm._kvm import ffi, lib
from vmm.arm64.registers import VLS, Register
from vmm.arm64.vls import VectorLengths
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine

__all__ = [
    "GENERIC_V8",
    "Feature",
    "features",
    "finalize",
    "get_vls",
    "init",
    "init_raw",
    "one_reg",
    "preferred_target",
    "read",
    "set_vls",
    "writable_masks",
    "write",
]

GENERIC_V8 = 5


class Feature(IntEnum):
    """Bits of ``features`` in struct kvm_vcpu_init; SVE is also the argument of FINALIZE."""

    POWER_OFF = 0
    EL1_32BIT = 1
    PSCI_0_2 = 2
    PMU_V3 = 3
    SVE = 4
    PTRAUTH_ADDRESS = 5
    PTRAUTH_GENERIC = 6
    HAS_EL2 = 7
    HAS_EL2_E2H0 = 8


def init_raw(vcpu: Vcpu, target: int, words: Iterable[int]) -> None:
    """KVM_ARM_VCPU_INIT with the words of the feature array as they are."""
    padded = [*words, *[0] * 7][:7]
    value = ffi.new("struct kvm_vcpu_init *", {"target": target, "features": padded})
    vcpu.ioctl(lib.KVM_ARM_VCPU_INIT, value)
    vcpu.chosen["INIT"] = bytes(ffi.buffer(value))


def init(vcpu: Vcpu, *features: Feature, target: int = GENERIC_V8) -> None:
    """KVM_ARM_VCPU_INIT with some features."""
    init_raw(vcpu, target, [sum(1 << feature for feature in features)])


def features(vcpu: Vcpu) -> frozenset[Feature]:
    """Return the features that the vCPU was last initialised with: no call of KVM tells."""
    words = int.from_bytes(vcpu.chosen.get("INIT", b"")[4:], "little")
    return frozenset(feature for feature in Feature if words >> feature & 1)


def finalize(vcpu: Vcpu, feature: int = Feature.SVE) -> None:
    """KVM_ARM_VCPU_FINALIZE of a feature's number."""
    vcpu.ioctl(lib.KVM_ARM_VCPU_FINALIZE, ffi.new("int *", feature))
    done = int.from_bytes(vcpu.chosen.get("FINALIZE", b""), "little")
    vcpu.chosen["FINALIZE"] = (done | 1 << feature).to_bytes(4, "little")


def preferred_target(vm: VirtualMachine) -> Any:
    """KVM_ARM_PREFERRED_TARGET into a poisoned ``struct kvm_vcpu_init *``."""
    value = ffi.new("struct kvm_vcpu_init *")
    ffi.memmove(value, b"\xaa" * ffi.sizeof("struct kvm_vcpu_init"), ffi.sizeof("struct kvm_vcpu_init"))
    vm.ioctl(lib.KVM_ARM_PREFERRED_TARGET, value)
    return value


def one_reg(vcpu: Vcpu, request: int, identifier: int, address: int) -> None:
    """KVM_GET_ONE_REG or KVM_SET_ONE_REG with an address that may be wrong."""
    vcpu.ioctl(request, ffi.new("struct kvm_one_reg *", {"id": int(identifier), "addr": address}))


def read(vcpu: Vcpu, register: Register) -> int:
    """Return a register as a number."""
    return int.from_bytes(vcpu.get_one_reg(register), "little")


def write(vcpu: Vcpu, register: Register, value: int) -> None:
    """Set a register to a number."""
    vcpu.set_one_reg(register, value.to_bytes(register.size, "little"))


def get_vls(vcpu: Vcpu) -> VectorLengths:
    """Return the vCPU's set of vector lengths."""
    return VectorLengths.decode(vcpu.get_one_reg(VLS))


def set_vls(vcpu: Vcpu, lengths: Iterable[int]) -> None:
    """Choose the vCPU's vector lengths, before FINALIZE."""
    vcpu.set_one_reg(VLS, VectorLengths(lengths).encode())


def writable_masks(vm: VirtualMachine, *, region: int = 0, reserved: int = 0) -> list[int]:
    """KVM_ARM_GET_REG_WRITABLE_MASKS: for each feature ID register which bits may be written."""
    masks = ffi.new("uint64_t[]", 3 * 8 * 8)
    address = int(ffi.cast("uintptr_t", masks))
    value = {"addr": address, "range": region, "reserved": [reserved]}
    vm.ioctl(lib.KVM_ARM_GET_REG_WRITABLE_MASKS, ffi.new("struct reg_mask_range *", value))
    return list(masks)
