# SPDX-License-Identifier: Apache-2.0
"""The closed world: calls that change a vCPU's state beside its setters, or show what follows from it."""

from __future__ import annotations

import errno
from typing import Any, cast

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, refused, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.apic import LOCAL_APICS
from vmm.conformance.x86.world import GROUND, WITH_CHIPS, X2APIC
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.state.x86.world.lapic import LAPIC
from vmm.state.x86.world.modes import SREGS_1
from vmm.state.x86.world.registers import DEBUGREGS, REGS
from vmm.x86 import msr
from vmm.x86.guest import Guest

_VECTOR, _VECTORS = 0x51, 256


def _interrupt(vcpu: Vcpu, vector: int) -> None:
    vcpu.ioctl(lib.KVM_INTERRUPT, ffi.new("struct kvm_interrupt *", {"irq": vector}))


@clause("world.events-called", arch="x86")
def events_called(context: Context) -> None:
    """KVM_NMI, KVM_SMI and KVM_INTERRUPT leave in EVENTS what they ask for, and KVM_INTERRUPT in SREGS too.

    A vector above 255 is EINVAL. With a local APIC in the kernel KVM_INTERRUPT is for its PIC's: a second one is
    EEXIST while the first one waits, and with a PIC in the kernel any is ENXIO.

    Source: Documentation/virt/kvm/api.rst, 4.16 (KVM_INTERRUPT), 4.64 (KVM_NMI), KVM_SMI; arch/x86/kvm/x86.c,
    kvm_vcpu_ioctl_interrupt, kvm_inject_nmi, kvm_vcpu_ioctl_x86_get_vcpu_events (process_nmi, process_smi).
    """
    vcpu = context.vm().create_vcpu()
    for vector in (_VECTORS, 0xFFFF_FFFF):
        refused(f"KVM_INTERRUPT {vector:#x}", errno.EINVAL, _interrupt, vcpu, vector)
    nothing = {"interrupt.injected": 0, "nmi.pending": 0, "smi.pending": 0}
    state.hold("before", vcpu.get_events(), nothing)
    succeeds("KVM_INTERRUPT", _interrupt, vcpu, _VECTOR)
    state.hold("after KVM_INTERRUPT", vcpu.get_events(), nothing | {"interrupt.injected": 1, "interrupt.nr": _VECTOR})
    bitmap = SREGS_1.read(vcpu)
    equal("interrupt_bitmap[1]", bitmap[f"interrupt_bitmap[{_VECTOR // 64}]"], 1 << _VECTOR % 64)
    succeeds("KVM_NMI", vcpu.ioctl_value, lib.KVM_NMI)
    state.hold("after KVM_NMI", vcpu.get_events(), {"nmi.pending": 1, "nmi.injected": 0, "smi.pending": 0})
    if context.host.facts.capabilities["KVM_CAP_X86_SMM"]:
        succeeds("KVM_SMI", vcpu.ioctl_value, lib.KVM_SMI)
        state.hold("after KVM_SMI", vcpu.get_events(), {"smi.pending": 1, "smi.smm": 0, "nmi.pending": 1})
    if context.host.facts.capabilities["KVM_CAP_SPLIT_IRQCHIP"]:
        split = GROUND.vcpu(context)
        succeeds("KVM_INTERRUPT with a local APIC in the kernel", _interrupt, split, _VECTOR)
        refused("KVM_INTERRUPT while one waits", errno.EEXIST, _interrupt, split, _VECTOR)
        state.hold("with a local APIC in the kernel", split.get_events(), nothing)
    if context.host.facts.capabilities["KVM_CAP_IRQCHIP"]:
        machine = cast(VirtualMachine, WITH_CHIPS.vcpu(context))
        refused("KVM_INTERRUPT with a PIC in the kernel", errno.ENXIO, _interrupt, machine.create_vcpu(), _VECTOR)


def _debug(vcpu: Vcpu, control: int) -> None:
    value: Any = ffi.new("struct kvm_guest_debug *", {"control": control})
    value.arch.debugreg = [0x1111_0000, 0x2222_0000, 0x3333_0000, 0x4444_0000, 0, 0, 0, 0x455]
    vcpu.ioctl(lib.KVM_SET_GUEST_DEBUG, value)


@clause("world.debugregs-debugged", arch="x86")
def debugged(context: Context) -> None:
    """KVM_SET_GUEST_DEBUG changes nothing of the guest's: neither debug registers nor RFLAGS, in none of its modes.

    With KVM_GUESTDBG_INJECT_DB the guest gets a #DB, and EBUSY while an exception waits.

    Source: Documentation/virt/kvm/api.rst, 4.87; arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_guest_debug,
    kvm_get_rflags (without the TF of single steps), kvm_update_dr7.
    """
    vcpu = GROUND.vcpu(context)
    meant = {table: table.values(table.read(vcpu), vcpu, 0) for table in (DEBUGREGS, REGS)}
    for table, values in meant.items():
        table.write(vcpu, values)
    enabled = lib.KVM_GUESTDBG_ENABLE
    for what, control in (
        ("breakpoints of the VMM", enabled | lib.KVM_GUESTDBG_USE_HW_BP),
        ("single steps", enabled | lib.KVM_GUESTDBG_SINGLESTEP),
        ("nothing", 0),
        ("a #DB", enabled | lib.KVM_GUESTDBG_INJECT_DB),
    ):
        succeeds(f"KVM_SET_GUEST_DEBUG with {what}", _debug, vcpu, control)
        for table, values in meant.items():
            found = table.read(vcpu)
            for field, value in values.items():
                equal(f"{table.piece.name}.{field} with {what}", found[field], value)
    state.hold("after KVM_GUESTDBG_INJECT_DB", vcpu.get_events(), {"exception.injected": 1, "exception.nr": 1})
    for control in (lib.KVM_GUESTDBG_INJECT_DB, lib.KVM_GUESTDBG_INJECT_BP):
        refused(f"KVM_SET_GUEST_DEBUG {control:#x} while it waits", errno.EBUSY, _debug, vcpu, enabled | control)


def _translate(vcpu: Vcpu, address: int) -> Any:
    value = ffi.new("struct kvm_translation *", {"linear_address": address})
    with judged(f"KVM_TRANSLATE of {address:#x}"):
        vcpu.ioctl(lib.KVM_TRANSLATE, value)
    return value


@clause("world.sregs-translated", arch="x86")
def translated(context: Context) -> None:
    """KVM_TRANSLATE walks the page tables that CR3 of SREGS points to; without paging an address is itself.

    Source: Documentation/virt/kvm/api.rst, 4.15; arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_translate.
    """
    vcpu = GROUND.vcpu(context)
    for address in (0, 0x1234_5678):
        found = _translate(vcpu, address)
        equal(f"valid of {address:#x} without paging", found.valid, 1)
        equal(f"the physical address of {address:#x} without paging", found.physical_address, address)
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid))
    guest.prepare(guest.payload.entry)
    mapped = guest.payload.entry + 0x123 & ~0x800
    found = _translate(guest.vcpu, mapped)
    equal("valid and writeable of what is mapped", (found.valid, found.writeable), (1, 1))
    equal("the physical address of what is mapped", found.physical_address, mapped)
    equal("valid of what is not mapped", _translate(guest.vcpu, 0x7654_3210_0000).valid, 0)


# What has no meaning to an x2APIC, or may not be written there: registers by their MSRs.
_NOT_READ = (0x800, 0x804, 0x80E, 0x831, 0x83F + 1)
_NOT_WRITTEN = {
    0x800: 0, 0x802: 0x25, 0x803: 0x14, 0x80D: 1, 0x80E: 0, 0x80F: 1 << 32 | 0x1FF, 0x808: 1 << 32, 0x828: 1,
    0x831: 0, 0x832: 1 << 63 | 0x10030, 0x838: 1 << 32, 0x83F: 0x100,
    **{0x830 | bit << 32: 1 << bit for bit in (13, 16, 17, 20, 31)},
}  # fmt: skip


@clause("world.lapic-x2-msrs", arch="x86", needs=(LOCAL_APICS,))
def x2apic_msrs(context: Context) -> None:
    """KVM_GET_MSRS and KVM_SET_MSRS refuse what an x2APIC has no register for, and reserved bits of those it has.

    The local APIC's page does not change.

    Source: arch/x86/kvm/lapic.c, kvm_x2apic_msr_read, kvm_lapic_reg_read, kvm_lapic_msr_write, kvm_lapic_reg_write,
    kvm_x2apic_icr_write; Intel SDM volume 3, 11.12.1.2, table 11-6.
    """
    vcpu = X2APIC.vcpu(context)
    before = LAPIC.read(vcpu)
    taken = [f"{index:#x}" for index in _NOT_READ if msr.try_get(vcpu, index) is not None]
    equal("MSRs that are read and are none", taken, [])
    pairs = [(key & 0xFFFF, value) for key, value in _NOT_WRITTEN.items()]
    taken = [f"{index:#x} = {value:#x}" for index, value in pairs if msr.set_msr(vcpu, index, value)]
    equal("values that are taken and are reserved", taken, [])
    after = LAPIC.read(vcpu)
    changed = [name for name, value in before.items() if after[name] != value]
    true("the page after the refusals", not changed, changed, "as before")
