# SPDX-License-Identifier: Apache-2.0
"""The closed world: every register of every CPUID entry."""

from __future__ import annotations

from vmm.conformance.world.generate import generate
from vmm.conformance.x86.world import GROUND
from vmm.state.x86.world.cpuid import CPUID

generate(__name__, GROUND, CPUID, "Documentation/virt/kvm/api.rst, KVM_SET_CPUID2, KVM_GET_CPUID2", ("kept", "moved"))
