# SPDX-License-Identifier: Apache-2.0
"""Lies about VFIO devices, and what they change of memory types."""

from __future__ import annotations

import errno
import os

from tests.mutations.lies import Condition, Proceed, accept, after, drift, nth, once, refuse
from tests.mutations.registry import lies, mutation
from tests.mutations.slots import CREATE, GET, HAS, SET, attribute, kind
from tests.mutations.x86.lies import SLOW, timed
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.memory_types import MemoryType

_GROUP, _ADD, _DEL = lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_ADD, lib.KVM_DEV_VFIO_GROUP_DEL


_VFIO = kind(lib.KVM_DEV_TYPE_VFIO)
_VFIO_MADE = kind(lib.KVM_DEV_TYPE_VFIO, 0)


lies("dev.test-flag", another_architectures_device_answers=lambda: accept(CREATE, kind(5)))


@mutation("dev.test-flag")
def the_vfio_device_does_not_answer() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name == CREATE and call.argument.type == lib.KVM_DEV_TYPE_VFIO:
            return -errno.ENODEV
        if call.name == CREATE and call.argument.type == 1:
            return 0
        return proceed()

    return interposer


lies(
    "dev.test-flag",
    "dev.new-types",
    an_unknown_device_type_is_einval=lambda: drift(CREATE, errno.EINVAL, kind(200)),
)

lies(
    "dev.test-flag",
    a_test_sets_the_descriptor_field=lambda: after(CREATE, lambda call: setattr(call.argument, "fd", 5), _VFIO),
    a_test_opens_a_descriptor=lambda: after(CREATE, lambda call: os.dup(call.fd), _VFIO),
    a_device_of_an_unknown_type_is_created=lambda: accept(CREATE, kind(4096)),
)

lies("dev.new-types", the_proposed_device_type_answers=lambda: accept(CREATE, kind(12, lib.KVM_CREATE_DEVICE_TEST)))

lies(
    "dev.unknown-flags-ignored",
    the_highest_flag_is_refused=lambda: refuse(CREATE, errno.EINVAL, lambda call: bool(call.argument.flags >> 31)),
)


def _second(call: Call, proceed: Proceed) -> int:
    """A second VFIO device is created; it is a copy of the VM's descriptor, which closes like any other."""
    result = proceed()
    if call.name == CREATE and result == -errno.EBUSY:
        call.argument.fd = os.dup(call.fd)
        return 0
    return result


lies(
    "dev.vfio-singleton",
    a_second_vfio_device_is_created=lambda: _second,
    a_second_vfio_device_is_eexist=lambda: drift(CREATE, errno.EEXIST, _VFIO_MADE),
    a_test_says_busy_while_there_is_one=lambda: refuse(
        CREATE, errno.EBUSY, kind(lib.KVM_DEV_TYPE_VFIO, lib.KVM_CREATE_DEVICE_TEST)
    ),
)


@mutation("dev.vfio-singleton")
def only_one_vm_may_have_a_vfio_device() -> Interposer:
    vm = 0

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal vm
        if call.name == CREATE and vm not in (0, call.fd):
            return -errno.EBUSY
        vm = call.fd if call.name == CREATE else vm
        return proceed()

    return interposer


@mutation("dev.vfio-singleton")
def a_closed_vfio_device_is_still_there() -> Interposer:
    fourth = nth(4)
    return refuse(CREATE, errno.EBUSY, lambda call: _VFIO_MADE(call) and fourth(call))


def _descriptor(number: int, *, at: int = 0) -> Condition:
    """Met by a VFIO attribute that is set, whose address is ``at``, or to what this process has open."""

    def condition(call: Call) -> bool:
        if not attribute(_GROUP, number)(call):
            return False
        if at or call.argument.addr == 0x10:
            return bool(call.argument.addr == at)
        return bool(ffi.cast("int *", call.argument.addr)[0] >= 0)

    return condition


lies(
    "dev.vfio-attrs",
    the_vfio_device_cannot_remove=lambda: refuse(HAS, errno.ENXIO, attribute(_GROUP, _DEL)),
    the_vfio_device_has_an_attribute_of_powerpc=lambda: accept(HAS, attribute(_GROUP, 3)),
    the_vfio_device_has_another_group=lambda: accept(HAS, attribute(1 << 30, _ADD)),
    an_unknown_attribute_can_be_set=lambda: accept(SET, attribute(_GROUP, 1 << 30)),
    an_unknown_group_is_einval=lambda: drift(SET, errno.EINVAL, attribute(0, _ADD)),
    an_attribute_can_be_read=lambda: accept(GET),
    a_bad_address_of_a_descriptor_is_ignored=lambda: accept(SET, _descriptor(_DEL, at=0x10)),
    a_bad_address_of_a_descriptor_is_einval=lambda: drift(SET, errno.EINVAL, _descriptor(_ADD, at=0x10)),
    any_file_is_a_vfio_file=lambda: accept(SET, _descriptor(_ADD)),
    a_file_that_was_not_added_can_be_removed=lambda: accept(SET, _descriptor(_DEL)),
)


@mutation("dev.vfio-attrs")
def a_descriptor_that_is_not_open_is_enoent() -> Interposer:
    def negative(call: Call) -> bool:
        known = attribute(_GROUP, _ADD)(call) and call.argument.addr != 0x10
        return bool(known and ffi.cast("int *", call.argument.addr)[0] < 0)

    return drift(SET, errno.ENOENT, negative)


lies(
    "dev.vfio-files",
    a_group_can_be_added_twice=lambda: accept(SET, attribute(_GROUP, _ADD)),
    a_group_that_was_removed_is_busy=lambda: drift(SET, errno.EBUSY, attribute(_GROUP, _DEL)),
)

lies(
    "dev.vfio-coherent",
    a_non_coherent_group_changes_nothing=lambda: once("KVM_SET_DEVICE_ATTR", timed("loads", 1 / SLOW, MemoryType.UC)),
    the_guest_is_uncached_without_a_group=lambda: timed("loads", SLOW, MemoryType.UC),
)
