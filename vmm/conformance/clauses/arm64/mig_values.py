# SPDX-License-Identifier: Apache-2.0
"""System registers, events and run states with values of their own: kept, copied, and what the guest sees.

What was written is what the copy has to have: a KVM that loses a value whenever it is written restores it perfectly.
"""

from __future__ import annotations

from vmm._kvm import lib
from vmm.arm64.guest import Guest
from vmm.arm64.registers import SYSTEM, Group, Register, sysreg
from vmm.arm64.vcpu import read, write
from vmm.conformance.arm64.common import COUNTERS, GUEST_RUNS, plain_guest, widest_vcpu
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.guest.base import EXCEPTION
from vmm.kvm.exits import Deadline
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu

_EVENTS, _MP_STATE = capability("KVM_CAP_VCPU_EVENTS"), capability("KVM_CAP_MP_STATE")
# The guest's own to the bit, as KVM keeps them for a vCPU that does not run.
_KEPT = {
    SYSTEM[name]: 0x0123456789ABCDEF ^ 0x1111111111111111 * at
    for at, name in enumerate(
        ("TPIDR_EL0", "TPIDRRO_EL0", "TPIDR_EL1", "FAR_EL1", "TTBR0_EL1", "TTBR1_EL1", "MAIR_EL1", "VBAR_EL1")
    )
}
# Those that a running guest can read, in the payload's order, with values that every CPU keeps.
_READ = {
    SYSTEM["TPIDR_EL0"]: 0x0123456789ABCDEF,
    SYSTEM["TPIDRRO_EL0"]: 0x1032547698BADCFE,
    SYSTEM["TPIDR_EL1"]: 0x2301674589EFCDAB,
    SYSTEM["FAR_EL1"]: 0xFFFF876543210123,
    SYSTEM["ESR_EL1"]: 0x96000045,
    SYSTEM["CONTEXTIDR_EL1"]: 0x12345678,
    sysreg(3, 0, 14, 1, 0): 0x3,  # CNTKCTL_EL1: EL0PCTEN, EL0VCTEN
    sysreg(3, 2, 0, 0, 0): 0x2,  # CSSELR_EL1: the data cache of level 2
}
_PAUSE = 0.02  # seconds in which a vCPU that does not run does nothing
_SERROR_SP1 = 7  # the entry of the vector table for an SError from EL1 with SP_EL1
_RUNNABLE, _STOPPED = int(lib.KVM_MP_STATE_RUNNABLE), int(lib.KVM_MP_STATE_STOPPED)


def _changed(vcpu: Vcpu, register: Register) -> int | None:
    """Give a register another value that KVM takes and keeps; None if there is none."""
    old = read(vcpu, register)
    for value in (0x0123456789ABCDEF, old ^ 0x10, old ^ 1, old ^ 0x100, old ^ 0x10000):
        try:
            write(vcpu, register, value & (1 << 8 * register.size) - 1)
        except KvmError:
            continue
        if read(vcpu, register) == value & (1 << 8 * register.size) - 1:
            return read(vcpu, register)
        write(vcpu, register, old)
    return None


def _ordinary(register: Register) -> bool:
    """A system register that is no identification register (op1 and CRn 0) and does not count."""
    identification = register.encoding[0] == 3 and register.encoding[2] == 0
    timer = register.encoding[2] == 14 and register.encoding[1] == 3
    return register.group == Group.SYSREG and not identification and not timer and register not in COUNTERS


@clause("mig.sysregs-changed", arch="arm64")
def sysregs_changed(context: Context) -> None:
    """Every listed system register that takes another value comes over with that value, to the bit.

    TPIDR_EL0, TPIDRRO_EL0, TPIDR_EL1, FAR_EL1, TTBR0_EL1, TTBR1_EL1, MAIR_EL1 and VBAR_EL1 keep what they are given.
    The vCPU never runs; identification registers, timers and counters have clauses of their own.

    Source: Documentation/virt/kvm/api.rst, 4.68, 4.69; arch/arm64/kvm/sys_regs.c, kvm_arm_sys_reg_set_reg.
    """
    vcpu, copy = widest_vcpu(context), widest_vcpu(context)
    listed = [register for register in map(Register, vcpu.reg_list()) if _ordinary(register)]
    meant: dict[Register, int] = {}
    for register in listed:
        if register in _KEPT:
            meant[register] = _KEPT[register]
            succeeds(f"writing {register}", write, vcpu, register, meant[register])
        elif (value := _changed(vcpu, register)) is not None:
            meant[register] = value
    true("registers of the guest's own in the list", _KEPT.keys() <= set(listed), listed, "all of them")
    saved = {register: read(vcpu, register) for register in meant}
    for register in [one for one in meant if one not in _KEPT and saved[one] != meant[one]]:
        context.note(f"changed by the write of another one: {register}")
        del meant[register]
    _arrived("saved", saved, meant)
    for register in meant:
        succeeds(f"writing {register} of the copy", write, copy, register, saved[register])
    _arrived("copied", {register: read(copy, register) for register in meant}, meant)
    context.note(f"{len(meant)} of {len(listed)} registers take another value")


def _arrived(what: str, found: dict[Register, int], meant: dict[Register, int]) -> None:
    wrong = [f"{one}: {found[one]:#x} and not {value:#x}" for one, value in meant.items() if found[one] != value]
    no_difference(f"the {what} registers", wrong, compared=len(meant))


@clause("mig.sysregs-in-guest", arch="arm64", needs=(GUEST_RUNS,))
def sysregs_in_guest(context: Context) -> None:
    """Thread and context ids, FAR_EL1, ESR_EL1, CNTKCTL_EL1 and CSSELR_EL1 come over, and the guest's MRS reads them.

    Source: Documentation/virt/kvm/api.rst, 4.68; arch/arm64/kvm/hyp/include/hyp/sysreg-sr.h,
    __sysreg_restore_el1_state.
    """
    source, copy = plain_guest(context, "state"), plain_guest(context, "state")
    for register, value in _READ.items():
        succeeds(f"writing {register}", write, source.vcpu, register, value)
    copy.prepare("sysregs")
    for register in _READ:
        saved = succeeds(f"reading {register}", read, source.vcpu, register)
        succeeds(f"writing {register} of the copy", write, copy.vcpu, register, saved)
    for register, value in _READ.items():
        equal(f"{register} of the copy", read(copy.vcpu, register), value)
    with judged("the run of the copy", "an end without a fault"):
        copy.finish(copy.resume(context.timeout), "state.sysregs")
    for (register, value), seen in zip(_READ.items(), copy.mailbox.values, strict=False):
        equal(f"{register} in the guest", seen, value)


@clause("mig.serror", arch="arm64", needs=(_EVENTS, GUEST_RUNS))
def serror(context: Context) -> None:
    """A pending SError comes over, waits while the copy masks it, and is taken where the copy unmasks it.

    Source: Documentation/virt/kvm/api.rst, 4.31, 4.32 (arm64: serror_pending); arch/arm64/kvm/guest.c,
    __kvm_arm_vcpu_set_events.
    """
    source, copy = plain_guest(context, "state"), plain_guest(context, "state")
    events = source.vcpu.get_events()
    events.exception.serror_pending = 1
    succeeds("KVM_SET_VCPU_EVENTS", source.vcpu.set_events, events)
    saved = source.vcpu.get_events()
    equal("serror_pending of the vCPU", saved.exception.serror_pending, 1)
    copy.prepare("unmask")
    succeeds("KVM_SET_VCPU_EVENTS of the copy", copy.vcpu.set_events, saved)
    equal("serror_pending of the copy", copy.vcpu.get_events().exception.serror_pending, 1)
    exit = copy.resume(context.timeout)
    true("the exit of the copy", copy.event(exit) == EXCEPTION, exit, "that of its exception handler")
    equal("what the copy did before it unmasked SErrors", copy.mailbox.read("values"), 1)
    equal("the entry of the vector table", copy.fault().vector, _SERROR_SP1)
    copy.complete()
    equal("serror_pending after it was taken", copy.vcpu.get_events().exception.serror_pending, 0)


@clause("mig.stopped", arch="arm64", needs=(_MP_STATE, GUEST_RUNS))
def mp_state(context: Context) -> None:
    """A run state comes over: a copy of a stopped vCPU does nothing until it is made runnable, then it runs.

    Source: Documentation/virt/kvm/api.rst, 4.38, 4.39; arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl_set_mpstate.
    """
    source = plain_guest(context, "state")
    for name, value in (("STOPPED", _STOPPED), ("RUNNABLE", _RUNNABLE)):
        copy = plain_guest(context, "state")
        copy.prepare("sysregs")
        succeeds(f"KVM_SET_MP_STATE to {name}", setattr, source.vcpu, "mp_state", value)
        succeeds(f"KVM_SET_MP_STATE of the copy to {name}", setattr, copy.vcpu, "mp_state", source.vcpu.mp_state)
        equal(f"mp_state of the copy of a vCPU that is {name}", copy.vcpu.mp_state, value)
        if value == _STOPPED:
            equal("the exit of a copy that is STOPPED", type(copy.resume(_PAUSE)), Deadline)
            copy.vcpu.mp_state = _RUNNABLE
        _runs(context, copy, name)


def _runs(context: Context, copy: Guest, name: str) -> None:
    with judged(f"the run of a copy that was {name}"):
        copy.finish(copy.resume(context.timeout), "state.sysregs")
