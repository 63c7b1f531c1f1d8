# SPDX-License-Identifier: Apache-2.0
"""The generic timer between a VMM and its guest: controls, comparators and both counters."""

from __future__ import annotations

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.registers import SYSTEM, Register
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, call, plain_guest
from vmm.conformance.arm64.instructions import mrs, msr
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, succeeds, true
from vmm.conformance.registry import clause

# Encodings as the guest has them: KVM's ids of CNTV_CVAL_EL0 and CNTVCT_EL0 are exchanged, see vm.timer-swapped-ids.
_TIMERS = {
    "CNTV": {"CTL_EL0": (3, 3, 14, 3, 1), "CVAL_EL0": (3, 3, 14, 3, 2)},
    "CNTP": {"CTL_EL0": (3, 3, 14, 2, 1), "CVAL_EL0": (3, 3, 14, 2, 2)},
}
_CNTVCT, _CNTPCT = (3, 3, 14, 0, 2), (3, 3, 14, 0, 1)
_ENABLE, _MASKED, _ISTATUS = 1, 2, 4
_FAR, _FARTHER = 0x3FFF_0000_1111_2222, 0x3FFF_0000_3333_4444
_VIRTUAL, _PHYSICAL = 1 << 40, 1 << 44


def _mrs(context: Context, guest: Guest, name: str, encoding: tuple[int, int, int, int, int]) -> int:
    call(context, guest, f"MRS {name}", "execute", mrs(*encoding))
    equal(f"faults of MRS {name}", guest.mailbox.values[15], 0)
    return guest.mailbox.values[0]


@clause("vm.timer-registers", arch="arm64", needs=(GUEST_RUNS,))
def registers(context: Context) -> None:
    """Controls and comparators of the virtual timer, and of the physical one where it is listed, go both ways.

    What the VMM wrote the guest reads, what the guest wrote the VMM does; a comparator that has been passed shows in
    the guest's ISTATUS.

    Source: arch/arm64/kvm/sys_regs.c, TIMER_REG, access_arch_timer; arch/arm64/kvm/arch_timer.c, timer_save_state.
    """
    guest = plain_guest(context)
    listed: set[Register | int] = set(guest.vcpu.reg_list())
    for timer, places in _TIMERS.items():
        control, comparator = (SYSTEM[f"{timer}_{place}"] for place in places)
        if control not in listed:
            context.note(f"{control} is not listed")
            continue
        succeeds(f"{comparator} far away", write, guest.vcpu, comparator, _FAR)
        succeeds(f"{control} = 3", write, guest.vcpu, control, _ENABLE | _MASKED)
        equal(f"{comparator} in the guest", _mrs(context, guest, str(comparator), places["CVAL_EL0"]), _FAR)
        equal(f"{control} in the guest", _mrs(context, guest, str(control), places["CTL_EL0"]), _ENABLE | _MASKED)
        for register, place, value in ((comparator, "CVAL_EL0", _FARTHER), (control, "CTL_EL0", _MASKED)):
            call(context, guest, f"MSR {register}", "execute", msr(*places[place]), value)
            equal(f"{register} as the guest wrote it", read(guest.vcpu, register), value)
        write(guest.vcpu, comparator, 0)
        write(guest.vcpu, control, _ENABLE | _MASKED)
        passed = _mrs(context, guest, str(control), places["CTL_EL0"])
        equal(f"{control} in the guest, {comparator} passed", passed, _ENABLE | _MASKED | _ISTATUS)


@clause("vm.timer-counter-shared", arch="arm64", needs=(GUEST_RUNS,))
def shared(context: Context) -> None:
    """CNTVCT_EL0 written through one vCPU is that of all vCPUs of the VM, and of no other VM.

    Source: arch/arm64/kvm/arch_timer.c, timer_set_offset, kvm_arm_timer_set_reg (before 6.4 update_vtimer_cntvoff).
    """
    other, guest = plain_guest(context), plain_guest(context)
    second = guest.vm.create_vcpu(1)
    vcpus.init(second, Feature.PSCI_0_2)
    counter = SYSTEM["CNTVCT_EL0"]
    write(other.vcpu, counter, 0)
    succeeds("CNTVCT_EL0 of the second vCPU", write, second, counter, _VIRTUAL)
    for what, value in (
        ("the first vCPU", read(guest.vcpu, counter)),
        ("the second vCPU", read(second, counter)),
        ("the first vCPU's guest", _mrs(context, guest, "CNTVCT_EL0", _CNTVCT)),
    ):
        true(f"CNTVCT_EL0 of {what}", _VIRTUAL <= value < 2 * _VIRTUAL, value, f"from {_VIRTUAL:#x} on")
    value = read(other.vcpu, counter)
    true("CNTVCT_EL0 of another VM", value < _VIRTUAL, value, f"below {_VIRTUAL:#x}")


@clause("vm.timer-physical-counter", arch="arm64", needs=(GUEST_RUNS,))
def physical(context: Context) -> None:
    """CNTPCT_EL0, where it is listed, is set as CNTVCT_EL0 is, and each without the other.

    Source: arch/arm64/kvm/sys_regs.c, arch_timer_set_user; arch/arm64/kvm/arch_timer.c, kvm_arm_timer_read_sysreg.
    """
    guest = plain_guest(context)
    virtual_counter, physical_counter = SYSTEM["CNTVCT_EL0"], SYSTEM["CNTPCT_EL0"]
    if physical_counter not in guest.vcpu.reg_list():
        context.skip("CNTPCT_EL0 is not listed")
    succeeds("writing CNTVCT_EL0", write, guest.vcpu, virtual_counter, _VIRTUAL)
    succeeds("writing CNTPCT_EL0", write, guest.vcpu, physical_counter, _PHYSICAL)
    for name, register, encoding, start in (
        ("CNTVCT_EL0", virtual_counter, _CNTVCT, _VIRTUAL),
        ("CNTPCT_EL0", physical_counter, _CNTPCT, _PHYSICAL),
    ):
        for who, value in (("the guest", _mrs(context, guest, name, encoding)), ("KVM", read(guest.vcpu, register))):
            true(f"{name} by {who}", start <= value < 2 * start, value, f"from {start:#x} on")
