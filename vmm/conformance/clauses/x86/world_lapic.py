# SPDX-License-Identifier: Apache-2.0
"""The closed world: every register of the local APIC, in xAPIC and in x2APIC mode."""

from __future__ import annotations

from vmm.conformance.world.generate import generate
from vmm.conformance.x86.apic import LOCAL_APICS
from vmm.conformance.x86.world import GROUND, X2APIC
from vmm.state.x86.world.lapic import LAPIC, LAPIC_X2

_SOURCE = "Documentation/virt/kvm/api.rst, 4.57, 4.58"

generate(__name__, GROUND, LAPIC, _SOURCE, ("fresh", "kept", "moved"), (LOCAL_APICS,))
generate(__name__, X2APIC, LAPIC_X2, f"{_SOURCE}, 7.7", ("kept", "refused", "moved"), (LOCAL_APICS,))
