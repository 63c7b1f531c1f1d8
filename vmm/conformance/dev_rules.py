# SPDX-License-Identifier: Apache-2.0
"""What KVM_CREATE_DEVICE and the VFIO device promise on every architecture."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import Skipped, equal, judged, refused, succeeds
from vmm.kvm.device import DEVICE_TYPES, VFIO_FOLDER, Device
from vmm.kvm.handle import Handle
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vm import VirtualMachine

__all__ = [
    "SENTINEL",
    "add",
    "answering",
    "create",
    "new_types",
    "open_group",
    "pointer",
    "remove",
    "test_flag",
    "unknown_flags",
    "vfio_attributes",
    "vfio_files",
    "vfio_singleton",
]

SENTINEL = 77
_KINDS = (*range(256), 1 << 16, 1 << 31, (1 << 32) - 1)
# The proposed KVM_DEV_TYPE_VIRTIO: its only attribute.
_PROPOSED_GROUP = _PROPOSED_ATTRIBUTE = 1
# A group and an attribute that no device has.
_UNKNOWN = 1 << 30


def create(vm: VirtualMachine, kind: int, flags: int) -> int:
    """KVM_CREATE_DEVICE; return the fd field, which held SENTINEL before."""
    value = ffi.new("struct kvm_create_device *", {"type": kind, "flags": flags, "fd": SENTINEL})
    vm.ioctl(lib.KVM_CREATE_DEVICE, value)
    return int(value.fd)


def answering(vm: VirtualMachine) -> list[int]:
    """Return the device types that KVM has; any refusal but ENODEV is a violation."""
    found = []
    for kind in _KINDS:
        try:
            fd = create(vm, kind, lib.KVM_CREATE_DEVICE_TEST)
        except KvmError as error:
            equal(f"the refusal of device type {kind}", error.errno_name, "ENODEV")
        else:
            equal(f"the fd field after a test of device type {kind}", fd, SENTINEL)
            found.append(kind)
    return found


def test_flag(context: Context, expected: Sequence[int]) -> None:
    """The test flag tells which device types there are: of those that have a name, ``expected``."""
    vm = context.vm()
    before = len(os.listdir("/proc/self/fd"))
    named = [kind for kind in answering(vm) if kind in DEVICE_TYPES]
    equal("descriptors opened by the tests", len(os.listdir("/proc/self/fd")) - before, 0)
    # A number that was free when another architecture's name got it is not VFIO, whatever it answers.
    equal("device types", [f"{kind} ({DEVICE_TYPES[kind]})" for kind in named],
          [f"{kind} ({DEVICE_TYPES[kind]})" for kind in expected])  # fmt: skip
    refused("type 4096 without the flag", errno.ENODEV, create, vm, 4096, 0)
    if not context.kvm.check_extension(lib.KVM_CAP_DEVICE_CTRL):
        context.note("KVM_CAP_DEVICE_CTRL is 0, although KVM_CREATE_DEVICE works")


def new_types(context: Context, first: int) -> None:
    """Record the device types from ``first`` on that answer."""
    vm = context.vm()
    found = [kind for kind in answering(vm) if kind >= first]
    context.note(f"device types from {first} on: {', '.join(map(str, found)) or 'none'}")
    for kind in found:
        try:
            device = vm.create_device(kind)
            device.has_attribute(_PROPOSED_GROUP, _PROPOSED_ATTRIBUTE)
            context.note(f"type {kind} has attribute 1 of group 1, as the proposed KVM_DEV_TYPE_VIRTIO")
        except KvmError as error:
            context.note(f"type {kind}: {error}")


def unknown_flags(context: Context) -> None:
    """Record what KVM_CREATE_DEVICE says of flags other than the test flag."""
    vm = context.vm()
    for flags in (2, 0xFFFFFFFE):
        try:
            vm.create_device(lib.KVM_DEV_TYPE_VFIO, flags).close()
            context.note(f"flags {flags:#x}: created")
        except KvmError as error:
            context.note(f"flags {flags:#x}: {error}")


def vfio_singleton(context: Context) -> None:
    """A VM has one VFIO device."""
    vm = context.vm()
    first = succeeds("the first VFIO device", vm.create_device, lib.KVM_DEV_TYPE_VFIO)
    refused("the second VFIO device", errno.EBUSY, vm.create_device, lib.KVM_DEV_TYPE_VFIO)
    with judged("a test while there is one"):
        tested = create(vm, lib.KVM_DEV_TYPE_VFIO, lib.KVM_CREATE_DEVICE_TEST)
    equal("the descriptor of a test while there is one", tested, SENTINEL)
    succeeds("a VFIO device of another VM", context.vm().create_device, lib.KVM_DEV_TYPE_VFIO)
    first.close()
    succeeds("a VFIO device after the first was closed", vm.create_device, lib.KVM_DEV_TYPE_VFIO)


def pointer(fd: int) -> Any:
    """What an attribute of the VFIO device points to."""
    return ffi.new("int *", fd)


def vfio_attributes(context: Context) -> None:
    """The VFIO device has ADD and DEL of one group, and an errno for each way to misuse them."""
    device = succeeds("the VFIO device", context.vm().create_device, lib.KVM_DEV_TYPE_VFIO)
    group, adding, removing = lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_ADD, lib.KVM_DEV_VFIO_GROUP_DEL
    for attribute in (adding, removing):
        succeeds(f"HAS of attribute {attribute}", device.has_attribute, group, attribute)
        refused(f"GET of attribute {attribute}", errno.EPERM, device.get_attribute, group, attribute, pointer(-1))
    # 3 is powerpc's. The next free numbers may get a meaning; the highest ones not so soon.
    for where in ((group, 0), (group, 3), (group, _UNKNOWN), (0, adding), (_UNKNOWN, adding)):
        refused(f"HAS of group and attribute {where}", errno.ENXIO, device.has_attribute, *where)
        refused(f"SET of group and attribute {where}", errno.ENXIO, device.set_attribute, *where, pointer(-1))
    nowhere = ffi.cast("void *", 0x10)
    for name, attribute in (("ADD", adding), ("DEL", removing)):
        refused(f"{name} of a bad address", errno.EFAULT, device.set_attribute, group, attribute, nowhere)
        refused(f"{name} of descriptor -1", errno.EBADF, device.set_attribute, group, attribute, pointer(-1))
    no_vfio = context.kvm.fd
    refused("ADD of no VFIO file", errno.EINVAL, device.set_attribute, group, adding, pointer(no_vfio))
    refused("DEL of what was not added", errno.ENOENT, device.set_attribute, group, removing, pointer(no_vfio))


def open_group(context: Context, names: Sequence[str]) -> tuple[str, int]:
    """Open the first of the host's VFIO groups: its name and a descriptor. That alone does nothing to its devices."""
    name = names[0]
    try:
        fd = os.open(VFIO_FOLDER / name, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Skipped(f"{VFIO_FOLDER / name} could not be opened: {error.strerror}") from error
    return name, context.own(Handle(fd)).fd


def add(device: Device, fd: int) -> None:
    """Add a group to the VFIO device."""
    device.set_attribute(lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_ADD, pointer(fd))


def remove(device: Device, fd: int) -> None:
    """Remove a group from the VFIO device."""
    device.set_attribute(lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_DEL, pointer(fd))


def vfio_files(context: Context, names: Sequence[str]) -> None:
    """A VFIO group, the first of ``names``, is added once and removed once, and goes with the device."""
    vm = context.vm()
    _, fd = open_group(context, names)
    device = vm.create_device(lib.KVM_DEV_TYPE_VFIO)
    for _ in range(2):
        succeeds("ADD of a group", add, device, fd)
        refused("ADD of the same group", errno.EEXIST, add, device, fd)
        succeeds("DEL of the group", remove, device, fd)
        refused("DEL of the same group", errno.ENOENT, remove, device, fd)
    succeeds("ADD before the device is closed", add, device, fd)
    device.close()
    succeeds("ADD to a new device", add, vm.create_device(lib.KVM_DEV_TYPE_VFIO), fd)
