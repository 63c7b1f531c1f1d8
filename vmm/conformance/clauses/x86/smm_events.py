# SPDX-License-Identifier: Apache-2.0
"""SMM in KVM_GET_VCPU_EVENTS: each field of smi says what the vCPU does, and brings it over to another vCPU."""

from __future__ import annotations

import struct
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.apic import INIT_BY_MESSAGE, make_runnable, signal_init, with_local_apics
from vmm.conformance.x86.common import AREA
from vmm.conformance.x86.smm import (
    HANDLER,
    RSM,
    SMBASE,
    SMM,
    SMRAM_SIZE,
    give_smram,
    run_to_tick,
    send_smi,
    stop_in_handler,
    tick,
)
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import cpuid
from vmm.x86.guest import DONE, Guest
from vmm.x86.registers import get_regs, get_sregs, set_sregs

_UD, _UD_HANDLER = 6, HANDLER + 0x100


def _smi_guest(context: Context, ticks: int = 1) -> Guest:
    """A guest about to tick, with an SMI handler that ticks once and resumes."""
    guest = context.own(Guest(context.kvm, "hello"))
    give_smram(guest, tick(guest) + RSM)
    guest.prepare("ticks", ticks)
    return guest


def _smi(vcpu: Vcpu) -> tuple[int, int, int, int]:
    """Return smi.smm, smi.pending, smi.smm_inside_nmi and nmi.masked."""
    events = vcpu.get_events()
    return events.smi.smm, events.smi.pending, events.smi.smm_inside_nmi, events.nmi.masked


def _set_smi(vcpu: Vcpu, **fields: int) -> None:
    """Change fields of smi, and nothing else, by KVM_SET_VCPU_EVENTS."""
    events = vcpu.get_events()
    for field, value in fields.items():
        setattr(events.smi, field, value)
    events.flags = lib.KVM_VCPUEVENT_VALID_SMM
    succeeds("KVM_SET_VCPU_EVENTS of smi", vcpu.set_events, events)


def _next_is_handler(context: Context, guest: Guest, what: str, expected: bool) -> None:
    """Run to the next tick, and look at whose it is."""
    run_to_tick(context, guest, what)
    equal(f"{what} ticks in SMM", guest.vcpu.get_events().smi.smm, int(expected))
    equal(f"{what} ticks at SMBASE + 0x8000", get_regs(guest.vcpu).rip == HANDLER + len(tick(guest)), expected)


@clause("smm.pending", arch="x86", needs=(SMM,))
def pending(context: Context) -> None:
    """An SMI that was sent is smi.pending until the vCPU runs; another vCPU can be given it, and it can be cleared.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_vcpu_events, kvm_vcpu_ioctl_x86_set_vcpu_events.
    """
    first, second = _smi_guest(context, 2), _smi_guest(context)
    equal("smi before the SMI", _smi(first.vcpu), (0, 0, 0, 0))
    succeeds("KVM_SMI", send_smi, first.vcpu)
    equal("smi after it", _smi(first.vcpu), (0, 1, 0, 0))
    _set_smi(second.vcpu, pending=1)
    equal("smi of the other vCPU", _smi(second.vcpu), (0, 1, 0, 0))
    _set_smi(first.vcpu, pending=0)
    equal("smi with pending cleared", _smi(first.vcpu), (0, 0, 0, 0))
    _next_is_handler(context, first, "the vCPU whose SMI was cleared", expected=False)
    _next_is_handler(context, second, "the vCPU that was given the SMI", expected=True)


@clause("smm.blocks-nmi", arch="x86", needs=(SMM,))
def blocks_nmi(context: Context) -> None:
    """In SMM NMIs are masked; smi.smm_inside_nmi says whether they were before, and RSM leaves them as they were.

    Source: Intel SDM volume 3, "NMI Handling While in SMM"; arch/x86/kvm/smm.c, enter_smm, emulator_leave_smm
    (HF_SMM_INSIDE_NMI_MASK).
    """
    for masked in (0, 1):
        guest = _smi_guest(context, 2)
        events = guest.vcpu.get_events()
        events.nmi.masked = masked
        guest.vcpu.set_events(events)
        equal(f"smi and nmi.masked before, with NMIs masked: {masked}", _smi(guest.vcpu), (0, 0, 0, masked))
        stop_in_handler(context, guest)
        equal(f"smi and nmi.masked in the handler, with NMIs masked: {masked}", _smi(guest.vcpu), (1, 0, masked, 1))
        _next_is_handler(context, guest, "the guest behind RSM", expected=False)
        equal(f"smi and nmi.masked behind RSM, with NMIs masked: {masked}", _smi(guest.vcpu), (0, 0, 0, masked))


def _stopped_inside(context: Context) -> tuple[Guest, Guest, Any]:
    """A guest in its handler with NMIs masked from before, another with its SMRAM, and the state of the first."""
    guest, other = _smi_guest(context), _smi_guest(context)
    events = guest.vcpu.get_events()
    events.nmi.masked = 1
    guest.vcpu.set_events(events)
    stop_in_handler(context, guest)
    other.memory.write(SMBASE, guest.memory.read(SMBASE, SMRAM_SIZE))
    return guest, other, state.capture(guest.vcpu, ())


@clause("smm.moves", arch="x86", needs=(SMM, *AREA))
def moves(context: Context) -> None:
    """A vCPU that is stopped in SMM goes on in another VM, which has its state, its memory and its SMRAM.

    Source: Documentation/virt/kvm/api.rst, KVM_SET_VCPU_EVENTS; arch/x86/kvm/x86.c, kvm_smm_changed.
    """
    _, other, saved = _stopped_inside(context)
    with judged("restoring a vCPU in SMM"):
        state.restore(other.vcpu, saved)
    equal("smi and nmi.masked of the copy", _smi(other.vcpu), (1, 0, 1, 1))
    with judged("the copy behind RSM", "an end without a fault"):
        equal("the copy's event", other.finish(other.resume(context.timeout), "the copy behind RSM"), DONE)
    equal("smi and nmi.masked of the copy behind RSM", _smi(other.vcpu), (0, 0, 0, 1))
    equal("CR0 of the copy behind RSM", get_sregs(other.vcpu).cr0 >> 31, 1)


@clause("smm.rsm-outside", arch="x86", needs=(SMM, *AREA))
def rsm_outside(context: Context) -> None:
    """Restored without smi.smm, a vCPU that was stopped in SMM is outside of it: RSM is #UD.

    So a VMM that leaves the field out breaks a guest.

    Source: Intel SDM volume 2, RSM; arch/x86/kvm/emulate.c, em_rsm.
    """
    _, other, saved = _stopped_inside(context)
    events = ffi.new("struct kvm_vcpu_events *")
    ffi.memmove(events, saved["EVENTS"], len(saved["EVENTS"]))
    events.smi.smm = events.smi.smm_inside_nmi = 0
    with judged("restoring the vCPU without smi.smm"):
        state.restore(other.vcpu, {**saved, "EVENTS": bytes(ffi.buffer(events))})
    equal("smi.smm of the copy", other.vcpu.get_events().smi.smm, 0)
    # In real mode the vector table has segment and offset of each handler. In SMM there is none.
    sregs = get_sregs(other.vcpu)
    sregs.idt = {"base": 0, "limit": 0x3FF}
    set_sregs(other.vcpu, sregs)
    other.memory.write(4 * _UD, struct.pack("<HH", _UD_HANDLER, SMBASE >> 4))
    other.memory.write(SMBASE + _UD_HANDLER, tick(other))
    run_to_tick(context, other, "the copy")
    equal("RIP behind RSM", get_regs(other.vcpu).rip, _UD_HANDLER + len(tick(other)))


@clause("smm.latched-init", arch="x86", needs=(SMM, *INIT_BY_MESSAGE))
def latched_init(context: Context) -> None:
    """INIT that comes in SMM is smi.latched_init and leaves the vCPU as it is; the field can be cleared and set.

    Source: Intel SDM volume 3, "System Management Interrupt (SMI)" (INIT is inhibited in SMM);
    arch/x86/kvm/lapic.h, kvm_lapic_latched_init.
    """
    vm = with_local_apics(context.vm())
    vm.create_vcpu(0)
    second = vm.create_vcpu(1)
    cpuid.set_cpuid(second, context.host.facts.cpuid)
    make_runnable(second)
    _set_smi(second, smm=1)
    signal_init(vm, second)
    for latched in (1, 0, 1):
        equal("smi.latched_init and smi.smm", _latched(second), (latched, 1))
        equal("mp_state in SMM", second.mp_state, lib.KVM_MP_STATE_RUNNABLE)
        _set_smi(second, latched_init=1 - latched)


def _latched(vcpu: Vcpu) -> tuple[int, int]:
    events = vcpu.get_events()
    return events.smi.latched_init, events.smi.smm
