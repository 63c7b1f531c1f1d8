# SPDX-License-Identifier: Apache-2.0
"""RESET and INIT: what a new vCPU holds, and what INIT leaves alone."""

from __future__ import annotations

import random

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference, succeeds
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import (
    GUEST_XSAVE,
    LOCAL_APICS,
    XSAVE2,
    configured,
    pattern,
    plain_features,
    with_local_apics,
)
from vmm.kvm.bits import bits
from vmm.kvm.exits import Deadline
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.x86 import cpuid, msr, xfeature
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_regs, get_sregs, get_xcr0, set_regs, set_sregs, set_xcr0
from vmm.x86.xsave import get_xsave, set_xsave

_PAT_AT_RESET = 0x0007040600070406
_CD_NW = 0x60000000
_DELIVER_INIT = 5 << 8 | 1 << 14  # delivery mode INIT, assert


@clause("reset.xcr0-xss-xfd", arch="x86", needs=(capability("KVM_CAP_XCRS"),))
def reset_values(context: Context) -> None:
    """A new vCPU has XCR0 1, IA32_XSS, IA32_XFD and IA32_XFD_ERR 0, IA32_PAT 0x0007040600070406, CR0.CD and NW set.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_reset; Intel SDM volume 3, table 11-1.
    """
    vcpu = configured(context)
    equal("XCR0", succeeds("XCR0 by KVM_GET_XCRS", get_xcr0, vcpu), 1)
    for index in (Msr.XSS, Msr.XFD, Msr.XFD_ERR):
        value = msr.try_get(vcpu, index)
        if value is None:
            context.note(f"{msr.name(index)} is not readable here")
        else:
            equal(msr.name(index), value, 0)
    equal("IA32_PAT", msr.get_msr(vcpu, Msr.PAT), _PAT_AT_RESET)
    sregs = get_sregs(vcpu)
    equal("CR0", sregs.cr0, _CD_NW | 0x10)
    equal("CR4", sregs.cr4, 0)
    equal("EFER", sregs.efer, 0)


@clause("reset.by-writing-back", arch="x86", needs=(GUEST_XSAVE, XSAVE2))
def reset_by_writing_back(context: Context) -> None:
    """A used vCPU to which a fresh one's state is written is in every saved register like a fresh one.

    KVM has no ioctl to reset a vCPU, so this is how a VMM that keeps its fds does it.

    Source: Documentation/virt/kvm/api.rst, 4 (no such ioctl); arch/x86/kvm/x86.c, kvm_vcpu_reset.
    """
    msrs = state.saved_msrs(context.kvm)
    fresh = state.capture(configured(context), msrs)
    vcpu = configured(context)
    set_xcr0(vcpu, plain_features(context))
    set_xsave(vcpu, pattern(plain_features(context), 31))
    msr.set_msr(vcpu, Msr.PAT, 0x0006060606060606)
    regs = get_regs(vcpu)
    regs.rbx = 0x5A5A
    set_regs(vcpu, regs)
    changed = state.compare(fresh, state.capture(vcpu, msrs))
    equal(
        "pieces changed before the reset",
        {line.split(":")[0] for line in changed},
        {"REGS", "XCRS", "XSAVE", "MSRS"},
    )
    with judged("writing the fresh vCPU's state"):
        state.restore(vcpu, fresh)
    no_difference("the vCPU after the reset", state.compare(fresh, state.capture(vcpu, msrs)))


@clause(
    "init.preserves",
    arch="x86",
    needs=(GUEST_XSAVE, XSAVE2, LOCAL_APICS, capability("KVM_CAP_SIGNAL_MSI")),
)
def init_preserves(context: Context) -> None:
    """INIT leaves XCR0, IA32_PAT, CR0.CD and NW, x87 and the vector registers alone; RIP, CR4, EFER are reset.

    The signal is sent to the second vCPU as a message-signalled INIT.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_reset (init_event); Intel SDM volume 3, table 11-1.
    """
    vm = with_local_apics(context.vm())
    vm.create_vcpu(0)
    second = vm.create_vcpu(1)
    cpuid.set_cpuid(second, context.host.facts.cpuid)
    plain = plain_features(context)
    pat = 0x0006040600070406
    set_xcr0(second, plain)
    set_xsave(second, pattern(plain, random.Random(32).randrange(1 << 30)))
    sregs = get_sregs(second)
    sregs.cr0, sregs.cr4, sregs.efer = 0x33, 0x220, 0x100
    set_sregs(second, sregs)
    equal("IA32_PAT accepted", msr.set_msr(second, Msr.PAT, pat), True)
    before = get_xsave(second).normalised()
    regs = get_regs(second)
    regs.rip, regs.rbx = 0x1234, 0x5678
    set_regs(second, regs)
    send_init(vm, second)
    after = get_regs(second)
    equal("RIP and RBX after INIT", (after.rip, after.rbx), (0xFFF0, 0))
    equal("XCR0 after INIT", get_xcr0(second), plain)
    equal("IA32_PAT after INIT", msr.get_msr(second, Msr.PAT), pat)
    equal("stale components after INIT", get_xsave(second).stale(), [])
    seen = get_xsave(second).normalised()
    sregs = get_sregs(second)
    equal("CR0, CR4 and EFER after INIT", (sregs.cr0, sregs.cr4, sregs.efer), (0x10, 0, 0))
    for number in bits(plain):
        equal(f"bytes of {xfeature.name(number)} after INIT", seen.component(number), before.component(number))


def send_init(vm: VirtualMachine, vcpu: Vcpu) -> None:
    """Send INIT to a vCPU other than the first, as a message-signalled interrupt, and have KVM_RUN take it."""
    vcpu.mp_state = lib.KVM_MP_STATE_RUNNABLE
    # A vCPU is not yet in the map of APIC ids when its own APIC is reset; writing the APIC makes KVM look again.
    vcpu.ioctl(lib.KVM_SET_LAPIC, vcpu.get(lib.KVM_GET_LAPIC, "kvm_lapic_state"))
    address = 0xFEE00000 | vcpu.identifier << 12
    vm.ioctl(lib.KVM_SIGNAL_MSI, ffi.new("struct kvm_msi *", {"address_lo": address, "data": _DELIVER_INIT}))
    exit = succeeds("KVM_RUN of a vCPU that waits for SIPI", vcpu.run, 0.05)
    equal("the exit of a vCPU that waits for SIPI", exit, Deadline())
    equal("mp_state after INIT", vcpu.mp_state, lib.KVM_MP_STATE_INIT_RECEIVED)
