# SPDX-License-Identifier: Apache-2.0
"""The part EVENTS of an arm64 vCPU: of what KVM_SET_VCPU_EVENTS takes, what KVM_GET_VCPU_EVENTS can have told."""

from __future__ import annotations

from collections.abc import Mapping

from vmm.arm64.registers import PSTATE, SYSTEM
from vmm.state.errors import StreamError
from vmm.state.piece import Follows, Structure, raw, registers
from vmm.state.value import Part

__all__ = ["Events", "untold"]

_SIZE = 64
# struct kvm_vcpu_events: offsets of fields, and bytes that have no meaning.
_SERROR, _ABORT = 0, 2
_PADDING, _RESERVED = slice(3, 8), slice(16, _SIZE)
_SCTLR2 = SYSTEM["SCTLR2_EL1"]
_MASKED, _NMEA = 1 << 8, 1 << 2  # PSTATE.A; SCTLR2_EL1.NMEA, with which PSTATE.A masks no SError


def untold(parts: Mapping[str, Part]) -> str:
    """Return what the part EVENTS has that no vCPU with these parts tells, as a sentence; nothing if all is well.

    An abort is delivered when it is set and never told: written again it would be another one. A guest takes a
    pending SError that nothing masks before it goes on; a restore would make it take that at once.

    Source: arch/arm64/kvm/guest.c, __kvm_arm_vcpu_get_events; arch/arm64/kvm/inject_fault.c, kvm_inject_serror_esr.
    """
    events = raw("EVENTS", parts["EVENTS"], _SIZE)
    if events[_ABORT]:
        return "an external abort is to be injected (ext_dabt_pending), which is part of no state"
    if any(events[_PADDING]) or any(events[_RESERVED]):
        return "reserved bytes are not 0"
    if events[_SERROR] and not _masked(parts):
        return "an SError is pending that the guest does not mask: save it when the guest has taken that"
    return ""


def _masked(parts: Mapping[str, Part]) -> bool:
    """Tell whether the guest masks SErrors, as a fresh vCPU does that gets no PSTATE."""
    core, system = registers("CORE", parts["CORE"]), registers("SYSREGS", parts["SYSREGS"])
    pstate = int.from_bytes(core.get(PSTATE, _MASKED.to_bytes(8, "little")), "little")
    return bool(pstate & _MASKED) and not int.from_bytes(system.get(_SCTLR2, b""), "little") & _NMEA


class Events(Structure):
    """Pending events; those of a stranger are refused that a save cannot have found."""

    def __init__(self, *after: Follows) -> None:
        super().__init__("EVENTS", "kvm_vcpu_events", _SIZE, *after, calls="VCPU_EVENTS")

    def check(self, where: str, parts: Mapping[str, Part]) -> None:
        """No abort, no reserved bytes, no SError that the guest would have taken."""
        if found := untold(parts):
            raise StreamError(where, found)
