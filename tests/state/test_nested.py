# SPDX-License-Identifier: Apache-2.0
"""A guest that is a hypervisor is refused by name: its nested state is not in what is saved."""

from __future__ import annotations

import struct

import pytest

from tests.state.state_samples import x86_parts
from vmm.state.errors import StateRefused
from vmm.state.value import Part
from vmm.state.x86.parts import check_complete

# Offsets of CR4 and EFER in struct kvm_sregs2, and the bits of a hypervisor.
CR4, EFER = 248, 264
VMXE, SVME = 1 << 13, 1 << 12


def with_control(offset: int, value: int) -> dict[str, Part]:
    """A vCPU's parts with one control register set, and all others 0."""
    sregs = bytearray(320)
    struct.pack_into("<Q", sregs, offset, value)
    return x86_parts() | {"SREGS": bytes(sregs)}


@pytest.mark.parametrize(("offset", "bit"), [(CR4, VMXE), (EFER, SVME)], ids=["CR4.VMXE", "EFER.SVME"])
def test_a_vcpu_that_virtualizes_is_refused_by_the_bit_that_says_so(offset: int, bit: int) -> None:
    with pytest.raises(StateRefused, match=r"CR4\.VMXE or EFER\.SVME set: nested state cannot be saved"):
        check_complete(with_control(offset, bit))


@pytest.mark.parametrize(("offset", "bit"), [(CR4, VMXE), (EFER, SVME)], ids=["CR4", "EFER"])
def test_any_other_bit_of_the_same_register_is_not_refused(offset: int, bit: int) -> None:
    check_complete(with_control(offset, 0xFFFFFFFF & ~bit))
