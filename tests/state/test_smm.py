# SPDX-License-Identifier: Apache-2.0
"""A vCPU in system management mode is not saved without the memory that it sees there."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from tests.state.state_samples import x86_parts
from vmm._kvm import ffi, lib
from vmm.arch import ARCHITECTURE, module
from vmm.kvm.ioctl import KvmError
from vmm.kvm.system import Kvm
from vmm.state.architecture import here
from vmm.state.errors import StateRefused
from vmm.state.vcpu import capture_vcpu

pytestmark = pytest.mark.skipif(ARCHITECTURE != "x86", reason="SMM is x86")

VALID_SMM = 8


@pytest.mark.parametrize(
    ("field", "flags", "refused"),
    [
        ("smm", VALID_SMM, True),
        ("pending", VALID_SMM, True),
        ("latched_init", VALID_SMM, False),
        # Then KVM does not look at the field.
        ("smm", 0, False),
        ("pending", 0, False),
    ],
)
def test_a_state_in_smm_or_about_to_be_is_refused_by_name(field: str, flags: int, refused: bool) -> None:
    events = ffi.new("struct kvm_vcpu_events *", {"flags": flags, "smi": {field: 1}})
    parts = {**x86_parts(), "SREGS": bytes(320), "EVENTS": bytes(ffi.buffer(events))}
    with pytest.raises(StateRefused, match="system management mode") if refused else nullcontext():
        here().check_complete(parts)


@pytest.mark.kvm
@pytest.mark.parametrize("field", ["smm", "pending"])
def test_a_vcpu_in_smm_or_about_to_be_is_not_captured(kvm: Kvm, field: str) -> None:
    with module("guest").Guest(kvm, "hello") as guest:
        capture_vcpu(guest.vcpu)
        events = guest.vcpu.get_events()
        events.flags = lib.KVM_VCPUEVENT_VALID_SMM
        setattr(events.smi, field, 1)
        try:
            guest.vcpu.set_events(events)
        except KvmError as error:
            pytest.skip(f"this KVM has no SMM ({error.errno_name})")
        with pytest.raises(StateRefused, match="system management mode"):
            capture_vcpu(guest.vcpu)
        setattr(events.smi, field, 0)
        guest.vcpu.set_events(events)
        capture_vcpu(guest.vcpu)
