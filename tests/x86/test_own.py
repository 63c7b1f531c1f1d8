# SPDX-License-Identifier: Apache-2.0
"""This process's own registers, held still by native code."""

from __future__ import annotations

import platform

import pytest

if platform.machine() != "x86_64":
    pytest.skip(f"x86 code; this is {platform.machine()}", allow_module_level=True)

from vmm._kvm import lib
from vmm.conformance.x86.own import own_registers
from vmm.kvm.bits import bits
from vmm.x86.own import own_features, own_xcr0, yield_with_registers
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea


def test_what_the_registers_are_given_is_in_them_after_system_calls() -> None:
    given = own_registers(1)
    assert given.same_state(yield_with_registers(given, 3)) == []


def test_initial_registers_stay_initial() -> None:
    given = XsaveArea.initial()
    assert given.same_state(yield_with_registers(given, 3)) == []


@pytest.mark.parametrize("number", list(bits(own_features())))
def test_each_component_that_this_host_has_is_really_loaded(number: int) -> None:
    given = own_registers(2)
    observed = yield_with_registers(given, 1)
    assert observed.xstate_bv >> number & 1
    assert observed.component(number)[8:16] == given.component(number)[8:16] or number == XFeature.PKRU


def test_afterwards_the_thread_has_its_own_registers_again() -> None:
    ours = yield_with_registers(XsaveArea.initial(), 1)  # what the next one finds is not what this one left
    pkru = lib.vmm_rdpkru() if own_features() >> XFeature.PKRU & 1 else 0
    yield_with_registers(own_registers(3), 1)
    assert ours.same_state(yield_with_registers(XsaveArea.initial(), 1)) == []
    assert 1.0 / 3.0 == 0.3333333333333333  # MXCSR as it was: rounding to nearest, nothing unmasked
    assert not own_features() >> XFeature.PKRU & 1 or lib.vmm_rdpkru() == pkru


def test_an_area_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="4096 bytes, not 8192"):
        yield_with_registers(XsaveArea.initial(8192), 1)


def test_the_own_components_are_among_those_of_xcr0() -> None:
    assert own_features() & ~(own_xcr0() or 3) == 0
