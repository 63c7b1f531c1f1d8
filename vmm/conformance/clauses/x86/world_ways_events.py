# SPDX-License-Identifier: Apache-2.0
"""The closed world: every field of every piece of a vCPU's state, over what stops, resets or ends a vCPU."""

from __future__ import annotations

from collections.abc import Mapping

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.world.tally import Tally
from vmm.conformance.world.ways import Becomes, Traveller, initialised, initialised_in_run
from vmm.conformance.x86.apic import INIT_BY_MESSAGE, signal_init, signal_sipi
from vmm.conformance.x86.still import WAYS, WITHOUT_CR4, place, still_guest, tick, traveller
from vmm.kvm.exits import Deadline, FailEntry, InternalError, Shutdown
from vmm.state.world.row import After, Made, OneOf, Untold
from vmm.state.world.table import Table
from vmm.state.x86.world.cpuid import CPUID
from vmm.x86.guest import Guest
from vmm.x86.registers import get_regs, get_sregs, set_regs, set_sregs

_TRIPLE_FAULTS = capability("KVM_CAP_X86_TRIPLE_FAULT_EVENT")
_REPORTED = capability("KVM_CAP_EXIT_ON_EMULATION_FAILURE")
_RF = 1 << 16
_RESET_RIP = 0xFFF0
_SHORT, _LONG = 0.005, 0.5
_STAYS: Mapping[str, Becomes] = {"REGS.rip": After.KEPT}
_FAULTED: Mapping[str, Becomes] = {
    **_STAYS,
    "REGS.rflags": Made(
        lambda flags: OneOf((flags, flags | _RF), "an exit that is like a fault sets RF on some CPUs")
    ),
}
# Neither pending nor injected.
_LEFT: Mapping[str, Becomes] = dict.fromkeys(
    ("EVENTS.exception.nr", "EVENTS.exception.has_error_code", "EVENTS.exception.error_code"),
    Untold("which exception it was that there was no way on from may still be there, and means nothing"),
)
_DELIVERED_AGAIN = OneOf(
    (0, 1), "a KVM that delivers an exception again, and finds the triple fault itself, leaves it"
)
# What only the VMCB has, which is undefined then.
_IN_VMCB: Mapping[str, Becomes] = dict.fromkeys(
    (f"MSRS.{name}" for name in ("SYSENTER_CS", "SYSENTER_ESP", "SYSENTER_EIP", "STAR", "LSTAR", "CSTAR",
                                 "SYSCALL_MASK", "KERNEL_GS_BASE")),
    Made(lambda value: OneOf((value, 0), "svm/svm.c, shutdown_interception clears the VMCB, which is undefined")),
)  # fmt: skip
_PAGE = 0x9F  # the vector of a SIPI, which is the page where the vCPU begins
_NOWHERE = 0xD000_0000  # no memory
_EMULATION = 1  # KVM_INTERNAL_ERROR_EMULATION


def _until(way: Traveller, rip: int) -> None:
    """Run a vCPU that then blocks in KVM_RUN, in ever longer runs, until it has come to ``rip``.

    If it never does, the clause runs into its time limit.
    """
    seconds = _SHORT
    while get_regs(way.vcpu).rip != rip:
        exit = succeeds("the run of a vCPU that blocks", way.vcpu.run, seconds)
        true("the exit of a vCPU that blocks", exit == Deadline(), exit, "none but a deadline's")
        seconds = min(2 * seconds, _LONG)


@clause("world.way-halt", arch="x86", needs=WAYS)
def halt(context: Context) -> None:
    """A vCPU in HLT is KVM_MP_STATE_HALTED with RIP behind it, and every other field is as it was.

    Source: Documentation/virt/kvm/api.rst, 4.38 KVM_GET_MP_STATE; arch/x86/kvm/x86.c, kvm_emulate_halt.
    """
    guest = still_guest(context, "halt")
    with Tally(context) as tally:
        way, behind = traveller(guest.vcpu, tally), guest.payload.symbol("halted")
        way.settle(0)
        _until(way, behind)
        way.judge("in HLT", {"REGS.rip": behind, "MP_STATE.mp_state": int(lib.KVM_MP_STATE_HALTED)})


def _second(context: Context, tally: Tally, *views: Table) -> tuple[Guest, Traveller]:
    """A guest whose second vCPU takes INIT and SIPI."""
    guest = still_guest(context, vcpus=2)
    return guest, traveller(guest.processors[1].vcpu, tally, *views)


@clause("world.way-init", arch="x86", needs=(*WAYS, *INIT_BY_MESSAGE))
def init(context: Context) -> None:
    """INIT changes nothing while pending; once KVM_GET_MP_STATE took it in, each field is what INIT makes of it.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_reset, kvm_arch_vcpu_ioctl_get_mpstate; Intel SDM volume 3, table 11-1.
    """
    with Tally(context) as tally:
        guest, way = _second(context, tally, CPUID)
        way.settle(0)
        signal_init(guest.vm, way.vcpu)
        way.judge("with INIT pending", {**_STAYS, "EVENTS.smi.latched_init": 1}, without=("MP_STATE",))
        way.judge("after INIT", WITHOUT_CR4, initialised)


@clause("world.way-init-in-run", arch="x86", needs=(*WAYS, *INIT_BY_MESSAGE))
def init_in_run(context: Context) -> None:
    """INIT that KVM_RUN takes in makes of each field what it makes of it elsewhere.

    Source: arch/x86/kvm/x86.c, vcpu_enter_guest, vcpu_run (kvm_apic_accept_events).
    """
    with Tally(context) as tally:
        guest, way = _second(context, tally)
        way.settle(1)
        tick(context, way.vcpu, "the vCPU before INIT")
        signal_init(guest.vm, way.vcpu)
        _until(way, _RESET_RIP)
        way.judge("after INIT in KVM_RUN", event=initialised_in_run, without=("MP_STATE",))
        way.judge("after INIT in KVM_RUN", event=initialised_in_run)


def _waiting_for_sipi(context: Context, tally: Tally) -> tuple[Guest, Traveller]:
    """A guest whose second vCPU has taken INIT and was then given values, in 64-bit mode; SIPI is pending."""
    guest, way = _second(context, tally)
    signal_init(guest.vm, way.vcpu)
    equal("mp_state after INIT", way.vcpu.mp_state, lib.KVM_MP_STATE_INIT_RECEIVED)
    place(guest, "tick", 1)
    way.settle(0)
    signal_sipi(guest.vm, way.vcpu, _PAGE)
    return guest, way


_STARTED: Mapping[str, Becomes] = {
    "SREGS.cs.selector": _PAGE << 8, "SREGS.cs.base": _PAGE << 12, "REGS.rip": 0,
    "MP_STATE.mp_state": int(lib.KVM_MP_STATE_RUNNABLE),
}  # fmt: skip


@clause("world.way-sipi", arch="x86", needs=(*WAYS, *INIT_BY_MESSAGE))
def sipi(context: Context) -> None:
    """SIPI changes nothing while it is pending, and then CS, RIP and MP_STATE and no other field.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_deliver_sipi_vector; lapic.c, kvm_apic_accept_events.
    """
    with Tally(context) as tally:
        _, way = _waiting_for_sipi(context, tally)
        way.judge("with SIPI pending", _STAYS, without=("MP_STATE",))
        way.judge("after SIPI", _STARTED)


@clause("world.way-sipi-in-run", arch="x86", needs=(*WAYS, *INIT_BY_MESSAGE))
def sipi_in_run(context: Context) -> None:
    """A vCPU that takes SIPI in KVM_RUN runs from RIP 0 on, and has every other field as it was but CS and MP_STATE.

    Source: arch/x86/kvm/x86.c, vcpu_block, kvm_vcpu_deliver_sipi_vector; lapic.c, kvm_apic_accept_events.
    """
    with Tally(context) as tally:
        guest, way = _waiting_for_sipi(context, tally)
        code, ticked = guest.payload.symbol("tick"), guest.payload.symbol("ticked")
        guest.memory.write(0, guest.memory.read(code, ticked - code))  # in 64-bit mode the base of CS does not count
        tick(context, way.vcpu, "a vCPU that was started", 1)
        way.judge("behind its first exit", {**_STARTED, "REGS.rip": ticked - code})


@clause("world.way-triple-fault", arch="x86", needs=(*WAYS, _TRIPLE_FAULTS))
def pending_triple_fault(context: Context) -> None:
    """A pending triple fault is the vCPU's only difference from one without, and KVM_RUN leaves at once for it.

    Source: Documentation/virt/kvm/api.rst, KVM_CAP_X86_TRIPLE_FAULT_EVENT; arch/x86/kvm/x86.c, vcpu_enter_guest
    (KVM_REQ_TRIPLE_FAULT).
    """
    guest = still_guest(context)
    guest.vm.enable_cap(lib.KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)
    with Tally(context) as tally:
        way = traveller(guest.vcpu, tally)
        way.settle(1)
        events = guest.vcpu.get_events()
        events.flags, events.triple_fault.pending = lib.KVM_VCPUEVENT_VALID_TRIPLE_FAULT, 1
        guest.vcpu.set_events(events)
        way.judge("with a triple fault pending", {**_STAYS, "EVENTS.triple_fault.pending": 1})
        equal("the exit with a triple fault pending", guest.vcpu.run(context.timeout), Shutdown())
        way.judge("after its exit", _STAYS)


@clause("world.way-shutdown", arch="x86", needs=WAYS)
def shutdown(context: Context) -> None:
    """After KVM_EXIT_SHUTDOWN every field is as it was at the instruction, or every one is as after INIT.

    AMD's CPUs leave the VMCB undefined, so KVM does the latter there.

    Source: arch/x86/kvm/vmx/vmx.c, handle_triple_fault; svm/svm.c, shutdown_interception.
    """
    guest = still_guest(context, "undefined")
    with Tally(context) as tally:
        way = traveller(guest.vcpu, tally)
        way.settle(0)
        equal("the exit of a guest without an IDT at UD2", guest.vcpu.run(context.timeout), Shutdown())
        if get_regs(guest.vcpu).rip == _RESET_RIP:
            way.judge("after a triple fault that was made INIT", {**_LEFT, **_IN_VMCB}, initialised_in_run)
        else:
            way.judge("after a triple fault", {**_FAULTED, **_LEFT, "EVENTS.exception.injected": _DELIVERED_AGAIN})


def _refused_by_cpu(guest: Guest) -> None:
    """Give a vCPU a code segment that is of 64 and of 32 bits: KVM takes it, and no CPU enters a guest with it."""
    sregs = get_sregs(guest.vcpu)
    sregs.cs.db = 1
    set_sregs(guest.vcpu, sregs)


@clause("world.way-failed-entry", arch="x86", needs=WAYS)
def failed_entry(context: Context) -> None:
    """A vCPU that the CPU refuses, with a code segment of 64 and of 32 bits at once, has every field as it was.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_handle_exit, svm/svm.c, svm_handle_exit (KVM_EXIT_FAIL_ENTRY); Intel SDM
    volume 3, 27.3.1.2; AMD APM volume 2, 15.5.1.
    """
    guest = still_guest(context)
    _refused_by_cpu(guest)
    with Tally(context) as tally:
        way = traveller(guest.vcpu, tally)
        way.settle(1)
        exit = succeeds("the run of a vCPU that no CPU enters", guest.vcpu.run, context.timeout, 1)
        if not isinstance(exit, FailEntry | InternalError):
            context.skip(f"needs a CPU that refuses such a guest: it left with {exit}")
        way.judge(f"after {type(exit).__name__}", _STAYS)


@clause("world.way-failed-emulation", arch="x86", needs=(*WAYS, _REPORTED))
def failed_emulation(context: Context) -> None:
    """A vCPU whose next instruction KVM cannot emulate, as none is there, has every field as it was.

    With KVM_CAP_EXIT_ON_EMULATION_FAILURE no exception is left behind.

    Source: arch/x86/kvm/x86.c, handle_emulation_failure; Documentation/virt/kvm/api.rst,
    KVM_CAP_EXIT_ON_EMULATION_FAILURE.
    """
    guest = still_guest(context)
    guest.vm.enable_cap(lib.KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
    regs = get_regs(guest.vcpu)
    regs.rip = _NOWHERE
    set_regs(guest.vcpu, regs)
    with Tally(context) as tally:
        way = traveller(guest.vcpu, tally)
        way.settle(0)
        exit = succeeds("the run of a vCPU that is nowhere", guest.vcpu.run, context.timeout, 1)
        emulation = isinstance(exit, InternalError) and exit.suberror == _EMULATION
        true("the exit of a vCPU that is nowhere", emulation, exit, "InternalError (suberror 1)")
        way.judge("after a failed emulation", _FAULTED)
