# SPDX-License-Identifier: Apache-2.0
"""Lies about the device types that there are, and the VFIO device."""

from __future__ import annotations

import errno
import os

from tests.mutations.lies import Condition, Proceed, accept, after, drift, nth, refuse
from tests.mutations.registry import lies, mutation
from tests.mutations.slots import CREATE, GET, HAS, SET, attribute, kind, nowhere
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer

_TEST = lib.KVM_CREATE_DEVICE_TEST
_GROUP, _ADD, _DEL = lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_ADD, lib.KVM_DEV_VFIO_GROUP_DEL
_VFIO, _VFIO_MADE = kind(lib.KVM_DEV_TYPE_VFIO), kind(lib.KVM_DEV_TYPE_VFIO, 0)

lies(
    "dev.test-flag",
    another_architectures_device_answers=lambda: accept(CREATE, kind(9)),
    the_vfio_device_does_not_answer=lambda: refuse(CREATE, errno.ENODEV, _VFIO),
    there_is_a_gicv3_without_an_its=lambda: refuse(CREATE, errno.ENODEV, kind(8)),
    there_is_a_vgic_and_no_irqchip=lambda: _no_irqchip,
    a_test_sets_the_descriptor_field=lambda: after(CREATE, lambda call: setattr(call.argument, "fd", 5), _VFIO),
    a_test_opens_a_descriptor=lambda: after(CREATE, lambda call: os.dup(call.fd), _VFIO),
    a_device_of_an_unknown_type_is_created=lambda: accept(CREATE, kind(4096)),
)


def _no_irqchip(call: Call, proceed: Proceed) -> int:
    asked = call.name == "KVM_CHECK_EXTENSION" and call.argument == lib.KVM_CAP_IRQCHIP
    return 0 if asked else proceed()


lies(
    "dev.test-flag",
    "dev.new-types",
    an_unknown_device_type_is_einval=lambda: drift(CREATE, errno.EINVAL, kind(200)),
)

lies("dev.new-types", a_new_device_type_answers=lambda: accept(CREATE, kind(20, _TEST)))

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
    a_test_says_busy_while_there_is_one=lambda: refuse(CREATE, errno.EBUSY, kind(lib.KVM_DEV_TYPE_VFIO, _TEST)),
    a_closed_vfio_device_is_still_there=lambda: refuse(CREATE, errno.EBUSY, _both_turns(4)),
)


def _both_turns(turn: int) -> Condition:
    which = nth(turn)
    return lambda call: _VFIO_MADE(call) and which(call)


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


def _given(number: int) -> Condition:
    """Met by a VFIO attribute with a descriptor that is this process's."""

    def condition(call: Call) -> bool:
        if not attribute(_GROUP, number)(call) or nowhere(call):
            return False
        return bool(ffi.cast("int *", call.argument.addr)[0] >= 0)

    return condition


def _negative(call: Call) -> bool:
    if not attribute(_GROUP, _ADD)(call) or nowhere(call):
        return False
    return bool(ffi.cast("int *", call.argument.addr)[0] < 0)


lies(
    "dev.vfio-attrs",
    the_vfio_device_cannot_remove=lambda: refuse(HAS, errno.ENXIO, attribute(_GROUP, _DEL)),
    the_vfio_device_has_an_attribute_of_powerpc=lambda: accept(HAS, attribute(_GROUP, 3)),
    the_vfio_device_has_another_group=lambda: accept(HAS, attribute(1 << 30, _ADD)),
    an_unknown_attribute_can_be_set=lambda: accept(SET, attribute(_GROUP, 1 << 30)),
    an_unknown_group_is_einval=lambda: drift(SET, errno.EINVAL, attribute(0, _ADD)),
    an_attribute_can_be_read=lambda: accept(GET),
    a_bad_address_of_a_descriptor_is_ignored=lambda: accept(
        SET, lambda call: attribute(_GROUP, _DEL)(call) and nowhere(call)
    ),
    a_bad_address_of_a_descriptor_is_einval=lambda: drift(
        SET, errno.EINVAL, lambda call: attribute(_GROUP, _ADD)(call) and nowhere(call)
    ),
    a_descriptor_that_is_not_open_is_enoent=lambda: drift(SET, errno.ENOENT, _negative),
    any_file_is_a_vfio_file=lambda: accept(SET, _given(_ADD)),
    a_file_that_was_not_added_can_be_removed=lambda: accept(SET, _given(_DEL)),
)

lies(
    "dev.vfio-files",
    a_group_can_be_added_twice=lambda: accept(SET, attribute(_GROUP, _ADD)),
    a_group_that_was_removed_is_busy=lambda: drift(SET, errno.EBUSY, attribute(_GROUP, _DEL)),
)
