# SPDX-License-Identifier: Apache-2.0
"""In-kernel devices: which there are, and the VFIO device, through which KVM learns of non-coherent DMA."""

from __future__ import annotations

from vmm._kvm import lib
from vmm.conformance import dev_rules as rules
from vmm.conformance.context import Context
from vmm.conformance.expect import succeeds
from vmm.conformance.needs import Need
from vmm.conformance.registry import clause
from vmm.conformance.x86.caching import PAT_IGNORED, CachingGuest, expect_cached, expect_uncached
from vmm.kvm.device import VFIO_FOLDER
from vmm.probe.host import Host
from vmm.x86.memory_types import MemoryType

# The first type that the proposed KVM_DEV_TYPE_VIRTIO could be.
_FIRST_NEW = 12


def _has_vfio() -> Need:
    def measure(host: Host) -> tuple[bool, str]:
        return host.facts.memory_types.vfio, "KVM_CREATE_DEVICE does not have KVM_DEV_TYPE_VFIO"

    return Need("KVM's VFIO device", measure)


def _has_group() -> Need:
    def measure(host: Host) -> tuple[bool, str]:
        return bool(host.facts.memory_types.groups), f"there is no group in {VFIO_FOLDER}"

    return Need("a VFIO group", measure)


def _second_level() -> Need:
    def measure(host: Host) -> tuple[bool, str]:
        types = host.facts.memory_types
        return bool(types.two_levels), f"page tables of {host.backend}: {types.tables()}"

    return Need("second-level page tables", measure)


VFIO, GROUP, SECOND_LEVEL = _has_vfio(), _has_group(), _second_level()


@clause("dev.test-flag", arch="x86")
def test_flag(context: Context) -> None:
    """KVM_CREATE_DEVICE_TEST tells which device types there are and creates nothing; others are ENODEV.

    Of the types that Linux 7.2 names for all architectures, x86 has only VFIO. KVM_CAP_DEVICE_CTRL, which tells of
    the call, is recorded where it is 0, as on x86 in Linux 6.1.

    Source: virt/kvm/kvm_main.c, kvm_ioctl_create_device; Documentation/virt/kvm/api.rst 4.79.
    """
    rules.test_flag(context, [int(lib.KVM_DEV_TYPE_VFIO)] if context.host.facts.memory_types.vfio else [])


@clause("dev.new-types", arch="x86", info=True)
def new_types(context: Context) -> None:
    """Device types from 12 on: whether one answers, and whether it has the attribute of the proposed VIRTIO device.

    KVM_DEV_TYPE_VIRTIO, with an attribute that declares non-coherent DMA, was proposed when 12 was the next number
    and was not merged; Linux 7.2 has no such type.

    Source: include/uapi/linux/kvm.h, enum kvm_device_type.
    """
    rules.new_types(context, _FIRST_NEW)


@clause("dev.unknown-flags-ignored", arch="x86", needs=(VFIO,), info=True)
def unknown_flags(context: Context) -> None:
    """KVM_CREATE_DEVICE does not look at flags other than the test flag.

    Nothing promises it; recorded so that a change is noticed.

    Source: virt/kvm/kvm_main.c, kvm_ioctl_create_device.
    """
    rules.unknown_flags(context)


@clause("dev.vfio-singleton", arch="x86", needs=(VFIO,))
def vfio_singleton(context: Context) -> None:
    """A VM has one VFIO device: a second is EBUSY, until the first one's descriptor is closed; other VMs have theirs.

    The documentation of KVM_CREATE_DEVICE lists EEXIST for it.

    Source: virt/kvm/vfio.c, kvm_vfio_create, kvm_vfio_release; Documentation/virt/kvm/api.rst 4.79.
    """
    rules.vfio_singleton(context)


@clause("dev.vfio-attrs", arch="x86", needs=(VFIO,))
def vfio_attributes(context: Context) -> None:
    """The VFIO device has the attributes ADD and DEL of one group, and an errno for each way to misuse them.

    Source: virt/kvm/vfio.c, kvm_vfio_set_attr, kvm_vfio_has_attr; virt/kvm/kvm_main.c, kvm_device_ioctl_attr;
    Documentation/virt/kvm/devices/vfio.rst.
    """
    rules.vfio_attributes(context)


@clause("dev.vfio-files", arch="x86", needs=(VFIO, GROUP))
def vfio_files(context: Context) -> None:
    """A VFIO group is added once (again: EEXIST) and removed once (again: ENOENT), and goes with the device.

    Source: virt/kvm/vfio.c, kvm_vfio_file_add, kvm_vfio_file_del, kvm_vfio_release.
    """
    rules.vfio_files(context, context.host.facts.memory_types.groups)


@clause("dev.vfio-coherent", arch="x86", needs=(VFIO, GROUP, SECOND_LEVEL, PAT_IGNORED), timeout=30.0)
def vfio_coherent(context: Context) -> None:
    """A VFIO group without enforced coherency has KVM honour the guest's PAT for as long as it is added.

    A group without an IOMMU is always such a one; of another it is recorded which it is. Once it is removed, the
    guest's memory is write-back again.

    Source: virt/kvm/vfio.c, kvm_vfio_update_coherency; arch/x86/kvm/x86.c,
    kvm_noncoherent_dma_assignment_start_or_stop.
    """
    guest = CachingGuest(context)
    name, fd = rules.open_group(context, context.host.facts.memory_types.groups)
    device = guest.guest.vm.create_device(lib.KVM_DEV_TYPE_VFIO)
    expect_cached(context, guest.load_ratios()[MemoryType.UC])
    succeeds("ADD of a group", rules.add, device, fd)
    added = guest.load_ratios()[MemoryType.UC]
    if name.startswith("noiommu-"):
        expect_uncached(context, added)
    else:
        context.note(f"with group {name}: {added}")
    succeeds("DEL of the group", rules.remove, device, fd)
    expect_cached(context, guest.load_ratios()[MemoryType.UC])
