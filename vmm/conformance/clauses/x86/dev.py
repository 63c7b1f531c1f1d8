# SPDX-License-Identifier: Apache-2.0
"""In-kernel devices: which there are, and the VFIO device, through which KVM learns of non-coherent DMA."""

from __future__ import annotations

import errno
import os
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import Skipped, equal, judged, refused, succeeds
from vmm.conformance.needs import Need
from vmm.conformance.registry import clause
from vmm.conformance.x86.caching import PAT_IGNORED, CachingGuest, expect_cached, expect_uncached
from vmm.kvm.device import Device
from vmm.kvm.handle import Handle
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vm import VirtualMachine
from vmm.probe.host import Host
from vmm.x86.memory_types import DEVICE_TYPES, VFIO_FOLDER, MemoryType

_SENTINEL = 77
_KINDS = (*range(256), 1 << 16, 1 << 31, (1 << 32) - 1)
# The proposed KVM_DEV_TYPE_VIRTIO: its only attribute, and the first type that it could be.
_PROPOSED_GROUP = _PROPOSED_ATTRIBUTE = 1
_FIRST_NEW = 12
# A group and an attribute that no device has.
_UNKNOWN = 1 << 30


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


def _create(vm: VirtualMachine, kind: int, flags: int) -> int:
    """KVM_CREATE_DEVICE; return the fd field, which held a sentinel before."""
    value = ffi.new("struct kvm_create_device *", {"type": kind, "flags": flags, "fd": _SENTINEL})
    vm.ioctl(lib.KVM_CREATE_DEVICE, value)
    return int(value.fd)


def _answering(vm: VirtualMachine) -> list[int]:
    """Return the device types that KVM has; any refusal but ENODEV is a violation."""
    found = []
    for kind in _KINDS:
        try:
            fd = _create(vm, kind, lib.KVM_CREATE_DEVICE_TEST)
        except KvmError as error:
            equal(f"the refusal of device type {kind}", error.errno_name, "ENODEV")
        else:
            equal(f"the fd field after a test of device type {kind}", fd, _SENTINEL)
            found.append(kind)
    return found


@clause("dev.test-flag", arch="x86")
def test_flag(context: Context) -> None:
    """KVM_CREATE_DEVICE_TEST tells which device types there are and creates nothing; others are ENODEV.

    Of the types that Linux 7.2 names for all architectures, x86 has only VFIO. KVM_CAP_DEVICE_CTRL, which tells of
    the call, is recorded where it is 0, as on x86 in Linux 6.1.

    Source: virt/kvm/kvm_main.c, kvm_ioctl_create_device; Documentation/virt/kvm/api.rst 4.79.
    """
    vm = context.vm()
    before = len(os.listdir("/proc/self/fd"))
    named = [kind for kind in _answering(vm) if kind in DEVICE_TYPES]
    equal("descriptors opened by the tests", len(os.listdir("/proc/self/fd")) - before, 0)
    expected = [int(lib.KVM_DEV_TYPE_VFIO)] if context.host.facts.memory_types.vfio else []
    # A number that was free when another architecture's name got it is not VFIO, whatever it answers.
    equal("device types", [f"{kind} ({DEVICE_TYPES[kind]})" for kind in named],
          [f"{kind} ({DEVICE_TYPES[kind]})" for kind in expected])  # fmt: skip
    refused("type 4096 without the flag", errno.ENODEV, _create, vm, 4096, 0)
    if not context.kvm.check_extension(lib.KVM_CAP_DEVICE_CTRL):
        context.note("KVM_CAP_DEVICE_CTRL is 0, although KVM_CREATE_DEVICE works")


@clause("dev.new-types", arch="x86", info=True)
def new_types(context: Context) -> None:
    """Device types from 12 on: whether one answers, and whether it has the attribute of the proposed VIRTIO device.

    KVM_DEV_TYPE_VIRTIO, with an attribute that declares non-coherent DMA, was proposed when 12 was the next number
    and was not merged; Linux 7.2 has no such type.

    Source: include/uapi/linux/kvm.h, enum kvm_device_type.
    """
    vm = context.vm()
    found = [kind for kind in _answering(vm) if kind >= _FIRST_NEW]
    context.note(f"device types from {_FIRST_NEW} on: {', '.join(map(str, found)) or 'none'}")
    for kind in found:
        try:
            device = vm.create_device(kind)
            device.has_attribute(_PROPOSED_GROUP, _PROPOSED_ATTRIBUTE)
            context.note(f"type {kind} has attribute 1 of group 1, as the proposed KVM_DEV_TYPE_VIRTIO")
        except KvmError as error:
            context.note(f"type {kind}: {error}")


@clause("dev.unknown-flags-ignored", arch="x86", needs=(VFIO,), info=True)
def unknown_flags(context: Context) -> None:
    """KVM_CREATE_DEVICE does not look at flags other than the test flag.

    Nothing promises it; recorded so that a change is noticed.

    Source: virt/kvm/kvm_main.c, kvm_ioctl_create_device.
    """
    vm = context.vm()
    for flags in (2, 0xFFFFFFFE):
        try:
            vm.create_device(lib.KVM_DEV_TYPE_VFIO, flags).close()
            context.note(f"flags {flags:#x}: created")
        except KvmError as error:
            context.note(f"flags {flags:#x}: {error}")


@clause("dev.vfio-singleton", arch="x86", needs=(VFIO,))
def vfio_singleton(context: Context) -> None:
    """A VM has one VFIO device: a second is EBUSY, until the first one's descriptor is closed; other VMs have theirs.

    The documentation of KVM_CREATE_DEVICE lists EEXIST for it.

    Source: virt/kvm/vfio.c, kvm_vfio_create, kvm_vfio_release; Documentation/virt/kvm/api.rst 4.79.
    """
    vm = context.vm()
    first = succeeds("the first VFIO device", vm.create_device, lib.KVM_DEV_TYPE_VFIO)
    refused("the second VFIO device", errno.EBUSY, vm.create_device, lib.KVM_DEV_TYPE_VFIO)
    with judged("a test while there is one"):
        tested = _create(vm, lib.KVM_DEV_TYPE_VFIO, lib.KVM_CREATE_DEVICE_TEST)
    equal("the descriptor of a test while there is one", tested, _SENTINEL)
    succeeds("a VFIO device of another VM", context.vm().create_device, lib.KVM_DEV_TYPE_VFIO)
    first.close()
    succeeds("a VFIO device after the first was closed", vm.create_device, lib.KVM_DEV_TYPE_VFIO)


def _pointer(fd: int) -> Any:
    return ffi.new("int *", fd)


@clause("dev.vfio-attrs", arch="x86", needs=(VFIO,))
def vfio_attributes(context: Context) -> None:
    """The VFIO device has the attributes ADD and DEL of one group, and an errno for each way to misuse them.

    Source: virt/kvm/vfio.c, kvm_vfio_set_attr, kvm_vfio_has_attr; virt/kvm/kvm_main.c, kvm_device_ioctl_attr;
    Documentation/virt/kvm/devices/vfio.rst.
    """
    device = succeeds("the VFIO device", context.vm().create_device, lib.KVM_DEV_TYPE_VFIO)
    group, add, remove = lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_ADD, lib.KVM_DEV_VFIO_GROUP_DEL
    for attribute in (add, remove):
        succeeds(f"HAS of attribute {attribute}", device.has_attribute, group, attribute)
        refused(f"GET of attribute {attribute}", errno.EPERM, device.get_attribute, group, attribute, _pointer(-1))
    # 3 is powerpc's. The next free numbers may get a meaning; the highest ones not so soon.
    for where in ((group, 0), (group, 3), (group, _UNKNOWN), (0, add), (_UNKNOWN, add)):
        refused(f"HAS of group and attribute {where}", errno.ENXIO, device.has_attribute, *where)
        refused(f"SET of group and attribute {where}", errno.ENXIO, device.set_attribute, *where, _pointer(-1))
    nowhere = ffi.cast("void *", 0x10)
    for name, attribute in (("ADD", add), ("DEL", remove)):
        refused(f"{name} of a bad address", errno.EFAULT, device.set_attribute, group, attribute, nowhere)
        refused(f"{name} of descriptor -1", errno.EBADF, device.set_attribute, group, attribute, _pointer(-1))
    no_vfio = context.kvm.fd
    refused("ADD of no VFIO file", errno.EINVAL, device.set_attribute, group, add, _pointer(no_vfio))
    refused("DEL of what was not added", errno.ENOENT, device.set_attribute, group, remove, _pointer(no_vfio))


def _open_group(context: Context) -> tuple[str, int]:
    """Open the host's first VFIO group: its name and a descriptor. That alone does nothing to its devices."""
    name = context.host.facts.memory_types.groups[0]
    try:
        fd = os.open(VFIO_FOLDER / name, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Skipped(f"{VFIO_FOLDER / name} could not be opened: {error.strerror}") from error
    return name, context.own(Handle(fd)).fd


def _add(device: Device, fd: int) -> None:
    device.set_attribute(lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_ADD, _pointer(fd))


def _remove(device: Device, fd: int) -> None:
    device.set_attribute(lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_DEL, _pointer(fd))


@clause("dev.vfio-files", arch="x86", needs=(VFIO, GROUP))
def vfio_files(context: Context) -> None:
    """A VFIO group is added once (again: EEXIST) and removed once (again: ENOENT), and goes with the device.

    Source: virt/kvm/vfio.c, kvm_vfio_file_add, kvm_vfio_file_del, kvm_vfio_release.
    """
    vm = context.vm()
    _, fd = _open_group(context)
    device = vm.create_device(lib.KVM_DEV_TYPE_VFIO)
    for _ in range(2):
        succeeds("ADD of a group", _add, device, fd)
        refused("ADD of the same group", errno.EEXIST, _add, device, fd)
        succeeds("DEL of the group", _remove, device, fd)
        refused("DEL of the same group", errno.ENOENT, _remove, device, fd)
    succeeds("ADD before the device is closed", _add, device, fd)
    device.close()
    succeeds("ADD to a new device", _add, vm.create_device(lib.KVM_DEV_TYPE_VFIO), fd)


@clause("dev.vfio-coherent", arch="x86", needs=(VFIO, GROUP, SECOND_LEVEL, PAT_IGNORED), timeout=30.0)
def vfio_coherent(context: Context) -> None:
    """A VFIO group without enforced coherency has KVM honour the guest's PAT for as long as it is added.

    A group without an IOMMU is always such a one; of another it is recorded which it is. Once it is removed, the
    guest's memory is write-back again.

    Source: virt/kvm/vfio.c, kvm_vfio_update_coherency; arch/x86/kvm/x86.c,
    kvm_noncoherent_dma_assignment_start_or_stop.
    """
    guest = CachingGuest(context)
    name, fd = _open_group(context)
    device = guest.guest.vm.create_device(lib.KVM_DEV_TYPE_VFIO)
    expect_cached(context, guest.load_ratios()[MemoryType.UC])
    succeeds("ADD of a group", _add, device, fd)
    added = guest.load_ratios()[MemoryType.UC]
    if name.startswith("noiommu-"):
        expect_uncached(context, added)
    else:
        context.note(f"with group {name}: {added}")
    succeeds("DEL of the group", _remove, device, fd)
    expect_cached(context, guest.load_ratios()[MemoryType.UC])
