# SPDX-License-Identifier: Apache-2.0
"""Events that KVM_GET_VCPU_EVENTS of arm64 never tells are refused by name, before KVM is asked anything."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.state.state_samples import arm64_state
from vmm.arm64.registers import PSTATE, SYSTEM
from vmm.state.architecture import of
from vmm.state.errors import StateRefused, StreamError
from vmm.state.validate import validate
from vmm.state.value import Part, VmState

STATE = arm64_state(1, 2)
CHECK = of("arm64").check_complete
EL1H = 0x3C5
MASKS = 1 << 8


def with_events(at: int, data: bytes, state: VmState = STATE) -> VmState:
    """The state with some bytes of its events replaced."""
    old = state.vcpus[0].parts["EVENTS"]
    assert isinstance(old, bytes)
    return with_part("EVENTS", old[:at] + data + old[at + len(data) :], state)


def with_part(name: str, part: Part, state: VmState = STATE) -> VmState:
    return replace(state, vcpus=(state.vcpus[0].with_part(name, part),))


def with_register(name: str, register: int, value: int, state: VmState = STATE) -> VmState:
    """The state with one more register, which its list names too."""
    vcpu = state.vcpus[0]
    part, listed = vcpu.parts[name], vcpu.parts["LIST"]
    assert not isinstance(part, bytes) and isinstance(listed, bytes)
    known = b"" if register in part else struct.pack("<Q", register)
    changed = with_part(name, {**part, register: struct.pack("<Q", value)}, state)
    return with_part("LIST", listed + known, changed)


def refused(state: VmState, words: str) -> None:
    """As a stream, and as what is to be restored."""
    with pytest.raises(StreamError, match=f"vCPU 0, EVENTS: .*{words}"):
        validate(state)
    with pytest.raises(StateRefused, match=f"EVENTS: .*{words}"):
        CHECK(state.vcpus[0].parts)


def accepted(state: VmState) -> None:
    validate(state)
    CHECK(state.vcpus[0].parts)


@pytest.mark.parametrize("value", [1, 2, 0x80, 0xFF])
def test_an_external_abort_is_refused(value: int) -> None:
    refused(with_events(2, bytes([value])), "external abort .*ext_dabt_pending")


@pytest.mark.parametrize("at", [*range(3, 8), *range(16, 64)])
def test_each_reserved_byte_is_refused(at: int) -> None:
    refused(with_events(at, b"\1"), "reserved bytes are not 0")


def test_what_a_kvm_tells_is_accepted() -> None:
    accepted(STATE)
    accepted(with_events(1, b"\1"))  # the CPU has RAS, nothing is pending
    accepted(with_events(0, struct.pack("<BB6xQ", 1, 1, 0x1FFFFFF)))


def test_a_pending_serror_is_accepted_where_the_guest_masks_it() -> None:
    pending = with_events(0, b"\1")
    accepted(pending)
    accepted(with_register("CORE", PSTATE, EL1H, pending))
    accepted(with_register("SYSREGS", SYSTEM["SCTLR2_EL1"], ~4 & (1 << 64) - 1, pending))
    refused(with_register("CORE", PSTATE, EL1H & ~MASKS, pending), "SError is pending")
    refused(with_register("SYSREGS", SYSTEM["SCTLR2_EL1"], 4, pending), "SError is pending")


def test_a_guest_that_does_not_mask_serrors_is_accepted_while_none_is_pending() -> None:
    accepted(with_register("CORE", PSTATE, EL1H & ~MASKS))
