# SPDX-License-Identifier: Apache-2.0
"""What is about to happen to a vCPU: NMIs, exceptions, interrupts and what holds them back, as a copy sees it.

Nothing here believes KVM_GET_VCPU_EVENTS alone: what was written is what the copy has to have, and what its guest
takes then.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, refused, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.guest.base import Capabilities
from vmm.kvm.exits import Shutdown
from vmm.kvm.vcpu import Vcpu
from vmm.x86.guest import EXCEPTION, Guest
from vmm.x86.registers import get_regs, get_sregs, set_regs, set_sregs

_PAYLOADS = capability("KVM_CAP_EXCEPTION_PAYLOAD")
_TRIPLE_FAULTS = capability("KVM_CAP_X86_TRIPLE_FAULT_EVENT")
_TRIPLE_FAULT = int(lib.KVM_VCPUEVENT_VALID_TRIPLE_FAULT)
_PENDING_TRIPLE_FAULT = "triple_fault.pending"
_WITH_PAYLOADS = {int(lib.KVM_CAP_EXCEPTION_PAYLOAD): (1,)}
_PIECES = ("SREGS", "REGS", "EVENTS")
_IF = 1 << 9
_NMI, _GP, _PF, _INTERRUPT = 2, 13, 14, 31
_MOV_SS = 2
_ERROR, _ADDRESS, _OLD_ADDRESS = 0x1230, 0x77772000, 0x11111000
# A page fault that is not taken yet, with its address.
_PENDING = {
    "exception.pending": 1, "exception.injected": 0, "exception.nr": _PF, "exception.has_error_code": 1,
    "exception.error_code": 6, "exception_has_payload": 1, "exception_payload": _ADDRESS,
}  # fmt: skip


def _guest(
    context: Context, entry: str, capabilities: Capabilities = MappingProxyType({}), *, privilege: int = 3
) -> Guest:
    guest = context.own(Guest(context.kvm, "state", cpuid=context.host.facts.cpuid, capabilities=capabilities))
    guest.prepare(entry, privilege=privilege)
    return guest


def _allow_interrupts(guest: Guest) -> None:
    regs = get_regs(guest.vcpu)
    regs.rflags |= _IF
    set_regs(guest.vcpu, regs)


def _set(vcpu: Vcpu, fields: Mapping[str, int], flags: int = 0) -> None:
    """Write some fields of the events; the rest stays."""
    events = vcpu.get_events()
    state.assign(events, fields)
    events.flags |= flags
    succeeds("KVM_SET_VCPU_EVENTS", vcpu.set_events, events)


def _copy(context: Context, guest: Guest, what: str, meant: Mapping[str, int]) -> Guest:
    """A copy of the guest, whose events have to be those that were meant."""
    copy = state.twin(context, guest, state.capture(guest.vcpu, (), _PIECES), what)
    state.hold("in the copy", copy.vcpu.get_events(), meant)
    return copy


def _takes(context: Context, guest: Guest, what: str, vector: int, address: str) -> None:
    """The next thing that happens to the guest is this exception, at this address of its code."""
    exit = guest.resume(context.timeout)
    true(f"the exit of a guest with {what}", guest.event(exit) == EXCEPTION, exit, "that of its exception handler")
    fault = guest.fault()
    equal(f"the vector taken for {what}", fault.vector, vector)
    equal(f"the RIP pushed for {what}", fault.rip, guest.payload.symbol(address))


@clause("mig.nmi", arch="x86")
def nmi(context: Context) -> None:
    """An NMI that is pending, or injected and not yet taken, comes over, and the guest takes it first of all.

    Source: Documentation/virt/kvm/api.rst, 4.31, 4.32 (nmi.pending, nmi.injected); arch/x86/kvm/x86.c,
    kvm_vcpu_ioctl_x86_set_vcpu_events.
    """
    for field, flags in (("nmi.pending", lib.KVM_VCPUEVENT_VALID_NMI_PENDING), ("nmi.injected", 0)):
        guest = _guest(context, "step")
        _set(guest.vcpu, {field: 1}, flags)
        copy = _copy(context, guest, field, {field: 1})
        _takes(context, copy, field, _NMI, "step")


@clause("mig.nmi-masked", arch="x86")
def nmi_masked(context: Context) -> None:
    """A pending NMI of a vCPU in an NMI handler (nmi.masked) comes over and waits until the guest's IRET.

    Source: Documentation/virt/kvm/api.rst, 4.31 (nmi.masked); Intel SDM volume 3, 7.7.1; AMD APM volume 2, 8.2.3.
    """
    guest = _guest(context, "unmask", privilege=0)
    wanted = {"nmi.pending": 1, "nmi.masked": 1}
    _set(guest.vcpu, wanted, lib.KVM_VCPUEVENT_VALID_NMI_PENDING)
    copy = _copy(context, guest, "a masked NMI", wanted)
    exit = copy.resume(context.timeout)
    true(
        "the exit of a guest with a masked NMI", copy.event(exit) == EXCEPTION, exit, "that of its exception handler"
    )
    equal("what the guest did before its IRET", copy.mailbox.read("values"), 1)
    fault = copy.fault()
    equal("the vector taken after the IRET", fault.vector, _NMI)
    # A back end that interprets IRET may see only at the next exit that NMIs are no longer masked.
    after = copy.payload.symbol("unmasked")
    true("the RIP pushed for the NMI", after <= fault.rip < after + 64, fault.rip, f"one behind the IRET, {after:#x}")


@clause("mig.interrupt-shadow", arch="x86")
def interrupt_shadow(context: Context) -> None:
    """The shadow of MOV SS (interrupt.shadow) comes over: a pending NMI is taken after exactly one instruction.

    KVM on AMD does not tell this shadow from that of STI: the field is not 0.

    Source: Documentation/virt/kvm/api.rst, 4.31 (interrupt.shadow); arch/x86/kvm/vmx/vmx.c, vmx_nmi_blocked;
    arch/x86/kvm/svm/svm.c, svm_nmi_blocked; Intel SDM volume 3, 7.8.3.
    """
    guest = _guest(context, "step")
    _allow_interrupts(guest)
    flags = lib.KVM_VCPUEVENT_VALID_SHADOW | lib.KVM_VCPUEVENT_VALID_NMI_PENDING
    _set(guest.vcpu, {"interrupt.shadow": _MOV_SS, "nmi.pending": 1}, flags)
    copy = _copy(context, guest, "an interrupt shadow", {"nmi.pending": 1})
    shadow = copy.vcpu.get_events().interrupt.shadow
    true("interrupt.shadow in the copy", bool(shadow & _MOV_SS), shadow, f"bit {_MOV_SS:#x}")
    _takes(context, copy, "an NMI in the shadow of MOV SS", _NMI, "stepped")
    equal("what the guest did in the shadow", copy.mailbox.values[:2], [1, 0])


@clause("mig.interrupt-injected", arch="x86")
def interrupt_injected(context: Context) -> None:
    """An interrupt that is injected and not yet taken comes over with its vector; the guest takes it first of all.

    Source: Documentation/virt/kvm/api.rst, 4.31 (interrupt.injected, interrupt.nr); arch/x86/kvm/x86.c,
    kvm_check_and_inject_events.
    """
    guest = _guest(context, "step")
    _allow_interrupts(guest)
    wanted = {"interrupt.injected": 1, "interrupt.nr": _INTERRUPT}
    _set(guest.vcpu, wanted)
    copy = _copy(context, guest, "an injected interrupt", wanted)
    _takes(context, copy, "an injected interrupt", _INTERRUPT, "step")


@clause("mig.exception-error-code", arch="x86")
def exception_error_code(context: Context) -> None:
    """An exception that is injected and not yet taken comes over with its error code, which the guest's handler gets.

    Source: Documentation/virt/kvm/api.rst, 4.31 (exception); arch/x86/kvm/x86.c, kvm_inject_exception.
    """
    guest = _guest(context, "step")
    wanted = {
        "exception.injected": 1, "exception.nr": _GP, "exception.has_error_code": 1, "exception.error_code": _ERROR
    }  # fmt: skip
    _set(guest.vcpu, wanted)
    copy = _copy(context, guest, "an injected #GP", wanted)
    _takes(context, copy, "an injected #GP", _GP, "step")
    equal("the error code that the handler got", copy.fault().error, _ERROR)


@clause("mig.exception-payload", arch="x86", needs=(_PAYLOADS,))
def exception_payload(context: Context) -> None:
    """With KVM_CAP_EXCEPTION_PAYLOAD a pending #PF comes over with its address, which CR2 gets when it is taken.

    Nothing that is written after it discards it, except for KVM_SET_REGS (mig.regs-keep-exception).

    Source: Documentation/virt/kvm/api.rst, 7.6 KVM_CAP_EXCEPTION_PAYLOAD and 4.31; arch/x86/kvm/x86.c,
    kvm_deliver_exception_payload.
    """
    guest = _guest(context, "step", _WITH_PAYLOADS)
    sregs = get_sregs(guest.vcpu)
    sregs.cr2 = _OLD_ADDRESS
    set_sregs(guest.vcpu, sregs)
    _set(guest.vcpu, _PENDING, lib.KVM_VCPUEVENT_VALID_PAYLOAD)
    copy = _copy(context, guest, "a pending #PF", _PENDING)
    for name in ("SREGS", "DEBUGREGS", "MP_STATE"):
        with judged(f"{name} after EVENTS"):
            state.restore(copy.vcpu, state.capture(copy.vcpu, (), (name,)))
        state.hold(f"after {name}", copy.vcpu.get_events(), _PENDING)
    equal("CR2 while the #PF is pending", get_sregs(copy.vcpu).cr2, _OLD_ADDRESS)
    _takes(context, copy, "a pending #PF", _PF, "step")
    fault = copy.fault()
    equal("the error code that the handler got", fault.error, _PENDING["exception.error_code"])
    equal("the CR2 that the handler saw", fault.cr2, _ADDRESS)


@clause("mig.regs-keep-exception", arch="x86", needs=(_PAYLOADS,))
def regs_keep_exception(context: Context) -> None:
    """KVM_SET_REGS writes the general registers and nothing else: what is pending or injected stays.

    Source: Documentation/virt/kvm/api.rst, 4.12 KVM_SET_REGS ("Writes the general purpose registers into the vcpu").
    """
    injected = {"exception.injected": 1, "exception.pending": 0, "exception.nr": _GP}
    nmis = {"nmi.pending": 1, "nmi.masked": 1}
    flags = lib.KVM_VCPUEVENT_VALID_PAYLOAD | lib.KVM_VCPUEVENT_VALID_NMI_PENDING
    for meant in ({**injected, **nmis}, {**_PENDING, **nmis}):
        guest = _guest(context, "step", _WITH_PAYLOADS)
        _set(guest.vcpu, meant, flags)
        state.hold("after KVM_SET_VCPU_EVENTS", guest.vcpu.get_events(), meant)
        succeeds("KVM_SET_REGS", set_regs, guest.vcpu, get_regs(guest.vcpu))
        state.hold("after KVM_SET_REGS", guest.vcpu.get_events(), meant)


@clause("mig.triple-fault", arch="x86", needs=(_TRIPLE_FAULTS,))
def triple_fault(context: Context) -> None:
    """With KVM_CAP_X86_TRIPLE_FAULT_EVENT a pending triple fault comes over, and KVM_RUN leaves at once for it.

    KVM_VCPUEVENT_VALID_TRIPLE_FAULT is set in what is read whether or not one is pending, can take one back, and is
    EINVAL in a VM without the capability.

    Source: Documentation/virt/kvm/api.rst, 4.31, 4.32, KVM_CAP_X86_TRIPLE_FAULT_EVENT; arch/x86/kvm/x86.c,
    kvm_vcpu_ioctl_x86_set_vcpu_events, vcpu_enter_guest (KVM_REQ_TRIPLE_FAULT).
    """
    pending, none = {_PENDING_TRIPLE_FAULT: 1}, {_PENDING_TRIPLE_FAULT: 0}
    guest = _guest(context, "step", {int(lib.KVM_CAP_X86_TRIPLE_FAULT_EVENT): (1,)})
    _holds_triple_fault("of a new vCPU", guest, none)
    _set(guest.vcpu, pending, _TRIPLE_FAULT)
    _holds_triple_fault("after KVM_SET_VCPU_EVENTS", guest, pending)
    copy = _copy(context, guest, "a triple fault", pending)
    equal("the exit of a guest with a triple fault", copy.resume(context.timeout), Shutdown())
    equal("what the guest did", copy.mailbox.values[:2], [0, 0])
    _holds_triple_fault("after the exit", copy, none)
    _set(guest.vcpu, none, _TRIPLE_FAULT)
    _holds_triple_fault("after it was taken back", guest, none)
    with judged("the run of a guest whose triple fault was taken back"):
        guest.finish(guest.resume(context.timeout), "state.step")
    other = _guest(context, "step")
    events = other.vcpu.get_events()
    equal("KVM_VCPUEVENT_VALID_TRIPLE_FAULT without the capability", events.flags & _TRIPLE_FAULT, 0)
    state.assign(events, pending)
    events.flags |= _TRIPLE_FAULT
    refused("a triple fault without the capability", errno.EINVAL, other.vcpu.set_events, events)
    with judged("the run of a guest without the capability"):
        other.finish(other.resume(context.timeout), "state.step")


def _holds_triple_fault(what: str, guest: Guest, meant: Mapping[str, int]) -> None:
    events = guest.vcpu.get_events()
    equal(f"KVM_VCPUEVENT_VALID_TRIPLE_FAULT {what}", events.flags & _TRIPLE_FAULT, _TRIPLE_FAULT)
    state.hold(what, events, meant)
