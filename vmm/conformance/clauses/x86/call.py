# SPDX-License-Identifier: Apache-2.0
"""Calls of a vCPU beside those of its state: addresses, debugging, interrupts, the clock of a guest that paused."""

from __future__ import annotations

import errno
import struct
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, refused, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86.apic import LOCAL_APICS, with_local_apics
from vmm.conformance.x86.common import configured
from vmm.conformance.x86.still import still_guest
from vmm.kvm.exits import Debug
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import boot, msr
from vmm.x86.boot import TYPED_PAGES
from vmm.x86.guest import Guest
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_debugregs, get_regs, raw, set_debugregs

_TICKS = 100  # a guest that is debugged stops at once or never
_NOWHERE = (1 << 64) - 1
_DEBUG = struct.Struct("<IIQQQ")  # struct kvm_debug_exit_arch: exception, pad, pc, dr6, dr7
_UNION = 32  # where it is in struct kvm_run
_DB, _GP = 1, 13
_B0, _LE_L0 = 1, 0x701  # of DR6; DR7 with LE, GE, its fixed bit and breakpoint 0 for execution
_ENABLE_MSR = 1
_CLOCK_FLAGS, _GUEST_STOPPED = 29, 2  # in struct pvclock_vcpu_time_info, PVCLOCK_GUEST_STOPPED


def _translate(vcpu: Vcpu, address: int) -> Any:
    found = ffi.new("struct kvm_translation *", {"linear_address": address, "physical_address": 0x5A5A})
    vcpu.ioctl(lib.KVM_TRANSLATE, found)
    return found


@clause("call.translate", arch="x86")
def translate(context: Context) -> None:
    """KVM_TRANSLATE follows the guest's page tables: what they map is valid, with its physical address, and no more.

    Source: Documentation/virt/kvm/api.rst, KVM_TRANSLATE; arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_translate.
    """
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    guest.prepare(guest.payload.entry)
    for address in (guest.payload.entry, 0x123, boot.HOLE[0] - 1, boot.HOLE[1]):
        found = succeeds(f"KVM_TRANSLATE of {address:#x}", _translate, guest.vcpu, address)
        mapped = address < boot.HOLE[0]
        equal(f"valid of {address:#x}", int(found.valid), int(mapped))
        equal(f"physical_address of {address:#x}", int(found.physical_address), address if mapped else _NOWHERE)
        equal(f"linear_address of {address:#x}", int(found.linear_address), address)
    fresh = configured(context)
    found = succeeds("KVM_TRANSLATE without paging", _translate, fresh, 0x1234_5678)
    equal("valid and physical_address without paging", (found.valid, found.physical_address), (1, 0x1234_5678))


def _interrupt(vcpu: Vcpu, vector: int) -> None:
    vcpu.ioctl(lib.KVM_INTERRUPT, ffi.new("struct kvm_interrupt *", {"irq": vector}))


@clause("call.interrupt-rules", arch="x86", needs=(LOCAL_APICS, capability("KVM_CAP_IRQCHIP")))
def interrupt_rules(context: Context) -> None:
    """KVM_INTERRUPT takes vectors below 256 of a VMM that has the PIC, one at a time, and none where KVM has it.

    Source: Documentation/virt/kvm/api.rst, KVM_INTERRUPT; arch/x86/kvm/x86.c, kvm_vcpu_ioctl_interrupt.
    """
    plain = context.vcpu()
    for vector in (256, 0xFFFF_FFFF):
        refused(f"vector {vector:#x}", errno.EINVAL, _interrupt, plain, vector)
    equal("interrupt.injected after refusals", int(plain.get_events().interrupt.injected), 0)
    succeeds("vector 255", _interrupt, plain, 255)
    events = plain.get_events()
    equal("interrupt.injected and nr", (events.interrupt.injected, events.interrupt.nr), (1, 255))
    split = with_local_apics(context.vm()).create_vcpu()
    succeeds("a first vector with a split irqchip", _interrupt, split, 0x40)
    refused("a second vector with a split irqchip", errno.EEXIST, _interrupt, split, 0x41)
    whole = context.vm()
    whole.ioctl_value(lib.KVM_CREATE_IRQCHIP)
    refused("a vector with KVM's own PIC", errno.ENXIO, _interrupt, whole.create_vcpu(), 0x40)


def _debug(vcpu: Vcpu, control: int, **registers: int) -> None:
    values = [registers.get(f"dr{number}", 0) for number in range(8)]
    given = {"control": control, "arch": {"debugreg": values}}
    vcpu.ioctl(lib.KVM_SET_GUEST_DEBUG, ffi.new("struct kvm_guest_debug *", given))


@clause("call.guest-debug-busy", arch="x86", needs=(capability("KVM_CAP_EXCEPTION_PAYLOAD"),))
def guest_debug_busy(context: Context) -> None:
    """KVM_SET_GUEST_DEBUG refuses to inject #DB or #BP beside a pending exception with EBUSY, and that stays.

    Without one the exception is queued.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_guest_debug.
    """
    # A software exception, as #BP is, is not shown as injected: its instruction raises it again.
    for what, control, shown in (
        ("#DB", lib.KVM_GUESTDBG_INJECT_DB, (1, 1)), ("#BP", lib.KVM_GUESTDBG_INJECT_BP, (0, 3)),
    ):  # fmt: skip
        vcpu = _with_payloads(context)
        events = vcpu.get_events()
        events.exception.pending, events.exception.nr, events.exception.has_error_code = 1, _GP, 1
        vcpu.set_events(events)
        refused(f"{what} beside #GP", errno.EBUSY, _debug, vcpu, lib.KVM_GUESTDBG_ENABLE | control)
        found = vcpu.get_events().exception
        equal(f"pending and nr after the refused {what}", (found.pending, found.nr), (1, _GP))
        free = configured(context)
        succeeds(f"{what} into a vCPU without an exception", _debug, free, lib.KVM_GUESTDBG_ENABLE | control)
        found = free.get_events().exception
        equal(f"injected and nr with {what}", (found.injected, found.nr), shown)


def _with_payloads(context: Context) -> Vcpu:
    """A vCPU of which pending exceptions are told apart from injected ones."""
    vm = context.vm()
    vm.enable_cap(lib.KVM_CAP_EXCEPTION_PAYLOAD, 1)
    return vm.create_vcpu()


def _stopped(context: Context, guest: Guest, what: str) -> tuple[int, int, int]:
    """Run a guest that is debugged to where it stops: exception, PC and DR6."""
    exit = succeeds(f"the run of a guest {what}", guest.vcpu.run, context.timeout, _TICKS)
    equal(f"the exit of a guest {what}", exit, Debug())
    exception, _, pc, dr6, _ = _DEBUG.unpack_from(guest.vcpu.page, _UNION)
    return exception, pc, dr6


@clause("call.guest-breakpoint", arch="x86", needs=(LOCAL_APICS,))
def guest_breakpoint(context: Context) -> None:
    """A hardware breakpoint of the VMM's stops the guest there with KVM_EXIT_DEBUG; the guest's own DRs stay.

    Where KVM interprets the guest it leaves DR7 out.

    Source: Documentation/virt/kvm/api.rst, KVM_SET_GUEST_DEBUG, KVM_EXIT_DEBUG; arch/x86/kvm/x86.c,
    kvm_arch_vcpu_ioctl_set_guest_debug; vmx/vmx.c, handle_exception_nmi; svm/svm.c, db_interception.
    """
    guest = still_guest(context)
    own = get_debugregs(guest.vcpu)
    own.db[0], own.db[3] = 0x1111_0000, 0x3333_0000
    set_debugregs(guest.vcpu, own)
    place = guest.payload.symbol("ticked")
    with judged("KVM_SET_GUEST_DEBUG with a breakpoint"):
        _debug(guest.vcpu, lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_USE_HW_BP, dr0=place, dr7=_LE_L0)
    exception, pc, dr6 = _stopped(context, guest, "with a breakpoint")
    equal("exception and PC at the breakpoint", (exception, pc), (_DB, place))
    true("DR6 at the breakpoint", bool(dr6 & _B0), dr6, "B0 set")
    equal("RIP at the breakpoint", int(get_regs(guest.vcpu).rip), place)
    equal("the guest's own debug registers", raw(get_debugregs(guest.vcpu)), raw(own))


@clause("call.guest-single-step", arch="x86", needs=(LOCAL_APICS,))
def guest_single_step(context: Context) -> None:
    """KVM_GUESTDBG_SINGLESTEP stops the guest behind each instruction; RFLAGS.TF is not the guest's.

    Source: Documentation/virt/kvm/api.rst, KVM_SET_GUEST_DEBUG; arch/x86/kvm/x86.c, kvm_get_rflags,
    kvm_arch_vcpu_ioctl_set_guest_debug.
    """
    guest = still_guest(context, "step")
    flags = int(get_regs(guest.vcpu).rflags)
    with judged("KVM_SET_GUEST_DEBUG with single steps"):
        _debug(guest.vcpu, lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
    begin = guest.payload.symbol("step")
    for expected in (begin + 1, begin + 2, begin):
        _, pc, _ = _stopped(context, guest, "that is stepped")
        equal("PC behind an instruction", pc, expected)
        equal("RFLAGS of a guest that is stepped", int(get_regs(guest.vcpu).rflags), flags)


def _ctl(vcpu: Vcpu) -> None:
    vcpu.ioctl(lib.KVM_KVMCLOCK_CTRL)


@clause("call.kvmclock-ctrl", arch="x86")
def kvmclock_ctrl(context: Context) -> None:
    """KVM_KVMCLOCK_CTRL tells a guest with a kvmclock that it was stopped, when it runs next; without one EINVAL.

    Source: Documentation/virt/kvm/api.rst, KVM_KVMCLOCK_CTRL; arch/x86/kvm/x86.c, kvm_set_guest_paused,
    kvm_guest_time_update; arch/x86/include/asm/pvclock-abi.h.
    """
    guest = context.own(Guest(context.kvm, "still", cpuid=context.host.facts.cpuid))
    guest.prepare(guest.payload.entry)
    refused("KVM_KVMCLOCK_CTRL without a kvmclock", errno.EINVAL, _ctl, guest.vcpu)
    if not msr.set_msr(guest.vcpu, Msr.KVM_SYSTEM_TIME_NEW, TYPED_PAGES | _ENABLE_MSR):
        context.skip("this KVM offers no kvmclock: KVM_SYSTEM_TIME_NEW = 0x200001 was refused")
    for what, stopped in (("before", 0), ("after", _GUEST_STOPPED)):
        if stopped:
            succeeds("KVM_KVMCLOCK_CTRL with a kvmclock", _ctl, guest.vcpu)
        succeeds("the run of the guest", guest.vcpu.run, context.timeout, ticks=1)
        flags = guest.memory.read(TYPED_PAGES + _CLOCK_FLAGS, 1)[0]
        equal(f"PVCLOCK_GUEST_STOPPED {what} KVM_KVMCLOCK_CTRL", flags & _GUEST_STOPPED, stopped)


@clause("call.apic-access-rules", arch="x86", needs=(LOCAL_APICS,))
def apic_access_rules(context: Context) -> None:
    """KVM_TPR_ACCESS_REPORTING has no flags, and KVM_SET_VAPIC_ADDR is for a vCPU with its local APIC in the kernel.

    Source: Documentation/virt/kvm/api.rst, KVM_TPR_ACCESS_REPORTING, KVM_SET_VAPIC_ADDR; arch/x86/kvm/x86.c,
    vcpu_ioctl_tpr_access_reporting, kvm_arch_vcpu_ioctl.
    """
    plain, local = context.vcpu(), with_local_apics(context.vm()).create_vcpu()
    for flags in (1, 1 << 31):
        refused(f"KVM_TPR_ACCESS_REPORTING with flags {flags:#x}", errno.EINVAL, _report, local, flags)
    succeeds("KVM_TPR_ACCESS_REPORTING", _report, local, 0)
    refused("KVM_SET_VAPIC_ADDR without a local APIC", errno.EINVAL, _vapic, plain)
    succeeds("KVM_SET_VAPIC_ADDR 0", _vapic, local)


def _report(vcpu: Vcpu, flags: int) -> None:
    vcpu.ioctl(lib.KVM_TPR_ACCESS_REPORTING, ffi.new("struct kvm_tpr_access_ctl *", {"enabled": 1, "flags": flags}))


def _vapic(vcpu: Vcpu) -> None:
    vcpu.ioctl(lib.KVM_SET_VAPIC_ADDR, ffi.new("struct kvm_vapic_addr *"))
