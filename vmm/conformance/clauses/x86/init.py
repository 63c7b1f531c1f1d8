# SPDX-License-Identifier: Apache-2.0
"""INIT: what it resets, and what it leaves alone."""

from __future__ import annotations

import random

from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.registry import clause
from vmm.conformance.x86.apic import INIT_BY_MESSAGE, send_init, with_local_apics
from vmm.conformance.x86.common import GUEST_XSAVE, XSAVE2, pattern, plain_features
from vmm.kvm.bits import bits
from vmm.x86 import cpuid, msr, xfeature
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_regs, get_sregs, get_xcr0, set_regs, set_sregs, set_xcr0
from vmm.x86.xsave import get_xsave, set_xsave


@clause("init.preserves", arch="x86", needs=(GUEST_XSAVE, XSAVE2, *INIT_BY_MESSAGE))
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
