# SPDX-License-Identifier: Apache-2.0
"""A virtual machine: memory slots, vCPUs, devices, capabilities."""

from __future__ import annotations

from vmm._kvm import ffi, lib
from vmm.kvm.coherence import Coherence
from vmm.kvm.device import Device
from vmm.kvm.handle import Handle
from vmm.kvm.memory import GuestMemory
from vmm.kvm.vcpu import Vcpu

__all__ = ["VirtualMachine"]


class VirtualMachine(Handle):
    """One VM fd. It owns the vCPUs, devices and memory made through it and closes them with itself."""

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd)
        self._vcpu_mmap_size = vcpu_mmap_size
        self._owned: list[Vcpu | Device | GuestMemory] = []
        self.memories: list[GuestMemory] = []
        # What was enabled, with its arguments: no call tells, and a state has to say.
        self.capabilities: dict[int, tuple[int, ...]] = {}

    def enable_cap(self, capability: int, *arguments: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP with up to four arguments."""
        value = ffi.new("struct kvm_enable_cap *", {"cap": capability, "flags": flags, "args": list(arguments)})
        self.ioctl(lib.KVM_ENABLE_CAP, value)
        self.capabilities[capability] = arguments

    def create_vcpu(self, identifier: int = 0) -> Vcpu:
        """KVM_CREATE_VCPU. The first one of a process freezes its guest xfeature permissions (x86)."""
        fd = self.ioctl_value(lib.KVM_CREATE_VCPU, identifier)
        vcpu = Vcpu(fd, self._vcpu_mmap_size, identifier)
        self._owned.append(vcpu)
        return vcpu

    def create_device(self, kind: int, flags: int = 0) -> Device:
        """KVM_CREATE_DEVICE."""
        value = ffi.new("struct kvm_create_device *", {"type": kind, "flags": flags})
        self.ioctl(lib.KVM_CREATE_DEVICE, value)
        device = Device(value.fd, kind)
        self._owned.append(device)
        return device

    def add_memory(
        self,
        size: int,
        gpa: int = 0,
        *,
        backing: str = "anonymous",
        coherence: str = Coherence.COHERENT,
        log_dirty: bool = False,
    ) -> GuestMemory:
        """Back ``size`` bytes at guest physical ``gpa``; see GuestMemory for the rest. Sizes in bytes."""
        slot = len(self.memories)
        memory = GuestMemory(self, slot, gpa, size, backing, coherence)
        self._owned.append(memory)
        memory.register(log_dirty=log_dirty)
        self.memories.append(memory)
        return memory

    def set_memory_region(self, slot: int, gpa: int, size: int, address: int, flags: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION: size 0 removes the slot."""
        region = {
            "slot": slot,
            "flags": flags,
            "guest_phys_addr": gpa,
            "memory_size": size,
            "userspace_addr": address,
        }
        self.ioctl(lib.KVM_SET_USER_MEMORY_REGION, ffi.new("struct kvm_userspace_memory_region *", region))

    def close(self) -> None:
        """Close vCPUs, devices and memory, the latest first, then the VM; the first error is raised at the end."""
        errors = []
        while self._owned:
            try:
                self._owned.pop().close()
            except OSError as error:
                errors.append(error)
        super().close()
        if errors:
            raise errors[0]
