# SPDX-License-Identifier: Apache-2.0
"""The closed world: every field of EVENTS, with and without the capabilities that add some, and in SMM."""

from __future__ import annotations

from vmm.conformance.needs import capability
from vmm.conformance.world.generate import generate
from vmm.conformance.x86.apic import LOCAL_APICS
from vmm.conformance.x86.smm import SMM as HAS_SMM
from vmm.conformance.x86.world import GROUND, WITH_EVENTS
from vmm.state.x86.world.events import EVENTS, EVENTS_ALL, SMM

_SOURCE = "Documentation/virt/kvm/api.rst, 4.31, 4.32"
_ALL = (capability("KVM_CAP_EXCEPTION_PAYLOAD"), capability("KVM_CAP_X86_TRIPLE_FAULT_EVENT"))

generate(__name__, GROUND, EVENTS, _SOURCE, ("fresh", "kept", "refused", "moved"))
generate(__name__, WITH_EVENTS, EVENTS_ALL, f"{_SOURCE}, 7.6", ("fresh", "kept", "refused", "moved"), _ALL)
generate(__name__, GROUND, SMM, _SOURCE, ("kept",), (HAS_SMM, LOCAL_APICS))
