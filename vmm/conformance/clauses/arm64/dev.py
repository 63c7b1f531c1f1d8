# SPDX-License-Identifier: Apache-2.0
"""In-kernel devices: which there are, and the VFIO device."""

from __future__ import annotations

from vmm._kvm import lib
from vmm.conformance import dev_rules as rules
from vmm.conformance.arm64.vgic import ITS, V2, V3, V5, has
from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.needs import Need
from vmm.conformance.registry import clause
from vmm.kvm.device import VFIO_FOLDER, vfio_groups
from vmm.probe.host import Host

_VFIO, _FIRST_NEW = 4, 17
# Types that are arm64's; ARM_PV_TIME has a number and is no device: it is an attribute of vCPUs.
_OWN = (_VFIO, V2, V3, ITS, V5)
_HAS_VFIO = has(_VFIO)


def _has_group(host: Host) -> tuple[bool, str]:
    return bool(vfio_groups()), f"there is no group in {VFIO_FOLDER}"


@clause("dev.test-flag", arch="arm64")
def test_flag(context: Context) -> None:
    """KVM_CREATE_DEVICE_TEST tells which device types there are and creates nothing; others are ENODEV.

    Of the types that Linux 7.2 names for all architectures arm64 has VFIO, the vGICs and the ITS. There is a vGIC
    where KVM_CAP_IRQCHIP says so, and an ITS beside each GICv3.

    Source: virt/kvm/kvm_main.c, kvm_ioctl_create_device; arch/arm64/kvm/vgic/vgic-kvm-device.c,
    kvm_register_vgic_device; Documentation/virt/kvm/api.rst 4.79.
    """
    found = context.host.facts.devices
    rules.test_flag(context, [kind for kind in found if kind in _OWN])
    equal("a GICv3 and an ITS", ITS in found, V3 in found)
    irqchip = context.kvm.check_extension(lib.KVM_CAP_IRQCHIP)
    equal("KVM_CAP_IRQCHIP and a vGIC", bool(irqchip), any(kind in found for kind in (V2, V3, V5)))


@clause("dev.new-types", arch="arm64", info=True)
def new_types(context: Context) -> None:
    """Device types from 17 on: whether one answers.

    Source: include/uapi/linux/kvm.h, enum kvm_device_type, of Linux 7.2.
    """
    rules.new_types(context, _FIRST_NEW)


@clause("dev.unknown-flags-ignored", arch="arm64", needs=(_HAS_VFIO,), info=True)
def unknown_flags(context: Context) -> None:
    """KVM_CREATE_DEVICE does not look at flags other than the test flag.

    Nothing promises it; recorded so that a change is noticed.

    Source: virt/kvm/kvm_main.c, kvm_ioctl_create_device.
    """
    rules.unknown_flags(context)


@clause("dev.vfio-singleton", arch="arm64", needs=(_HAS_VFIO,))
def vfio_singleton(context: Context) -> None:
    """A VM has one VFIO device: a second is EBUSY, until the first one's descriptor is closed; other VMs have theirs.

    The documentation of KVM_CREATE_DEVICE lists EEXIST for it.

    Source: virt/kvm/vfio.c, kvm_vfio_create, kvm_vfio_release; Documentation/virt/kvm/api.rst 4.79.
    """
    rules.vfio_singleton(context)


@clause("dev.vfio-attrs", arch="arm64", needs=(_HAS_VFIO,))
def vfio_attributes(context: Context) -> None:
    """The VFIO device has the attributes ADD and DEL of one group, and an errno for each way to misuse them.

    Source: virt/kvm/vfio.c, kvm_vfio_set_attr, kvm_vfio_has_attr; virt/kvm/kvm_main.c, kvm_device_ioctl_attr;
    Documentation/virt/kvm/devices/vfio.rst.
    """
    rules.vfio_attributes(context)


@clause("dev.vfio-files", arch="arm64", needs=(_HAS_VFIO, Need("a VFIO group", _has_group)))
def vfio_files(context: Context) -> None:
    """A VFIO group is added once (again: EEXIST) and removed once (again: ENOENT), and goes with the device.

    Source: virt/kvm/vfio.c, kvm_vfio_file_add, kvm_vfio_file_del, kvm_vfio_release.
    """
    rules.vfio_files(context, vfio_groups())
