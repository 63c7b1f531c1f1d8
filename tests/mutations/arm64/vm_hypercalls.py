# SPDX-License-Identifier: Apache-2.0
"""Lies about hypercalls and their bitmaps."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import SET, flip, forget, guest_left, of, reading, values
from tests.mutations.lies import given, nth, once, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import firmware
from vmm.kvm.ioctl import Interposer

_STANDARD, _HYPERVISOR, _VENDOR = (firmware(number, bitmap=True) for number in range(3))
_NOT_SUPPORTED = (1 << 64) - 1
_TRNG_VERSION, _UID, _FEATURES, _PTP = 0x84000050, 0x8600FF01, 0x86000000, 0x86000001
_VERSION, _ARCH_FEATURES, _PSCI_FEATURES = 0x80000000, 0x80000001, 0x8400000A


def _answers(new: int, *numbers: int, word: int = 0) -> Interposer:
    """A call answers something else."""
    return guest_left("hvc", values(word, lambda old: new), when=given(*numbers))


lies(
    "vm.hypercalls-offered",
    the_standard_bitmap_is_0=lambda: reading(flip(0), _STANDARD),
    the_hypervisors_bitmap_is_0=lambda: reading(flip(0), _HYPERVISOR),
    the_vendors_bitmap_lacks_its_second_bit=lambda: reading(flip(0, 2), _VENDOR),
    there_are_no_random_numbers=lambda: _answers(_NOT_SUPPORTED, _TRNG_VERSION),
    there_is_no_stolen_time=lambda: _answers(_NOT_SUPPORTED, _ARCH_FEATURES),
    the_uuid_is_anothers=lambda: _answers(0, _UID, word=3),
    the_guest_is_told_other_features=lambda: _answers(1 << 20, _FEATURES),
)

lies(
    "vm.hypercalls-taken-back",
    a_bitmap_cannot_be_cleared=lambda: refuse(SET, errno.EINVAL, of(_HYPERVISOR)),
    clearing_a_bitmap_does_nothing=lambda: forget(_VENDOR),
    a_bitmap_is_the_vcpus_own=lambda: reading(flip(0), _STANDARD),
    random_numbers_are_still_there=lambda: _answers(0x10000, _TRNG_VERSION),
    stolen_time_is_still_there=lambda: _answers(0, _ARCH_FEATURES),
    the_features_are_still_told=lambda: _answers(3, _FEATURES),
    the_clock_can_still_be_asked=lambda: _answers(0, _PTP),
    another_vm_has_lost_its_calls=lambda: once("KVM_CREATE_VM", _answers(_NOT_SUPPORTED, _UID), when=nth(2)),
)

lies(
    "vm.smccc-discovery",
    psci_does_not_know_of_smccc=lambda: _answers(_NOT_SUPPORTED, _PSCI_FEATURES),
    smccc_is_1_0=lambda: _answers(0x10000, _VERSION),
    the_guest_is_told_of_another_mitigation=lambda: _answers(7, _ARCH_FEATURES, 0x80008000),
    the_vmm_is_told_of_another_mitigation=lambda: reading(flip(0, 3), firmware(3)),
    an_unknown_mitigation_is_available=lambda: _answers(0, _ARCH_FEATURES, 0x80007FFE),
)
