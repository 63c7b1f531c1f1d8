# SPDX-License-Identifier: Apache-2.0
"""The virtual GICv3 of a clause's guest: needs, its attributes as numbers, and where it is placed."""

from __future__ import annotations

from typing import Any

from vmm._kvm import ffi
from vmm.conformance.needs import Need
from vmm.kvm.device import DEVICE_TYPES, Device
from vmm.kvm.vm import VirtualMachine
from vmm.probe.host import Host

__all__ = [
    "CONTROL",
    "COUNT",
    "CPU",
    "DIST",
    "DISTRIBUTOR",
    "DIST_AT",
    "INIT",
    "ITS",
    "PLACES",
    "REDIST",
    "REDISTRIBUTOR",
    "REDIST_AT",
    "V2",
    "V3",
    "V5",
    "get",
    "has",
    "initialise",
    "place",
    "put",
    "vgic",
    "where",
]

# enum kvm_device_type; groups and attributes of arch/arm64/include/uapi/asm/kvm.h, KVM_DEV_ARM_VGIC_*, KVM_VGIC_V3_*.
V2, V3, ITS, V5 = 5, 7, 8, 16
PLACES, DISTRIBUTOR, COUNT, CONTROL, REDISTRIBUTOR, CPU = 0, 1, 3, 4, 5, 6
INIT, DIST, REDIST = 0, 2, 3
# Where a guest's tables have devices.
DIST_AT, REDIST_AT = 0xE000_0000, 0xE010_0000


def has(kind: int) -> Need:
    """KVM_CREATE_DEVICE has a type."""

    def measure(host: Host) -> tuple[bool, str]:
        return kind in host.facts.devices, f"KVM_CREATE_DEVICE does not have type {kind}"

    return Need(f"KVM's device {DEVICE_TYPES[kind]}", measure)


def _number(kind: str, value: int) -> Any:
    return ffi.new(f"{kind} *", value)


def put(device: Device, group: int, attribute: int, value: int, kind: str = "uint32_t") -> None:
    """KVM_SET_DEVICE_ATTR of a number."""
    device.set_attribute(group, attribute, _number(kind, value))


def get(device: Device, group: int, attribute: int, kind: str = "uint32_t") -> int:
    """KVM_GET_DEVICE_ATTR of a number, into poison."""
    value = _number(kind, 0x55AA55AA)
    device.get_attribute(group, attribute, value)
    return int(value[0])


def place(device: Device, kind: int, address: int) -> None:
    """Say where the guest has the distributor or the redistributors."""
    put(device, PLACES, kind, address, "uint64_t")


def where(device: Device, kind: int) -> int:
    """Ask where the guest has the distributor or the redistributors."""
    return get(device, PLACES, kind, "uint64_t")


def initialise(device: Device) -> None:
    """Initialise the vGIC, when the VM has all of its vCPUs."""
    device.set_attribute(CONTROL, INIT)


def vgic(vm: VirtualMachine) -> Device:
    """Give a VM, whose vCPUs have not run, a GICv3 that is in place and initialised."""
    device = vm.create_device(V3)
    place(device, DIST, DIST_AT)
    place(device, REDIST, REDIST_AT)
    initialise(device)
    return device
