# SPDX-License-Identifier: Apache-2.0
"""What differs by architecture has one face: mypy holds each module below against it, on a host of either."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmm.arch import ARCHITECTURE
from vmm.compat.report import ARCHITECTURES
from vmm.guest.architecture import chains, guest_type
from vmm.guest.base import BaseGuest
from vmm.state import architecture as state

if TYPE_CHECKING:
    import vmm.arm64.chain
    import vmm.compat.arm64.dimensions
    import vmm.compat.arm64.saved
    import vmm.compat.x86.dimensions
    import vmm.compat.x86.saved
    import vmm.probe.arm64.facts
    import vmm.probe.arm64.survey
    import vmm.probe.x86.facts
    import vmm.probe.x86.survey
    import vmm.state.arm64.parts
    import vmm.state.arm64.unsettled
    import vmm.state.x86.parts
    import vmm.state.x86.unsettled
    import vmm.x86.chain
    from vmm.compat.report import Architecture
    from vmm.compat.saved import Saved
    from vmm.guest.architecture import Chains
    from vmm.probe.document import Survey
    from vmm.probe.host import Measures
    from vmm.state.meant import Unsettled

    chain_x86: Chains = vmm.x86.chain
    chain_arm64: Chains = vmm.arm64.chain
    dimensions_x86: Architecture = vmm.compat.x86.dimensions
    dimensions_arm64: Architecture = vmm.compat.arm64.dimensions
    saved_x86: Saved = vmm.compat.x86.saved
    saved_arm64: Saved = vmm.compat.arm64.saved
    facts_x86: Measures = vmm.probe.x86.facts
    facts_arm64: Measures = vmm.probe.arm64.facts
    survey_x86: Survey = vmm.probe.x86.survey
    survey_arm64: Survey = vmm.probe.arm64.survey
    state_x86: state.Architecture = vmm.state.x86.parts
    state_arm64: state.Architecture = vmm.state.arm64.parts
    unsettled_x86: Unsettled = vmm.state.x86.unsettled
    unsettled_arm64: Unsettled = vmm.state.arm64.unsettled


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_states_of_every_architecture_are_known_on_this_host(arch: str) -> None:
    assert state.of(arch).PIECES


def test_this_architecture_has_a_guest_and_a_chain() -> None:
    assert ARCHITECTURE in ARCHITECTURES
    assert issubclass(guest_type(), BaseGuest) and chains().LEVELS
