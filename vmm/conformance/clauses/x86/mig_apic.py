# SPDX-License-Identifier: Apache-2.0
"""The local APIC in the kernel and the run state that only a vCPU with one can have, in a copy."""

from __future__ import annotations

import errno
import struct

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, refused, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.apic import LOCAL_APICS, SPLIT
from vmm.conformance.x86.common import configured
from vmm.kvm.exits import Deadline
from vmm.kvm.vcpu import Vcpu
from vmm.x86.guest import EXCEPTION, Guest
from vmm.x86.registers import get_sregs, set_sregs

_NMI = 2
_PAUSE = 0.02  # seconds in which a vCPU that does not run does nothing
_PIECES = ("MP_STATE", "SREGS", "REGS")
_STATES = {
    "UNINITIALIZED": int(lib.KVM_MP_STATE_UNINITIALIZED),
    "INIT_RECEIVED": int(lib.KVM_MP_STATE_INIT_RECEIVED),
    "HALTED": int(lib.KVM_MP_STATE_HALTED),
    "RUNNABLE": int(lib.KVM_MP_STATE_RUNNABLE),
}
_APIC, _CR8 = 0xFEE00000, 0xA
# Register by offset: an enabled APIC with a masked timer that counts, LINT0 edge and masked, an ICR that was sent.
_REGISTERS = {
    "TPR": (0x80, 0x20), "LDR": (0xD0, 0x5A000000), "DFR": (0xE0, 0x0FFFFFFF), "SVR": (0xF0, 0x1FF),
    "ICR": (0x300, 0x4D0E5), "ICR2": (0x310, 0x77000000), "LVT timer": (0x320, 0x10030),
    "LVT LINT0": (0x350, 0x10700), "TMICT": (0x380, 0x12345678), "TDCR": (0x3E0, 0xB),
}  # fmt: skip


def _guest(context: Context, entry: str) -> Guest:
    guest = context.own(Guest(context.kvm, "state", cpuid=context.host.facts.cpuid, capabilities=SPLIT))
    guest.prepare(entry)
    return guest


@clause("mig.mp-state", arch="x86", needs=(LOCAL_APICS,))
def mp_state(context: Context) -> None:
    """Each run state comes over; a copy that is HALTED does nothing until an NMI wakes it, a RUNNABLE one runs.

    Source: Documentation/virt/kvm/api.rst, 4.38, 4.39; arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_mpstate,
    vcpu_block.
    """
    guest = _guest(context, "step")
    for name, value in _STATES.items():
        succeeds(f"KVM_SET_MP_STATE to {name}", setattr, guest.vcpu, "mp_state", value)
        copy = state.twin(context, guest, state.capture(guest.vcpu, (), _PIECES), name)
        equal(f"mp_state of the copy of a vCPU that is {name}", copy.vcpu.mp_state, value)
        if name == "HALTED":
            _wakes(context, copy)
        elif name == "RUNNABLE":
            with judged("the run of a copy that is RUNNABLE"):
                copy.finish(copy.resume(context.timeout))
        copy.close()


def _wakes(context: Context, copy: Guest) -> None:
    equal("the exit of a copy that is HALTED", type(copy.resume(_PAUSE)), Deadline)
    equal("what a copy that is HALTED did", copy.mailbox.read("values"), 0)
    events = copy.vcpu.get_events()
    events.nmi.pending, events.flags = 1, lib.KVM_VCPUEVENT_VALID_NMI_PENDING
    copy.vcpu.set_events(events)
    exit = copy.resume(context.timeout)
    true("the exit of a copy that an NMI wakes", copy.event(exit) == EXCEPTION, exit, "that of its exception handler")
    equal("the vector taken by a copy that an NMI wakes", copy.fault().vector, _NMI)
    equal("mp_state of a copy that an NMI woke", copy.vcpu.mp_state, _STATES["RUNNABLE"])


@clause("mig.mp-state-refused", arch="x86")
def mp_state_refused(context: Context) -> None:
    """A run state that only a local APIC in the kernel knows is EINVAL without one, as is one that x86 lacks.

    What is refused changes nothing.

    Source: Documentation/virt/kvm/api.rst, 4.39 ("On x86, this ioctl is only useful after KVM_CREATE_IRQCHIP");
    arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_mpstate.
    """
    vcpu = configured(context)
    stranger = {"STOPPED, which is arm64's": int(lib.KVM_MP_STATE_STOPPED), "0xffffffff": 0xFFFFFFFF}
    for name, value in {**_STATES, **stranger}.items():
        if name != "RUNNABLE":
            refused(f"KVM_SET_MP_STATE to {name}", errno.EINVAL, setattr, vcpu, "mp_state", value)
            equal(f"mp_state after the refused {name}", vcpu.mp_state, _STATES["RUNNABLE"])
    succeeds("KVM_SET_MP_STATE to RUNNABLE", setattr, vcpu, "mp_state", _STATES["RUNNABLE"])


def _registers(vcpu: Vcpu) -> dict[str, int]:
    data = bytes(ffi.buffer(vcpu.get(lib.KVM_GET_LAPIC, "kvm_lapic_state")))
    return {name: struct.unpack_from("<I", data, offset)[0] for name, (offset, _) in _REGISTERS.items()}


@clause("mig.lapic", arch="x86", needs=(LOCAL_APICS,))
def lapic(context: Context) -> None:
    """The local APIC's registers come over by KVM_GET_LAPIC and KVM_SET_LAPIC, and the guest loads them from there.

    Source: Documentation/virt/kvm/api.rst, 4.57, 4.58; arch/x86/kvm/lapic.c, kvm_apic_set_state, kvm_apic_get_state.
    """
    guest = _guest(context, "peek")
    value = guest.vcpu.get(lib.KVM_GET_LAPIC, "kvm_lapic_state")
    for offset, number in _REGISTERS.values():
        ffi.buffer(value)[offset : offset + 4] = struct.pack("<I", number)
    succeeds("KVM_SET_LAPIC", guest.vcpu.ioctl, lib.KVM_SET_LAPIC, value)
    saved = guest.vcpu.get(lib.KVM_GET_LAPIC, "kvm_lapic_state")
    copy = state.twin(context, guest, state.capture(guest.vcpu, (), _PIECES), "the run state")
    succeeds("KVM_SET_LAPIC of the copy", copy.vcpu.ioctl, lib.KVM_SET_LAPIC, saved)
    found = _registers(copy.vcpu)
    for name, (_, number) in _REGISTERS.items():
        equal(f"{name} of the copy", found[name], number)
    seen = state.peek(context, copy, [_APIC + offset for offset, _ in _REGISTERS.values()])
    for (name, (_, number)), loaded in zip(_REGISTERS.items(), seen, strict=True):
        equal(f"{name} as the guest loads it", loaded, number)


@clause("mig.cr8-in-guest", arch="x86", needs=(LOCAL_APICS,))
def cr8_in_guest(context: Context) -> None:
    """With a local APIC in the kernel CR8 of KVM_SET_SREGS is bits 7:4 of its TPR, and what the guest reads as CR8.

    That of struct kvm_run is not looked at.

    Source: Documentation/virt/kvm/api.rst, 4.14, 5 ("Only valid if in-kernel local APIC is not used");
    arch/x86/kvm/x86.c, __set_sregs_common, kvm_set_cr8 (regs.c in 7.2); Intel SDM volume 3, 12.8.6.1.
    """
    guest = _guest(context, "cr8")
    sregs = get_sregs(guest.vcpu)
    sregs.cr8 = _CR8
    succeeds("KVM_SET_SREGS", set_sregs, guest.vcpu, sregs)
    equal("TPR after KVM_SET_SREGS", _registers(guest.vcpu)["TPR"], _CR8 << 4)
    copy = state.twin(context, guest, state.capture(guest.vcpu, (), _PIECES), "CR8")
    equal("CR8 of the copy", get_sregs(copy.vcpu).cr8, _CR8)
    equal("TPR of the copy", _registers(copy.vcpu)["TPR"], _CR8 << 4)
    copy.vcpu.kvm_run.cr8 = _CR8 ^ 7
    equal("CR8 in the guest", state.read_cr8(context, copy), _CR8)
    equal("CR8 of the copy after its run", get_sregs(copy.vcpu).cr8, _CR8)
