# SPDX-License-Identifier: Apache-2.0
"""The closed world: every field of REGS, SREGS, DEBUGREGS and MP_STATE."""

from __future__ import annotations

from vmm.conformance.needs import capability
from vmm.conformance.world.generate import generate
from vmm.conformance.x86.common import offers
from vmm.conformance.x86.world import GROUND
from vmm.state.x86.world.modes import SREGS, SREGS_1, SREGS_LONG, SREGS_PAE
from vmm.state.x86.world.registers import DEBUGREGS, MP_STATE, REGS

_SREGS2 = (capability("KVM_CAP_SREGS2"),)
_SOURCE = "Documentation/virt/kvm/api.rst, 4.13, 4.14, KVM_GET_SREGS2, KVM_SET_SREGS2"

generate(__name__, GROUND, REGS, "Documentation/virt/kvm/api.rst, 4.11, 4.12", ("fresh", "kept", "moved"))
generate(__name__, GROUND, SREGS, _SOURCE, ("fresh", "kept", "refused", "moved"), _SREGS2)
generate(__name__, GROUND, SREGS_1, _SOURCE, ("kept",))
generate(__name__, GROUND, SREGS_LONG, _SOURCE, ("kept", "refused", "moved"), (*_SREGS2, offers("LM")))
generate(__name__, GROUND, SREGS_PAE, _SOURCE, ("kept", "refused", "moved"), (*_SREGS2, offers("PAE")))
generate(
    __name__, GROUND, DEBUGREGS, "Documentation/virt/kvm/api.rst, 4.34, 4.35", ("fresh", "kept", "refused", "moved")
)
generate(
    __name__, GROUND, MP_STATE, "Documentation/virt/kvm/api.rst, 4.38, 4.39", ("fresh", "kept", "refused", "moved")
)
