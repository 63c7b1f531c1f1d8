# SPDX-License-Identifier: Apache-2.0
"""Memslots and devices as lies name them: conditions on the arguments of the calls that make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.mutations.lies import Condition, Proceed, nth
from vmm._kvm import ffi, lib
from vmm.kvm.ioctl import Call, Interposer

__all__ = [
    "CREATE",
    "DIRTY",
    "GET",
    "HAS",
    "REGION",
    "REGION2",
    "SET",
    "attribute",
    "flag",
    "kind",
    "lost",
    "made",
    "nowhere",
    "of_slot",
    "only",
    "removed",
]

REGION, REGION2 = "KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2"
DIRTY = "KVM_GET_DIRTY_LOG"
CREATE = "KVM_CREATE_DEVICE"
HAS, GET, SET = "KVM_HAS_DEVICE_ATTR", "KVM_GET_DEVICE_ATTR", "KVM_SET_DEVICE_ATTR"


def flag(bits: int) -> Condition:
    """Met by a slot that is set with all of these flags."""
    return lambda call: bool(call.argument.memory_size and call.argument.flags & bits == bits)


def only(flags: int) -> Condition:
    """Met by a slot that is set with these flags and no other."""
    return lambda call: bool(call.argument.memory_size and call.argument.flags == flags)


def made(test: Callable[[Any], bool], turn: int = 0) -> Condition:
    """Met by a slot that is set with arguments that pass a test, each time or the ``turn``-th."""
    which = nth(turn) if turn else lambda call: True
    return lambda call: bool(call.argument.memory_size and test(call.argument)) and which(call)


def removed(number: int, turn: int = 0) -> Condition:
    """Met by the removal of a slot, each time or the ``turn``-th."""
    which = nth(turn) if turn else lambda call: True
    return lambda call: bool(not call.argument.memory_size and call.argument.slot == number) and which(call)


def of_slot(number: int, turn: int = 0) -> Condition:
    """Met by the dirty log of a slot, each time or the ``turn``-th."""
    which = nth(turn) if turn else lambda call: True
    return lambda call: bool(call.argument.slot == number) and which(call)


def nowhere(call: Call) -> bool:
    """Met by a device's attribute whose value is at a bad address."""
    return bool(call.argument.addr == 0x10)


def lost(when: Condition) -> Interposer:
    """KVM_SET_USER_MEMORY_REGION refuses, and the slot that it was about is gone."""

    def interposer(call: Call, proceed: Proceed) -> int:
        if call.name != REGION or not when(call):
            return proceed()
        result = proceed()
        if result < 0:
            gone = ffi.new("struct kvm_userspace_memory_region *", {"slot": call.argument.slot})
            lib.vmm_ioctl(call.fd, lib.KVM_SET_USER_MEMORY_REGION, gone)
        return result

    return interposer


def kind(number: int, flags: int | None = None) -> Condition:
    """Met by the creation of a device of this type, with these flags if they are given."""
    return lambda call: bool(call.argument.type == number and flags in (None, call.argument.flags))


def attribute(group: int, number: int) -> Condition:
    """Met by a call about this attribute of a device."""
    return lambda call: bool((call.argument.group, call.argument.attr) == (group, number))
