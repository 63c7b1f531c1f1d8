# SPDX-License-Identifier: Apache-2.0
"""MSRs of KVM's list with values of their own: they are kept, they come over, and the guest reads them."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import configured
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.x86 import msr, msr_names
from vmm.x86.guest import Guest
from vmm.x86.msr_names import Msr
from vmm.x86.msr_values import KEPT

# Legal for most of the others: few low bits or none, an address, a page's address, a fixed MTRR's types.
_CANDIDATES = (0x1, 0x2, 0x4, 0x10, 0, 0x765432108000, 0x12345000, 0x0606060606060606)


def _changed(vcpu: Vcpu, index: int) -> tuple[int | None, bool]:
    """Give an MSR another value that KVM takes and keeps; return it, and whether KVM took one and did not keep it."""
    old, odd = msr.try_get(vcpu, index), False
    if old is None:
        return None, odd
    for value in _CANDIDATES:
        try:
            taken = value != old and msr.set_msr(vcpu, index, value)
        except KvmError:  # the value makes KVM look at the guest's memory, or at a device that is missing
            continue
        if not taken:
            continue
        if msr.try_get(vcpu, index) == value:
            return value, odd
        odd = True
        msr.set_msr(vcpu, index, old)
    return None, odd


def _note(context: Context, what: str, indices: list[int]) -> None:
    if indices:
        context.note(f"{what}: {', '.join(msr_names.name(index) for index in indices)}")


@clause("mig.msrs-changed", arch="x86")
def msrs_changed(context: Context) -> None:
    """Every MSR of KVM's list that takes another value comes over with that value, to the bit.

    Those of SYSCALL, SYSENTER and SWAPGS and IA32_PAT keep what they are given; of others a note says which take a
    value and do not keep it. The vCPU never runs.

    Source: Documentation/virt/kvm/api.rst, 4.18, 4.19; arch/x86/kvm/x86.c, kvm_set_msr_common.
    """
    vcpu, copy = configured(context), configured(context)
    listed = state.saved_msrs(context.kvm)
    meant: dict[int, int] = {}
    odd: list[int] = []
    for index in listed:
        if index in KEPT:
            meant[index] = KEPT[Msr(index)]
            accepted = msr.set_msr(vcpu, index, meant[index])
            equal(f"{msr.name(index)} = {meant[index]:#x} accepted", accepted, True)
            continue
        changed, strange = _changed(vcpu, index)
        odd += [index] * strange
        if changed is not None:
            meant[index] = changed
    saved = msr.get_readable(vcpu, meant)
    # Such as the two numbers that KVM_SYSTEM_TIME has.
    together = [index for index in meant if index not in KEPT and saved.get(index) != meant[index]]
    for index in together:
        del meant[index]
    _arrived("the saved", saved, meant)
    with judged("KVM_SET_MSRS of the saved values"):
        state.set_msrs(copy, saved)
    _arrived("the copied", msr.get_readable(copy, meant), meant)
    context.note(f"{len(meant)} of {len(listed)} MSRs take another value")
    _note(context, "taken and not kept", odd)
    _note(context, "changed by the write of another one", together)


def _arrived(what: str, found: dict[int, int], meant: dict[int, int]) -> None:
    wrong = [index for index, value in meant.items() if found.get(index) != value]
    lines = [f"{msr.name(index)}: {_value(found.get(index))} and not {meant[index]:#x}" for index in wrong]
    no_difference(f"{what} MSRs", lines, compared=len(meant))


def _value(value: int | None) -> str:
    return "nothing" if value is None else f"{value:#x}"


@clause("mig.msrs-in-guest", arch="x86")
def msrs_in_guest(context: Context) -> None:
    """What the host writes to the MSRs of SYSCALL, SYSENTER and SWAPGS and to IA32_PAT is what a copy's RDMSR gives.

    Source: Documentation/virt/kvm/api.rst, 4.19; arch/x86/kvm/vmx/vmx.c, vmx_set_msr; arch/x86/kvm/svm/svm.c,
    svm_set_msr.
    """
    guest = context.own(Guest(context.kvm, "state", cpuid=context.host.facts.cpuid))
    guest.prepare("rdmsrs")
    for index, value in KEPT.items():
        equal(f"{msr.name(index)} = {value:#x} accepted", msr.set_msr(guest.vcpu, index, value), True)
    saved = state.capture(guest.vcpu, tuple(KEPT), ("SREGS", "REGS", "MSRS"))
    copy = state.twin(context, guest, saved, "the MSRs")
    for index, seen in zip(KEPT, state.rdmsrs(context, copy, KEPT), strict=True):
        equal(f"{msr.name(index)} in the guest", seen, KEPT[index])
