# SPDX-License-Identifier: Apache-2.0
"""In which orders the pieces of a vCPU's state can be restored."""

from __future__ import annotations

import itertools
import math
import random

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import GUEST_XSAVE, XSAVE2, pattern, plain_features
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import cpuid, msr
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.guest import Guest
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_debugregs, get_regs, get_sregs, set_debugregs, set_regs, set_sregs, set_xcr0
from vmm.x86.xsave import set_xsave

_SAMPLE = 100
_BATCH = 100  # vCPUs in one VM: a VM costs more than a vCPU
_SEED = 21
_MSRS: dict[int, int] = {
    Msr.PAT: 0x0006040600070406,
    Msr.KERNEL_GS_BASE: 0x123456789000,
    Msr.LSTAR: 0xFFFFFFFF81234560,
}
_GENERAL = {"rax": 0x1122334455667788, "r15": 0x99AABBCCDDEEFF00}
_CONTROL = {"cr2": 0x7654321000, "fs.base": 0x765432108000}
_DEBUG = {0: 0x1000, 3: 0x3000}
_DR6, _DR7 = 0xFFFF0FF2, 0xDDDD0700
# An exception that is injected: one that is only pending would have to be written after REGS, which discards it.
_EVENTS = {
    "exception.injected": 1, "exception.nr": 13, "exception.has_error_code": 1, "exception.error_code": 0x1230,
    "nmi.pending": 1, "nmi.masked": 1,
}  # fmt: skip
_MOV_SS = 2


def _busy_vcpu(context: Context) -> Vcpu:
    """A vCPU in long mode whose every piece of state differs from that of a fresh one; it must not run."""
    guest = context.own(Guest(context.kvm, "hello", cpuid=context.host.facts.cpuid, cr4=CR4_OSXSAVE))
    vcpu = guest.vcpu
    guest.prepare("_start", privilege=3)
    set_xcr0(vcpu, plain_features(context))
    set_xsave(vcpu, pattern(plain_features(context), _SEED))
    state.set_msrs(vcpu, _MSRS)
    sregs, regs, debug, events = get_sregs(vcpu), get_regs(vcpu), get_debugregs(vcpu), vcpu.get_events()
    state.assign(sregs, _CONTROL)
    set_sregs(vcpu, sregs)
    state.assign(regs, _GENERAL)
    set_regs(vcpu, regs)
    for number, address in _DEBUG.items():
        debug.db[number] = address
    debug.dr6, debug.dr7 = _DR6, _DR7
    set_debugregs(vcpu, debug)
    state.assign(events, _EVENTS)
    events.interrupt.shadow = _MOV_SS
    events.flags |= lib.KVM_VCPUEVENT_VALID_NMI_PENDING | lib.KVM_VCPUEVENT_VALID_SHADOW
    vcpu.set_events(events)
    return vcpu


def _as_meant(context: Context, vcpu: Vcpu, saved: state.State) -> None:
    """What was written to the vCPU is there: what a KVM loses in writing, no restore of it could show."""
    where = "of the busy vCPU"
    plain = plain_features(context)
    equal(f"XCR0 {where}", saved["XCRS"], plain)
    no_difference(f"the area {where}", pattern(plain, _SEED).same_state(saved["XSAVE"]))
    for index, value in _MSRS.items():
        equal(f"{msr.name(index)} {where}", saved["MSRS"].get(index), value)
    state.hold(where, get_sregs(vcpu), _CONTROL)
    state.hold(where, get_regs(vcpu), _GENERAL)
    debug, events = get_debugregs(vcpu), vcpu.get_events()
    state.hold(where, debug, {"dr6": _DR6, "dr7": _DR7})
    for number, address in _DEBUG.items():
        equal(f"DR{number} {where}", debug.db[number], address)
    state.hold(where, events, _EVENTS)
    equal(f"the MOV SS bit of interrupt.shadow {where}", events.interrupt.shadow & _MOV_SS, _MOV_SS)


def _orders(context: Context) -> list[tuple[str, ...]]:
    names = tuple(state.PIECES)
    if context.options.exhaustive:
        return list(itertools.permutations(names))
    source = random.Random(context.options.seed)
    chosen = {names, tuple(reversed(names))}
    while len(chosen) < _SAMPLE:
        chosen.add(tuple(source.sample(names, len(names))))
    return sorted(chosen)


def _restored(context: Context, saved: state.State, orders: list[tuple[str, ...]], msrs: tuple[int, ...]) -> None:
    """Restore in each order into a vCPU of its own and compare."""
    with context.kvm.create_vm() as vm:
        for identifier, order in enumerate(orders):
            with vm.create_vcpu(identifier) as vcpu:
                cpuid.set_cpuid(vcpu, context.host.facts.cpuid)
                name = " ".join(order)
                with judged(f"order {name}", "accepted"):
                    state.restore(vcpu, saved, order)
                no_difference(f"order {name}", state.compare(saved, state.capture(vcpu, msrs)))


@clause("mig.order-matrix", arch="x86", needs=(GUEST_XSAVE, XSAVE2), timeout=60)
def order_matrix(context: Context) -> None:
    """After KVM_SET_CPUID2 the pieces of a vCPU's state can be restored in any order with the same result.

    The kernel's documentation of the order says "TBD". 100 of the 40320 orders are tried, in which any three pieces
    come in each of their orders; all with --exhaustive. The vCPU has an injected exception, a masked and pending NMI
    and an interrupt shadow.

    Source: Documentation/virt/kvm/api.rst, "Ordering of KVM_GET_*/KVM_SET_* ioctls".
    """
    msrs = state.saved_msrs(context.kvm)
    busy = _busy_vcpu(context)
    state.capture(busy, msrs)  # reading CET MSRs puts the state through the CPU once, which fills MXCSR_MASK
    saved = state.capture(busy, msrs)
    _as_meant(context, busy, saved)
    orders = _orders(context)
    for start in range(0, len(orders), _BATCH):
        _restored(context, saved, orders[start : start + _BATCH], msrs)
    context.note(f"{len(orders)} of {math.factorial(len(state.PIECES))} orders tried")
