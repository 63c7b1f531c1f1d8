# SPDX-License-Identifier: Apache-2.0
"""A device made by KVM_CREATE_DEVICE, driven by its attributes."""

from __future__ import annotations

from pathlib import Path

from vmm._kvm import ffi, lib
from vmm.kvm.handle import Handle
from vmm.kvm.ioctl import KvmError

__all__ = ["DEVICE_TYPES", "VFIO_FOLDER", "Device", "device_type_answers", "vfio_groups"]

VFIO_FOLDER = Path("/dev/vfio")

# enum kvm_device_type of include/uapi/linux/kvm.h, Linux 7.2, of all architectures.
DEVICE_TYPES = {
    1: "FSL_MPIC_20", 2: "FSL_MPIC_42", 3: "XICS", 4: "VFIO", 5: "ARM_VGIC_V2", 6: "FLIC", 7: "ARM_VGIC_V3",
    8: "ARM_VGIC_ITS", 9: "XIVE", 10: "ARM_PV_TIME", 11: "RISCV_AIA", 12: "LOONGARCH_IPI",
    13: "LOONGARCH_EIOINTC", 14: "LOONGARCH_PCHPIC", 15: "LOONGARCH_DMSINTC", 16: "ARM_VGIC_V5",
}  # fmt: skip


class Device(Handle):
    """An in-kernel device; its attributes are those of Documentation/virt/kvm/devices."""

    def __init__(self, fd: int, kind: int) -> None:
        super().__init__(fd)
        self.kind = kind


def device_type_answers(vm: Handle, kind: int) -> bool:
    """Ask by KVM_CREATE_DEVICE with KVM_CREATE_DEVICE_TEST whether KVM has a device type; nothing is created."""
    value = ffi.new("struct kvm_create_device *", {"type": kind, "flags": lib.KVM_CREATE_DEVICE_TEST})
    try:
        vm.ioctl(lib.KVM_CREATE_DEVICE, value)
    except KvmError as error:
        if error.errno_name in ("ENODEV", "ENOTTY"):
            return False
        raise
    return True


def vfio_groups(folder: Path = VFIO_FOLDER) -> tuple[str, ...]:
    """Return the names of the VFIO groups of this host, such as ``12`` or ``noiommu-0``."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return ()
    return tuple(sorted(name for name in names if name.removeprefix("noiommu-").isdigit()))
