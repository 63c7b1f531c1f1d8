# SPDX-License-Identifier: Apache-2.0
"""Lies about VFIO devices, and what they change of memory types."""

from __future__ import annotations

import errno
import os

from tests.mutations.lies import Condition, Proceed, accept, after, drift, nth, once, refuse
from tests.mutations.registry import mutation
from tests.mutations.x86.lies import SLOW, timed
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer
from vmm.x86.memory_types import MemoryType

CREATE = "KVM_CREATE_DEVICE"
HAS, GET, SET = "KVM_HAS_DEVICE_ATTR", "KVM_GET_DEVICE_ATTR", "KVM_SET_DEVICE_ATTR"


_GROUP, _ADD, _DEL = lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_ADD, lib.KVM_DEV_VFIO_GROUP_DEL


def _kind(number: int, flags: int | None = None) -> Condition:
    return lambda call: bool(call.argument.type == number and flags in (None, call.argument.flags))


_VFIO = _kind(lib.KVM_DEV_TYPE_VFIO)
_VFIO_MADE = _kind(lib.KVM_DEV_TYPE_VFIO, 0)


@mutation("dev.test-flag")
def another_architectures_device_answers() -> Interposer:
    return accept(CREATE, _kind(5))


@mutation("dev.test-flag")
def the_vfio_device_does_not_answer() -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name == CREATE and call.argument.type == lib.KVM_DEV_TYPE_VFIO:
            return -errno.ENODEV
        if call.name == CREATE and call.argument.type == 1:
            return 0
        return proceed()

    return interposer


@mutation("dev.test-flag", "dev.new-types")
def an_unknown_device_type_is_einval() -> Interposer:
    return drift(CREATE, errno.EINVAL, _kind(200))


@mutation("dev.test-flag")
def a_test_sets_the_descriptor_field() -> Interposer:
    return after(CREATE, lambda call: setattr(call.argument, "fd", 5), _VFIO)


@mutation("dev.test-flag")
def a_test_opens_a_descriptor() -> Interposer:
    return after(CREATE, lambda call: os.dup(call.fd), _VFIO)


@mutation("dev.test-flag")
def a_device_of_an_unknown_type_is_created() -> Interposer:
    return accept(CREATE, _kind(4096))


@mutation("dev.new-types")
def the_proposed_device_type_answers() -> Interposer:
    return accept(CREATE, _kind(12, lib.KVM_CREATE_DEVICE_TEST))


@mutation("dev.unknown-flags-ignored")
def the_highest_flag_is_refused() -> Interposer:
    return refuse(CREATE, errno.EINVAL, lambda call: bool(call.argument.flags >> 31))


def _second(call: Call, proceed: Proceed) -> int:
    """A second VFIO device is created; it is a copy of the VM's descriptor, which closes like any other."""
    result = proceed()
    if call.name == CREATE and result == -errno.EBUSY:
        call.argument.fd = os.dup(call.fd)
        return 0
    return result


@mutation("dev.vfio-singleton")
def a_second_vfio_device_is_created() -> Interposer:
    return _second


@mutation("dev.vfio-singleton")
def a_second_vfio_device_is_eexist() -> Interposer:
    return drift(CREATE, errno.EEXIST, _VFIO_MADE)


@mutation("dev.vfio-singleton")
def a_test_says_busy_while_there_is_one() -> Interposer:
    return refuse(CREATE, errno.EBUSY, _kind(lib.KVM_DEV_TYPE_VFIO, lib.KVM_CREATE_DEVICE_TEST))


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


def _attribute(group: int, attribute: int) -> Condition:
    return lambda call: bool((call.argument.group, call.argument.attr) == (group, attribute))


def _descriptor(attribute: int, *, at: int = 0) -> Condition:
    """Met by a VFIO attribute that is set, whose address is ``at``, or to what this process has open."""

    def condition(call: Call) -> bool:
        if not _attribute(_GROUP, attribute)(call):
            return False
        if at or call.argument.addr == 0x10:
            return bool(call.argument.addr == at)
        return bool(ffi.cast("int *", call.argument.addr)[0] >= 0)

    return condition


@mutation("dev.vfio-attrs")
def the_vfio_device_cannot_remove() -> Interposer:
    return refuse(HAS, errno.ENXIO, _attribute(_GROUP, _DEL))


@mutation("dev.vfio-attrs")
def the_vfio_device_has_an_attribute_of_powerpc() -> Interposer:
    return accept(HAS, _attribute(_GROUP, 3))


@mutation("dev.vfio-attrs")
def the_vfio_device_has_another_group() -> Interposer:
    return accept(HAS, _attribute(1 << 30, _ADD))


@mutation("dev.vfio-attrs")
def an_unknown_attribute_can_be_set() -> Interposer:
    return accept(SET, _attribute(_GROUP, 1 << 30))


@mutation("dev.vfio-attrs")
def an_unknown_group_is_einval() -> Interposer:
    return drift(SET, errno.EINVAL, _attribute(0, _ADD))


@mutation("dev.vfio-attrs")
def an_attribute_can_be_read() -> Interposer:
    return accept(GET)


@mutation("dev.vfio-attrs")
def a_bad_address_of_a_descriptor_is_ignored() -> Interposer:
    return accept(SET, _descriptor(_DEL, at=0x10))


@mutation("dev.vfio-attrs")
def a_bad_address_of_a_descriptor_is_einval() -> Interposer:
    return drift(SET, errno.EINVAL, _descriptor(_ADD, at=0x10))


@mutation("dev.vfio-attrs")
def any_file_is_a_vfio_file() -> Interposer:
    return accept(SET, _descriptor(_ADD))


@mutation("dev.vfio-attrs")
def a_file_that_was_not_added_can_be_removed() -> Interposer:
    return accept(SET, _descriptor(_DEL))


@mutation("dev.vfio-attrs")
def a_descriptor_that_is_not_open_is_enoent() -> Interposer:
    def negative(call: Call) -> bool:
        known = _attribute(_GROUP, _ADD)(call) and call.argument.addr != 0x10
        return bool(known and ffi.cast("int *", call.argument.addr)[0] < 0)

    return drift(SET, errno.ENOENT, negative)


@mutation("dev.vfio-files")
def a_group_can_be_added_twice() -> Interposer:
    return accept(SET, _attribute(_GROUP, _ADD))


@mutation("dev.vfio-files")
def a_group_that_was_removed_is_busy() -> Interposer:
    return drift(SET, errno.EBUSY, _attribute(_GROUP, _DEL))


@mutation("dev.vfio-coherent")
def a_non_coherent_group_changes_nothing() -> Interposer:
    return once("KVM_SET_DEVICE_ATTR", timed("loads", 1 / SLOW, MemoryType.UC))


@mutation("dev.vfio-coherent")
def the_guest_is_uncached_without_a_group() -> Interposer:
    return timed("loads", SLOW, MemoryType.UC)
