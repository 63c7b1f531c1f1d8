# SPDX-License-Identifier: Apache-2.0
"""Lies about the lists by which KVM says what it has."""

from __future__ import annotations

import errno
from functools import partial

from tests.mutations.lies import Proceed, accept, after, answer, drift, refuse
from tests.mutations.registry import lies
from vmm._kvm import ffi
from vmm.kvm.ioctl import Call, Interposer

_MSRS, _FEATURES = "KVM_GET_MSR_INDEX_LIST", "KVM_GET_MSR_FEATURE_INDEX_LIST"
_SUPPORTED, _EMULATED, _CHOSEN = "KVM_GET_SUPPORTED_CPUID", "KVM_GET_EMULATED_CPUID", "KVM_GET_CPUID2"
_REGISTERS = "KVM_GET_REG_LIST"


def _count(call: Call, field: str) -> int:
    return int(getattr(call.argument, field))


def _more(field: str, call: Call) -> None:
    setattr(call.argument, field, _count(call, field) + 1)


def _on_refusal(name: str, field: str) -> Interposer:
    """A refusal tells another number than it has to."""

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == name and result < 0:
            _more(field, call)
        return result

    return interposer


def _beyond(items: str, field: str, call: Call) -> None:
    """Write an item more than there are."""
    array = getattr(call.argument, items)
    size = ffi.sizeof(ffi.typeof(array).item)
    ffi.buffer(array, size * (_count(call, field) + 1))[size * _count(call, field)] = b"\x11"


def _writes_on_refusal(name: str, items: str) -> Interposer:
    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if call.name == name and result < 0:
            ffi.buffer(getattr(call.argument, items), 1)[0] = b"\x11"
        return result

    return interposer


def _twice(items: str, call: Call) -> None:
    array = getattr(call.argument, items)
    size = ffi.sizeof(ffi.typeof(array).item)
    data = ffi.buffer(array, 2 * size)
    data[size:] = bytes(data[:size])


def _list_lies(clause: str, name: str, field: str, items: str) -> None:
    lies(
        clause,
        too_little_room_is_enough=lambda: accept(name),
        too_little_room_is_einval=lambda: drift(name, errno.EINVAL),
        a_refusal_tells_another_number=lambda: _on_refusal(name, field),
        a_refusal_writes_an_item=lambda: _writes_on_refusal(name, items),
        more_is_written_than_there_is=lambda: after(name, partial(_beyond, items, field)),
        an_item_is_there_twice=lambda: after(name, partial(_twice, items)),
    )
    if name != _EMULATED:  # which takes none that is exactly enough
        lies(clause, exactly_enough_is_refused=lambda: _exact_refused(name, field))


def _exact_refused(name: str, field: str) -> Interposer:
    """What is exactly enough, by the number that the last success told, is too little."""
    told = -1

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal told
        given = _count(call, field) if call.name == name else 0
        result = proceed()
        if call.name != name or result < 0:
            return result
        if given == _count(call, field) or given == told:
            return -errno.E2BIG
        told = _count(call, field)
        return result

    return interposer


_list_lies("world.msrs-list", _MSRS, "nmsrs", "indices")
_list_lies("world.feature-msrs-list", _FEATURES, "nmsrs", "indices")
_list_lies("world.cpuid-list", _SUPPORTED, "nent", "entries")
_list_lies("world.emulated-cpuid-list", _EMULATED, "nent", "entries")
_list_lies("world.vcpu-cpuid-list", _CHOSEN, "nent", "entries")
lies("world.one-regs-list", the_call_is_missing=lambda: refuse(_REGISTERS, errno.EINVAL))


def _padded(call: Call) -> None:
    call.argument.entries[0].padding[0] = 1


lies("world.cpuid-list", padding_is_not_zero=lambda: after(_SUPPORTED, _padded))
lies("world.vcpu-cpuid-list", padding_is_not_zero=lambda: after(_CHOSEN, _padded))


def _other_feature(call: Call) -> None:
    """Name another MSR instead of the microcode's revision."""
    for number in range(_count(call, "nmsrs")):
        if call.argument.indices[number] == 0x8B:
            call.argument.indices[number] = 0x4F00_0000


lies(
    "world.feature-msrs-list",
    the_microcode_revision_is_not_listed=lambda: after(_FEATURES, _other_feature),
    a_listed_one_has_no_value=lambda: answer("KVM_GET_MSRS", 0),
)
